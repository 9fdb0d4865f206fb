//! Where a packed ring is.
use crate::{
    memory::Translator,
    ring::{
        config::{MAX_QUEUE_SIZE, QueueConfig},
        error::RingError,
        placement::place,
    },
};

/// The three parts of a ring in host memory.
pub(super) struct Parts {
    pub(super) descriptors: *mut [u64; 2],
    pub(super) driver_events: *const u32,
    pub(super) device_events: *mut u32,
}

impl Parts {
    /// # Errors
    /// The size is not allowed, or a part does not lie in guest memory or is not aligned (virtio 1.3, 2.8.10.1).
    pub(super) fn find(config: &QueueConfig, tables: &mut Translator) -> Result<Self, RingError> {
        if config.size == 0 || config.size > MAX_QUEUE_SIZE {
            return Err(RingError::PackedSize(config.size));
        }
        let QueueConfig { size, descriptors, driver_area, device_area } = *config;
        Ok(Parts {
            descriptors: place(tables, descriptors, 16 * u64::from(size), 16, "descriptor ring")?,
            driver_events: place::<u32>(tables, driver_area, 4, 4, "driver event suppression structure")?,
            device_events: place(tables, device_area, 4, 4, "device event suppression structure")?,
        })
    }
}
