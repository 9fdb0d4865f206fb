//! The devices of a machine, for whoever runs it: as objects with verbs, while its guest runs.
use pollux_core::{
    memory::GuestMemory,
    transport::{DeviceHandle, HandleError},
};
use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The devices of a machine, in the order of attachment. Every verb may be called by any thread but those of workers
/// and vCPUs, also while [`Machine::run`](crate::Machine::run) runs, and keeps no vCPU from a device's registers while
/// it waits for a medium: see [`DeviceHandle`].
#[derive(Clone, Debug)]
pub struct Devices(Vec<DeviceHandle>);

impl Devices {
    pub(crate) fn new(handles: Vec<DeviceHandle>) -> Devices {
        Devices(handles)
    }

    /// Each by itself.
    pub fn iter(&self) -> impl Iterator<Item = &DeviceHandle> {
        self.0.iter()
    }

    /// The device of that name in the configuration.
    pub fn get(&self, name: &str) -> Option<&DeviceHandle> {
        self.0.iter().find(|device| device.name() == name)
    }

    /// Has all media measured again, and guests told of those that have changed. Returns at once.
    pub fn refresh(&self) {
        self.0.iter().for_each(DeviceHandle::refresh);
    }

    /// Drains all queues of all devices. When this returns, no device touches the guest's memory; its processors run
    /// on.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn pause(&self) -> Result<(), HandleError> {
        self.0.iter().try_for_each(DeviceHandle::pause)
    }

    /// Has all of them go on where they were. Those behind one that cannot go on as well.
    ///
    /// # Errors
    /// The first device that cannot go on: its guest is told that it needs a reset.
    pub fn resume(&self) -> Result<(), HandleError> {
        let outcomes: Vec<_> = self.0.iter().map(DeviceHandle::resume).collect();
        outcomes.into_iter().collect()
    }

    /// Gives all devices another map of the guest's memory: see [`DeviceHandle::set_memory`]. What the guest's
    /// processors see is KVM's, and is not changed here.
    ///
    /// # Errors
    /// The first device that cannot use it. Those before it have the new memory, the others the old.
    pub fn set_memory(&self, memory: &GuestMemory) -> Result<(), HandleError> {
        self.0.iter().try_for_each(|device| device.set_memory(memory))
    }
}

/// The events by which backends say that their media have changed, as one that a machine can wait for.
pub(crate) struct Changes {
    epoll: Epoll,
    /// A device for each event, found by its number.
    devices: Vec<DeviceHandle>,
}

impl Changes {
    pub(crate) fn new() -> io::Result<Changes> {
        Ok(Changes { epoll: Epoll::new()?, devices: Vec::new() })
    }

    /// Has a device's medium measured whenever `event` says so.
    pub(crate) fn watch(&mut self, device: DeviceHandle, event: RawFd) -> io::Result<()> {
        // Whoever measures reads the event, on another thread: until then, it is not told of again.
        let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, self.devices.len() as u64);
        self.epoll.ctl(ControlOperation::Add, event, interest)?;
        self.devices.push(device);
        Ok(())
    }

    /// Has the media measured whose events have come.
    pub(crate) fn follow(&self) {
        let mut events = [EpollEvent::default(); 16];
        // Those that do not fit come the next time.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            self.devices[event.data() as usize].refresh();
        }
    }
}

impl AsRawFd for Changes {
    /// Readable when an event has come.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
