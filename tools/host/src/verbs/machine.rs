//! Making the machine, attaching devices to it, running it.
use super::pending::Pending;
use crate::{
    action::Action,
    device::Place,
    host::{Host, Shared},
    machine::{MachineError, Slot},
};
use pollux_vmm::{Exit, ExitCounts, Location, Machine, MachineSpec, Shutdown, Transport};
use std::mem::take;
use tracing::info;

impl Host {
    /// Makes the machine, with its memory. It does not run yet. `[any thread]` It waits for the memory.
    ///
    /// # Errors
    /// There is one already, or something that it needs does not exist.
    pub fn make_machine(&self, spec: MachineSpec) -> Result<(), MachineError> {
        if !matches!(self.shared.lock().machine, Slot::None) {
            return Err(MachineError::Exists);
        }
        let machine = Box::new(Machine::new(spec)?);
        let mut objects = self.shared.lock();
        match objects.machine {
            Slot::None => objects.machine = Slot::Stopped(machine),
            _ => return Err(MachineError::Exists),
        }
        Ok(())
    }

    /// Puts a device that is neither served nor attached on a bus of the machine, where it stays as long as the machine
    /// exists. `[any thread]`, before the machine is started. It does not wait.
    ///
    /// # Errors
    /// The machine runs or is not there, the device is not free, or there is no room on the bus.
    pub fn attach(&self, device: &str, transport: Transport) -> Result<Location, MachineError> {
        let mut objects = self.shared.lock();
        match objects.machine {
            Slot::None => return Err(MachineError::None),
            Slot::Running(..) => return Err(MachineError::Running),
            Slot::Stopped(_) => {}
        }
        let model = objects.begin_change(device, Action::new("being attached"))?;
        let Slot::Stopped(machine) = &mut objects.machine else { return Err(MachineError::None) };
        let attached = machine.attach(model, transport);
        let handle = machine.devices().get(device).cloned();
        drop(objects);
        let pending = Pending::new(&self.shared, device);
        let location = attached?;
        let handle = handle.expect("a device that is attached is among those of the machine");
        pending.settle(Place::Attached(location, handle));
        info!("{device}: attached at {location:?}");
        Ok(location)
    }

    /// Runs the machine until its guest powers off, `shutdown` is requested, or the host is [stopped](Self::stop).
    /// Blocks for that time, so call it on a thread that has nothing else to do. Meanwhile, other threads may use all
    /// verbs except those that plug devices.
    ///
    /// # Errors
    /// There is none, it runs already, or see [`Machine::run`].
    pub fn run_machine(&self, shutdown: &Shutdown) -> Result<Exit, MachineError> {
        let mut machine = {
            let mut objects = self.shared.lock();
            match take(&mut objects.machine) {
                Slot::Stopped(machine) => {
                    objects.machine = Slot::Running(machine.spec().clone(), shutdown.clone());
                    machine
                }
                other => {
                    let is_there = matches!(other, Slot::Running(..));
                    objects.machine = other;
                    return Err(if is_there { MachineError::Running } else { MachineError::None });
                }
            }
        };
        let back = Back(&self.shared);
        let result = machine.run(shutdown);
        self.shared.lock().machine = Slot::Stopped(machine);
        drop(back);
        Ok(result?)
    }

    /// How often each vCPU has left guest mode; nothing while the machine runs, or if there is none.
    pub fn exit_counts(&self) -> Vec<ExitCounts> {
        match &self.shared.lock().machine {
            Slot::Stopped(machine) => machine.exit_counts(),
            Slot::None | Slot::Running(..) => Vec::new(),
        }
    }
}

/// A run of the machine, which has ended when this is dropped. If nothing was put back, it panicked.
struct Back<'s>(&'s Shared);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        let mut objects = self.0.lock();
        if matches!(objects.machine, Slot::Running(..)) {
            objects.machine = Slot::None;
        }
        drop(objects);
        self.0.notify();
    }
}
