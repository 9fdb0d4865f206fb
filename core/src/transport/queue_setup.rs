//! One queue as its driver sets it up by registers (virtio 1.3, 4.1.4.3 and 4.2.2). What the values mean depends on the
//! kind of ring, and is checked when the driver is done.
use crate::ring::{MAX_QUEUE_SIZE, QueueConfig};

/// The registers of one queue.
#[derive(Clone, Debug)]
pub struct QueueSetup {
    max_size: u16,
    ready: bool,
    was_reset: bool,
    config: QueueConfig,
}

/// One 64-bit address of which the driver may write each half by itself.
fn set_halves(address: &mut u64, low: Option<u32>, high: Option<u32>) {
    if let Some(low) = low {
        *address = *address & !0xffff_ffff | u64::from(low);
    }
    if let Some(high) = high {
        *address = *address & 0xffff_ffff | u64::from(high) << 32;
    }
}

impl QueueSetup {
    /// As it is after a reset: of the largest possible size. `None`: no queue can be of this size, or the size is 0.
    pub fn new(max_size: u16) -> Option<Self> {
        let config = QueueConfig { size: max_size, descriptors: 0, driver_area: 0, device_area: 0 };
        (1..=MAX_QUEUE_SIZE).contains(&max_size).then_some(QueueSetup {
            max_size,
            ready: false,
            was_reset: false,
            config,
        })
    }

    /// Forgets what the driver has set.
    pub fn reset(&mut self) {
        let size = self.max_size;
        self.config = QueueConfig { size, descriptors: 0, driver_area: 0, device_area: 0 };
        (self.ready, self.was_reset) = (false, false);
    }

    /// As [`reset`](Self::reset), for a reset of this queue alone (virtio 1.3, 2.6.1): it may be enabled again while
    /// the device runs.
    pub(super) fn reset_alone(&mut self) {
        self.reset();
        self.was_reset = true;
    }

    /// Whether it was reset alone and not enabled since.
    pub(super) fn was_reset(&self) -> bool {
        self.was_reset
    }

    /// The greatest size that the driver can choose.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// The driver chooses a size. One that is not allowed for any ring is ignored.
    pub fn set_size(&mut self, size: u16) {
        if (1..=self.max_size).contains(&size) {
            self.config.size = size;
        }
    }

    /// Whether the driver has enabled it.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// The driver enables or disables it.
    pub fn set_ready(&mut self, ready: bool) {
        self.ready = ready;
        self.was_reset &= !ready;
    }

    /// Halves of the address of the descriptor area.
    pub fn set_descriptors(&mut self, low: Option<u32>, high: Option<u32>) {
        set_halves(&mut self.config.descriptors, low, high);
    }

    /// Halves of the address of the driver area.
    pub fn set_driver_area(&mut self, low: Option<u32>, high: Option<u32>) {
        set_halves(&mut self.config.driver_area, low, high);
    }

    /// Halves of the address of the device area.
    pub fn set_device_area(&mut self, low: Option<u32>, high: Option<u32>) {
        set_halves(&mut self.config.device_area, low, high);
    }

    /// The whole set-up, as the ring takes it.
    pub fn config(&self) -> QueueConfig {
        self.config
    }
}
