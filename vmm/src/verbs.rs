//! The devices of a machine as objects with verbs, for the program that runs it, while its guest runs.
use pollux_core::{
    memory::GuestMemory,
    transport::{DeviceHandle, HandleError},
};
use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The devices of a machine, in the order of attachment. Every verb may be called by any thread except those of workers
/// and vCPUs, also while [`Machine::run`](crate::Machine::run) runs. While it waits for a medium, it keeps no vCPU from
/// a device's registers: see [`DeviceHandle`].
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

    /// Measures all media again, and tells the guest about those that have changed. Returns at once.
    pub fn refresh(&self) {
        self.0.iter().for_each(DeviceHandle::refresh);
    }

    /// Drains all queues of all devices. When this returns, no device touches the guest's memory; its processors keep
    /// running.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn pause(&self) -> Result<(), HandleError> {
        self.0.iter().try_for_each(DeviceHandle::pause)
    }

    /// Lets all of them continue where they were, even those behind one that cannot continue.
    ///
    /// # Errors
    /// The first device that cannot continue: its guest is told that it needs a reset.
    pub fn resume(&self) -> Result<(), HandleError> {
        let outcomes: Vec<_> = self.0.iter().map(DeviceHandle::resume).collect();
        outcomes.into_iter().collect()
    }

    /// Gives all devices another map of the guest's memory: see [`DeviceHandle::set_memory`]. What the guest's
    /// processors see is up to KVM, and is not changed here.
    ///
    /// # Errors
    /// The first device that cannot use it. Those before it have the new memory, the others the old.
    pub fn set_memory(&self, memory: &GuestMemory) -> Result<(), HandleError> {
        self.0.iter().try_for_each(|device| device.set_memory(memory))
    }
}

/// The events by which backends report that their media have changed, combined into one that a machine can wait for.
pub(crate) struct Changes {
    epoll: Epoll,
    /// A device for each event, found by its number.
    devices: Vec<DeviceHandle>,
}

impl Changes {
    pub(crate) fn new() -> io::Result<Changes> {
        Ok(Changes { epoll: Epoll::new()?, devices: Vec::new() })
    }

    /// Measures a device's medium whenever `event` is signalled.
    pub(crate) fn watch(&mut self, device: DeviceHandle, event: RawFd) -> io::Result<()> {
        // The thread that measures reads the event: until then, it is not reported again.
        let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, self.devices.len() as u64);
        self.epoll.ctl(ControlOperation::Add, event, interest)?;
        self.devices.push(device);
        Ok(())
    }

    /// Measures the media whose events have been signalled.
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
