//! What can be done to the objects of a host. The verbs of an object are in the file of its name.
mod backend;
mod device;
mod export;
mod machine;
mod pending;
mod worker;
