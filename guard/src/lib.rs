//! The SIGBUS guard: an owner that shrinks a file that we have mapped must not end this process.
//!
//! An access to a page that its file has lost raises SIGBUS (mmap(2)), which by default ends the process and with it
//! every other device. The handler here looks the address up among the registered ranges, puts zeroed private memory
//! in place of the lost page and of all after it in that range, marks the range as damaged and returns: the access is
//! done again and succeeds. What raises SIGBUS elsewhere goes to whoever handled the signal before, or ends the
//! process as ever. PulseAudio's and systemd's libraries guard their mappings in this manner too.
//!
//! **The handler is async-signal-safe:** it reads atomics, and calls mmap, write, sigaction and raise; it takes no
//! lock, allocates nothing and cannot panic. SA_ONSTACK lets it run where a thread has little stack left. SA_NODEFER is
//! not set: a SIGBUS inside of the handler would be an error of ours, and ends the process at once.
//!
//! **Races.** A thread that faults in a range has been given that range's mapping and holds it until its access is
//! done. So the slot of *that* range was filled before (whatever handed the mapping to the thread orders the two) and
//! is not freed meanwhile. All other slots may change while the handler reads them. Each has a sequence number that is
//! odd during a change: the handler takes start and end only if it finds the same even number before and after, and
//! passes the slot by otherwise, since a slot that changes is not the one that it looks for. It never waits.
//!
//! **Several of them.** Each library of a process that is linked against this has a handler and ranges of its own. What
//! one does not know it passes on to whoever came before it, so the order in which they came does not matter.
//!
//! **Limits.** System calls do not raise SIGBUS: a read(2) into lost memory fails with EFAULT. Code that installs
//! another SIGBUS handler later, and does not pass the signal on, takes the guard away.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod handler;
#[allow(unsafe_code)]
mod pages;
#[allow(unsafe_code)]
mod ranges;
#[allow(unsafe_code)]
mod registration;
#[allow(unsafe_code)]
mod spares;

pub use handler::{damage_count, damage_event};
pub use pages::FileSystem;
pub use registration::Registration;
