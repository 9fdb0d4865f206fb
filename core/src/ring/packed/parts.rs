//! Where a packed ring is.
use crate::{
    memory::Translator,
    ring::{MAX_QUEUE_SIZE, QueueConfig, RingError},
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
        let mut place = |address: u64, length: u64, align: u64, what| {
            tables
                .translate(address, length)
                .filter(|host| address.is_multiple_of(align) && host.addr().is_multiple_of(align as usize))
                .ok_or(RingError::Placement(what))
        };
        Ok(Parts {
            descriptors: place(config.descriptors, 16 * u64::from(config.size), 16, "descriptor ring")?.cast(),
            driver_events: place(config.driver_area, 4, 4, "driver event suppression structure")?.cast_const().cast(),
            device_events: place(config.device_area, 4, 4, "device event suppression structure")?.cast(),
        })
    }
}
