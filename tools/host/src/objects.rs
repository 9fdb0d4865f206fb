//! All objects, and how they are found.
use crate::{
    action::Action,
    backend::{Backend, BackendError},
    device::{DeviceError, DeviceSpec, HostedDevice, Place},
    export::ExportError,
    machine::Slot,
    worker::{RunningWorker, WorkerError},
};
use pollux_core::{device::DeviceModel, transport::vhost_user::Server, worker::WorkerHandle};
use std::mem::replace;

/// The objects. Nothing that may block is done while they are locked.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) machine: Slot,
    pub(crate) devices: Vec<HostedDevice>,
    pub(crate) backends: Vec<Backend>,
    pub(crate) workers: Vec<RunningWorker>,
    /// CPUs that are reserved for threads other than the existing workers.
    pub(crate) reserved_cpus: Vec<usize>,
    /// No more objects may be added.
    pub(crate) is_stopping: bool,
}

impl Objects {
    /// A device to which something is being done, and what.
    pub(crate) fn action(&self) -> Option<(String, Action)> {
        self.devices.iter().find_map(|device| match device.place {
            Place::Changing(action) => Some((device.spec.name.clone(), action)),
            _ => None,
        })
    }

    /// The names of the devices in question; `None` if there are none.
    pub(crate) fn users_of(&self, is_meant: impl Fn(&HostedDevice) -> bool) -> Option<String> {
        let names: Vec<&str> =
            self.devices.iter().filter(|device| is_meant(device)).map(|device| device.spec.name.as_str()).collect();
        match names[..] {
            [] => None,
            [name] => Some(format!("device {name}")),
            _ => Some(format!("devices {}", names.join(", "))),
        }
    }

    pub(crate) fn unknown_worker(&self, name: &str) -> WorkerError {
        let there = list(self.workers.iter().map(|worker| worker.spec.name.as_str()));
        WorkerError::Unknown { name: name.into(), there }
    }

    /// The worker of that name.
    pub(crate) fn worker(&self, name: &str) -> Option<&RunningWorker> {
        self.workers.iter().find(|worker| worker.spec.name == name)
    }

    pub(crate) fn check_new_backend(&self, name: &str) -> Result<(), BackendError> {
        match self.backends.iter().any(|backend| backend.spec().name == name) {
            true => Err(BackendError::Exists(name.into())),
            false => Ok(()),
        }
    }

    pub(crate) fn unknown_backend(&self, name: &str) -> BackendError {
        let there = list(self.backends.iter().map(|backend| backend.spec().name.as_str()));
        BackendError::Unknown { name: name.into(), there }
    }

    /// The backend of that name.
    pub(crate) fn backend(&self, name: &str) -> Option<&Backend> {
        self.backends.iter().find(|backend| backend.spec().name == name)
    }

    /// Whether there can be such a device; what it is made from.
    pub(crate) fn check_new_device(&self, spec: &DeviceSpec) -> Result<(Backend, Vec<WorkerHandle>), DeviceError> {
        let device = || spec.name.clone();
        if self.is_stopping {
            return Err(DeviceError::Stopping(device()));
        }
        if self.device(&spec.name).is_ok() {
            return Err(DeviceError::Exists(device()));
        }
        let dangling =
            |what, name: &str, there| DeviceError::Dangling { device: device(), what, name: name.into(), there };
        let blocks = || list(self.backends.iter().map(|backend| backend.spec().name.as_str()));
        let backend = self.backend(spec.block()).ok_or_else(|| dangling("block", spec.block(), blocks()))?;
        let workers = || list(self.workers.iter().map(|worker| worker.spec.name.as_str()));
        let handle = |name: &String| match self.worker(name) {
            Some(worker) => Ok(worker.worker.handle()),
            None => Err(dangling("worker", name, workers())),
        };
        let handles = spec.workers.iter().map(handle).collect::<Result<Vec<_>, _>>()?;
        if handles.is_empty() {
            return Err(DeviceError::NoWorker(device()));
        }
        let most = backend.info().maximum_queues as usize;
        if most != 0 && spec.queues.count > most {
            return Err(DeviceError::Queues { device: device(), queues: spec.queues.count, most });
        }
        for other in &self.devices {
            let block = other.spec.block();
            if self.backend(block).is_some_and(|other| backend.is_in_the_way_of(other)) {
                let (other, block) = (other.spec.name.clone(), block.into());
                return Err(DeviceError::SameMedium { device: device(), other, block });
            }
        }
        Ok((backend.clone(), handles))
    }

    /// The device of that name.
    pub(crate) fn device(&self, name: &str) -> Result<&HostedDevice, DeviceError> {
        self.devices.iter().find(|device| device.spec.name == name).ok_or_else(|| self.unknown_device(name))
    }

    /// The device of that name, to be changed.
    pub(crate) fn device_mut(&mut self, name: &str) -> Result<&mut HostedDevice, DeviceError> {
        match self.devices.iter().position(|device| device.spec.name == name) {
            Some(index) => Ok(&mut self.devices[index]),
            None => Err(self.unknown_device(name)),
        }
    }

    /// Begins an action on an idle device: it is [`Pending`] from here on.
    pub(crate) fn begin_change(&mut self, name: &str, action: Action) -> Result<Box<dyn DeviceModel>, DeviceError> {
        let device = self.device_mut(name)?;
        let in_use = |place| Err(DeviceError::InUse { device: name.into(), place });
        match replace(&mut device.place, Place::Changing(action)) {
            Place::Idle(model) => Ok(model),
            other => {
                device.place = other;
                match &device.place {
                    Place::Exported(server) => {
                        in_use(format!("served on {}; remove that export first", server.path().display()))
                    }
                    Place::Attached(..) => in_use(
                        "attached to the machine, which has no controller to unplug devices with; stop the machine \
                         first"
                            .into(),
                    ),
                    Place::Changing(action) => Err(DeviceError::busy(name, *action)),
                    Place::Idle(_) => unreachable!("it is not idle"),
                }
            }
        }
    }

    pub(crate) fn unknown_device(&self, name: &str) -> DeviceError {
        let there = list(self.devices.iter().map(|device| device.spec.name.as_str()));
        DeviceError::Unknown { name: name.into(), there }
    }

    pub(crate) fn take_server(&mut self, name: &str, action: Action) -> Result<Server, ExportError> {
        let device = self.device_mut(name)?;
        match replace(&mut device.place, Place::Changing(action)) {
            Place::Exported(server) => Ok(server),
            Place::Changing(other) => {
                device.place = Place::Changing(other);
                Err(DeviceError::busy(name, other).into())
            }
            other => {
                device.place = other;
                Err(ExportError::NotServed(name.into()))
            }
        }
    }
}

/// The names that exist, for a message: `are a, b`, `is none`.
fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.collect();
    match names[..] {
        [] => "is none".into(),
        [name] => format!("is {name}"),
        _ => format!("are {}", names.join(", ")),
    }
}
