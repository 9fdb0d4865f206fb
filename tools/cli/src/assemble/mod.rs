//! A checked configuration becomes something that runs.
//!
//! | module | holds |
//! |---|---|
//! | [`dataplane`] | backends opened, workers started, device models made: what every command shares |
//! | [`machine`] | the machine of `pollux run`, with the devices attached to it |
//! | [`exports`] | the sockets of `pollux serve`, with a device served on each |
pub(crate) mod dataplane;
pub(crate) mod exports;
pub(crate) mod machine;
