//! A device model that records what its transport does, for the tests of register maps.
use super::VirtioDevice;
use crate::{
    device::{ActivateError, Activation, ActiveQueue, DeviceModel},
    event::InterruptState,
    memory::GuestMemory,
};
use std::sync::{Arc, Mutex};

/// Bytes of configuration space.
const CONFIG_BYTES: usize = 16;

#[derive(Debug, Default)]
struct State {
    started: Option<Started>,
    deactivations: usize,
    config: [u8; CONFIG_BYTES],
}

/// A start of the device.
#[derive(Debug)]
pub(super) struct Started {
    /// Where the device reports to.
    pub(super) interrupts: Arc<InterruptState>,
    /// The queues that were started.
    pub(super) queues: Vec<ActiveQueue>,
}

/// What the model of [`recorded_device`] has seen.
#[derive(Clone, Debug)]
pub(super) struct Recorded(Arc<Mutex<State>>);

impl Recorded {
    /// The last activation, if there was one since this was asked.
    pub(super) fn take_activation(&self) -> Option<Started> {
        self.0.lock().expect("nobody panics with this lock").started.take()
    }

    /// How often a running device was stopped.
    pub(super) fn deactivations(&self) -> usize {
        self.0.lock().expect("nobody panics with this lock").deactivations
    }

    /// The configuration space.
    pub(super) fn config(&self) -> [u8; CONFIG_BYTES] {
        self.0.lock().expect("nobody panics with this lock").config
    }
}

struct Model {
    recorded: Recorded,
    queue_sizes: Vec<u16>,
    running: bool,
}

/// A device with queues of these greatest sizes in 1 MiB of memory.
pub(super) fn recorded_device(queue_sizes: &[u16]) -> (VirtioDevice, Recorded) {
    let config = std::array::from_fn(|index| index as u8);
    let recorded = Recorded(Arc::new(Mutex::new(State { config, ..Default::default() })));
    let model = Model { recorded: recorded.clone(), queue_sizes: queue_sizes.to_vec(), running: false };
    let memory = GuestMemory::create(&[(0, 1 << 20)], None).expect("a megabyte");
    (VirtioDevice::new(Box::new(model), memory).expect("valid queue sizes"), recorded)
}

impl DeviceModel for Model {
    fn name(&self) -> &str {
        "test0"
    }

    fn device_id(&self) -> u32 {
        2
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.recorded.config();
        let bytes = config.iter().skip(offset.min(CONFIG_BYTES as u64) as usize);
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    fn write_config(&mut self, offset: u64, data: &[u8], _features: u64) {
        let config = &mut self.recorded.0.lock().expect("nobody panics with this lock").config;
        let bytes = config.iter_mut().skip(offset.min(CONFIG_BYTES as u64) as usize);
        bytes.zip(data).for_each(|(to, from)| *to = *from);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let started = Started { interrupts: activation.interrupts, queues: Vec::new() };
        self.recorded.0.lock().expect("nobody panics with this lock").started = Some(started);
        self.running = true;
        Ok(())
    }

    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        self.recorded
            .0
            .lock()
            .expect("nobody panics with this lock")
            .started
            .as_mut()
            .expect("activated before")
            .queues
            .push(queue);
        Ok(())
    }

    fn deactivate(&mut self) {
        if std::mem::take(&mut self.running) {
            self.recorded.0.lock().expect("nobody panics with this lock").deactivations += 1;
        }
    }
}
