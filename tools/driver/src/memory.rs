//! Guest memory as a driver reaches it. Addresses are looked up by `vm-memory`, and not by what the devices under test
//! use.
use pollux_core::memory::GuestMemory;
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// The memory, which stays mapped as long as this is there.
#[derive(Debug)]
pub(crate) struct DriverMemory(GuestMemory);

impl DriverMemory {
    pub(crate) fn new(memory: &GuestMemory) -> Self {
        DriverMemory(memory.clone())
    }

    /// Where `bytes` bytes at a guest-physical address lie.
    pub(crate) fn at(&self, address: u64, bytes: u64) -> *mut u8 {
        let slice = self.0.map().get_slice(GuestAddress(address), bytes as usize).expect("addresses in guest memory");
        slice.ptr_guard_mut().as_ptr()
    }

    /// As [`at`](Self::at), filled with zeroes.
    pub(crate) fn zeroed(&self, address: u64, bytes: u64) -> *mut u8 {
        self.0.map().write_slice(&vec![0; bytes as usize], GuestAddress(address)).expect("addresses in guest memory");
        self.at(address, bytes)
    }

    /// Writes any value.
    pub(crate) fn write<T: Copy>(&self, address: u64, value: T) {
        let target = self.at(address, size_of::<T>() as u64);
        // SAFETY: the range was just looked up.
        unsafe { target.cast::<T>().write_unaligned(value) };
    }
}

/// Stands between what a driver writes to ask for interrupts and its next look at the ring. Partner: the device's fence
/// between its used index or descriptors and its look at what the driver asks for (virtio 1.3, 2.7.7.2 and 2.8.22).
#[inline(always)]
pub(crate) fn before_looking_again() {
    fence(Ordering::SeqCst);
}
