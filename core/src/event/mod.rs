//! What threads, drivers and front ends tell each other by events.
//!
//! | module | holds |
//! |---|---|
//! | [`interrupt`] | what a device tells its driver |
//! | `conduct` | how a front end behaves when its events are signalled |
//! | [`watch`] | a word in memory that changes when there is something to do |
//! | `watchdog` | frees threads that a front end's event holds up |
#[allow(unsafe_code)] // asynchronous I/O, for which there is no wrapper
pub(crate) mod conduct;
pub mod interrupt;
#[allow(unsafe_code)]
pub mod watch;
#[allow(unsafe_code)]
pub(crate) mod watchdog;

pub(crate) use conduct::Conduct;
pub use interrupt::{ISR_CONFIG, ISR_QUEUE, InterruptState, Notifier};
pub use watch::Watch;
