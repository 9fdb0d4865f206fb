//! The clock of the hot path: the time stamp counter, calibrated once.
use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// The time stamp counter. About 11 ns in a virtual machine.
#[inline(always)]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction.
    return unsafe { std::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    return start().elapsed().as_nanos() as u64;
}

/// Ticks per second, measured over the first 10 ms of use.
pub fn ticks_per_second() -> u64 {
    static RATE: OnceLock<u64> = OnceLock::new();
    *RATE.get_or_init(|| {
        let (start, first) = (Instant::now(), ticks());
        while start.elapsed() < Duration::from_millis(10) {
            std::hint::spin_loop();
        }
        let (elapsed, ticks) = (start.elapsed(), ticks() - first);
        (u128::from(ticks) * 1_000_000_000 / elapsed.as_nanos()) as u64
    })
}

/// Turns ticks into nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    factor: u64,
}

impl Scale {
    /// The scale of this machine.
    pub fn new() -> Self {
        Scale { factor: ((1_000_000_000u128 << 32) / u128::from(ticks_per_second().max(1))) as u64 }
    }

    /// Nanoseconds of `ticks`.
    #[inline(always)]
    pub fn nanoseconds(self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.factor)) >> 32) as u64
    }
}

impl Default for Scale {
    fn default() -> Self {
        Self::new()
    }
}
