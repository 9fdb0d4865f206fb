//! Whether the worker asks the device itself for the end of reads and writes (IOPOLL).
//!
//! Only a queue of the device without interrupts makes that worthwhile, and a driver has such queues only if it was
//! told to when it was loaded. On any other the kernel either refuses or spins for an interrupt.
use crate::{engine::Engine, geometry::queue_limit, options::PollChoice};
use pollux_abi::block::Error;
use std::path::Path;

impl PollChoice {
    /// Decides for a medium whose disk is the block device of this number, if it has one.
    pub(crate) fn decide(self, path: &Path, disk: Option<u64>, direct: bool, engine: Engine) -> Result<bool, Error> {
        let why_not = match disk {
            _ if engine.is_sync => "is read and written by system calls (see engine)",
            _ if !direct => "is read and written through the page cache (direct = false)",
            None => "is no block device",
            Some(disk) if queue_limit(disk, "io_poll") != Some(1) => {
                "has no queue that can be polled: for NVMe, have the driver make some, such as with nvme.poll_queues=4 \
                 on the kernel's command line"
            }
            Some(_) => return Ok(self != PollChoice::Off),
        };
        match self {
            PollChoice::On => {
                Err(Error::new(format!("poll = \"on\", but {} {why_not}; or write poll = \"auto\"", path.display())))
            }
            PollChoice::Auto | PollChoice::Off => Ok(false),
        }
    }
}
