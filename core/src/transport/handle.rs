//! The verbs of a device that is served, whatever its transport: for the program that runs it.
//!
//! | verb | returns |
//! |---|---|
//! | [`refresh`](DeviceHandle::refresh) | at once; the medium is asked on a thread of its own |
//! | [`pause`](DeviceHandle::pause) | when all requests in flight have completed |
//! | [`resume`](DeviceHandle::resume) | when all queues run again |
//! | [`set_memory`](DeviceHandle::set_memory) | when no request needs the old memory any more |
//!
//! Any thread may call any of them at any time, except workers, which must never be held up, and the threads of vCPUs
//! and connections, which answer the guest. A call that waits for requests in flight waits as long as the medium takes,
//! but not with the device locked: registers and messages are answered meanwhile.
//!
//! The lock is held while a queue starts and while a queue that has ended is closed. The plugin is called then; if it
//! does not return, accesses to the registers of this device wait, as they do when the driver itself starts the device.
use super::served::{Hold, Served};
use crate::memory::GuestMemory;
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
    time::Duration,
};
use tracing::warn;

/// How often to check whether the requests in flight that a verb waits for have completed.
const LOOK: Duration = Duration::from_millis(1);

/// Why a verb had no effect.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The device is not served any more.
    #[error("{0}: the device is gone")]
    Gone(String),
    /// A queue cannot start again.
    #[error("{device}: cannot go on: {reason}; the device needs a reset by its guest")]
    Resume {
        /// The device's name.
        device: String,
        /// Which queue, and why.
        reason: String,
    },
    /// The memory cannot be used, or is not provided by this process.
    #[error("{device}: cannot use another memory: {reason}")]
    Memory {
        /// The device's name.
        device: String,
        /// Why.
        reason: String,
    },
}

/// Where a transport keeps its device: behind the lock that is also taken to answer the guest.
pub(crate) trait Place: Send + Sync {
    /// Does something with the device locked.
    fn with(&self, action: &mut dyn FnMut(&mut Served));
    /// The configuration space has changed; the device's own interrupt has told the driver.
    fn config_changed(&self) {}
    /// As [`DeviceHandle::set_memory`], without the wait.
    fn set_memory(&self, memory: &GuestMemory) -> Result<(), String>;
}

/// A served device, for the program that runs it. It keeps no device alive.
#[derive(Clone)]
pub struct DeviceHandle {
    name: Arc<str>,
    place: Weak<dyn Place>,
    refresh: Arc<Mutex<Refresh>>,
}

/// Whether a thread is asking the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refresh {
    No,
    Asks,
    /// It must ask again afterwards: its answer may be older than the last call.
    AsksAgain,
}

impl fmt::Debug for DeviceHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DeviceHandle({})", self.name)
    }
}

impl DeviceHandle {
    pub(crate) fn new(name: &str, place: Weak<dyn Place>) -> Self {
        DeviceHandle { name: name.into(), place, refresh: Arc::new(Mutex::new(Refresh::No)) }
    }

    /// The device's name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks the backend what its medium is like now, and tells the driver by a configuration change interrupt if
    /// something has changed, such as the capacity. A medium that hangs holds up nothing else.
    pub fn refresh(&self) {
        let mut refresh = self.lock_refresh();
        if *refresh != Refresh::No {
            *refresh = Refresh::AsksAgain;
            return;
        }
        let this = self.clone();
        let thread = thread::Builder::new().name(format!("measure-{}", self.name)).spawn(move || this.measure());
        match thread {
            Ok(_) => *refresh = Refresh::Asks,
            Err(error) => warn!("{}: its medium cannot be measured again: {error}", self.name),
        }
    }

    /// The thread of a refresh.
    fn measure(&self) {
        loop {
            // Without the lock and without the device, which may go away meanwhile.
            let measure = self.with(|served| served.measure());
            if let Ok(Some(measure)) = measure {
                measure.measure();
                if self.with(Served::refresh).unwrap_or(false)
                    && let Some(place) = self.place.upgrade()
                {
                    place.config_changed();
                }
            }
            let mut refresh = self.lock_refresh();
            if *refresh == Refresh::Asks {
                *refresh = Refresh::No;
                return;
            }
            *refresh = Refresh::Asks;
        }
    }

    /// Drains all queues. When this returns, nothing touches the guest's memory: the device answers its driver's
    /// accesses to registers, and takes no request until it is [resumed](Self::resume). A driver may reset the device
    /// and start it again meanwhile; its queues run with the resume.
    ///
    /// # Errors
    /// The device is gone.
    pub fn pause(&self) -> Result<(), HandleError> {
        self.with(|served| served.hold(Hold::Paused))?;
        // A resume in the meantime ends the wait, too: nothing needs to be drained any more.
        while !self.with(|served| served.settle() || !served.is_held_by(Hold::Paused))? {
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Lets all queues continue where they were when the device was [paused](Self::pause). Without a pause it does
    /// nothing.
    ///
    /// # Errors
    /// The device is gone, or a queue cannot start again: then the guest is told that the device needs a reset.
    pub fn resume(&self) -> Result<(), HandleError> {
        self.with(|served| served.release(Hold::Paused))?;
        loop {
            // Queues that are still being paused finish that first.
            let outcome = self.with(|served| served.settle().then(|| served.go_on()))?;
            match outcome {
                None => thread::sleep(LOOK),
                Some(Ok(())) => return Ok(()),
                Some(Err(reason)) => return Err(HandleError::Resume { device: self.name.to_string(), reason }),
            }
        }
    }

    /// Whether the device is paused.
    pub fn is_paused(&self) -> bool {
        self.with(|served| served.is_held_by(Hold::Paused)).unwrap_or(false)
    }

    /// Gives the device another map of its guest's memory, in which all that the old one has is at the same addresses:
    /// with more memory, or without some that the guest does not use. Queues continue in it at once. When this returns,
    /// no request uses the old one any more.
    ///
    /// # Errors
    /// The device is gone, the backend cannot use the memory, or the front end provides it, as over vhost-user.
    pub fn set_memory(&self, memory: &GuestMemory) -> Result<(), HandleError> {
        let failed = |reason| HandleError::Memory { device: self.name.to_string(), reason };
        self.place.upgrade().ok_or_else(|| self.gone())?.set_memory(memory).map_err(failed)?;
        while self.with(|served| served.model_mut().release_memory())? {
            thread::sleep(LOOK);
        }
        Ok(())
    }

    fn with<R>(&self, action: impl FnOnce(&mut Served) -> R) -> Result<R, HandleError> {
        let place = self.place.upgrade().ok_or_else(|| self.gone())?;
        let (mut action, mut result) = (Some(action), None);
        place.with(&mut |served| result = action.take().map(|action| action(served)));
        result.ok_or_else(|| self.gone())
    }

    fn gone(&self) -> HandleError {
        HandleError::Gone(self.name.to_string())
    }

    fn lock_refresh(&self) -> std::sync::MutexGuard<'_, Refresh> {
        self.refresh.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
