//! A flush that has failed stays failed.
//!
//! When the kernel cannot write cached data back, it says so once to each open file, and then takes the pages for clean
//! (`errseq_t`): the next `fdatasync` or `msync` succeeds although the data is lost. A backend over the kernel's caches
//! keeps the first failure in a [`FlushLatch`], for all queues of an instance, until it is opened again.
use crate::host::{Host, Level};
use std::{
    io,
    path::PathBuf,
    sync::atomic::{AtomicI32, Ordering},
};

/// Whether a flush of an instance has failed. `[any thread]`
#[derive(Debug)]
pub struct FlushLatch {
    /// The first failure as a negative errno; 0: there is none.
    failure: AtomicI32,
    is_kept: bool,
    host: Host,
    path: PathBuf,
}

impl FlushLatch {
    /// For the medium at `path`. With `is_kept` false, failures are passed on and forgotten: for a medium of which the
    /// kernel caches nothing, so that each flush has the device's own answer.
    pub fn new(is_kept: bool, host: Host, path: PathBuf) -> Self {
        FlushLatch { failure: AtomicI32::new(0), is_kept, host, path }
    }

    /// The negative errno that every flush from now on ends with, if one has failed.
    #[inline]
    pub fn failure(&self) -> Option<i32> {
        // Partner: the exchange in `outcome`. A flush that the guest makes after it was told of a failure finds that.
        Some(self.failure.load(Ordering::Acquire)).filter(|&failure| failure < 0)
    }

    /// What the guest is told of a flush that has ended with `result`: 0 or a negative errno. The first failure is
    /// logged.
    pub fn outcome(&self, result: i32) -> i32 {
        if result >= 0 {
            return self.failure().unwrap_or(0);
        }
        if !self.is_kept {
            return result;
        }
        match self.failure.compare_exchange(0, result, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                let (shown, error) = (self.path.display(), io::Error::from_raw_os_error(-result));
                self.host.log(
                    Level::Error,
                    format_args!(
                        "{shown}: a flush failed: {error}; data written before it may be lost, so every further flush \
                         and durable write fails until Pollux is restarted: look at the storage behind it, and check \
                         the guest's file system"
                    ),
                );
                result
            }
            Err(first) => first,
        }
    }
}
