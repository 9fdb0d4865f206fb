//! A pause of the processor between two polls that find nothing.
use crate::stats::clock;

/// How the processor pauses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    /// Whether it has TPAUSE, which rests the core until a time.
    has_tpause: bool,
    ticks: u64,
}

/// How long a pause with TPAUSE takes, in nanoseconds. It is the most that one adds to a latency.
const TPAUSE_NS: u64 = 250;

impl Pause {
    pub(super) fn new() -> Self {
        Pause { has_tpause: has_waitpkg(), ticks: clock::ticks_per_second() / 1_000_000 * TPAUSE_NS / 1000 }
    }

    /// The shortest: tells the core's other thread to go ahead, and keeps this one from hammering lines that a driver
    /// writes.
    #[inline(always)]
    pub(super) fn short(self) {
        std::hint::spin_loop();
    }

    /// Saves power where the processor can.
    #[inline(always)]
    pub(super) fn long(self) {
        if self.has_tpause {
            tpause(clock::ticks() + self.ticks);
        } else {
            std::hint::spin_loop();
        }
    }
}

/// WAITPKG: CPUID leaf 7, ECX bit 5 (Intel SDM, volume 2, CPUID).
#[cfg(target_arch = "x86_64")]
fn has_waitpkg() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ecx & 1 << 5 != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn has_waitpkg() -> bool {
    false
}

/// Rests until `deadline` of the time stamp counter, in C0.1: the state that is left faster. The system may bound it
/// further.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[cold]
fn tpause(deadline: u64) {
    let (low, high) = (deadline as u32, (deadline >> 32) as u32);
    // SAFETY: only called where the processor has the instruction. It changes flags, and touches no memory.
    unsafe {
        std::arch::asm!(
            "tpause {state:e}",
            state = in(reg) 1u32,
            in("eax") low,
            in("edx") high,
            options(nomem, nostack)
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn tpause(_deadline: u64) {
    std::hint::spin_loop();
}
