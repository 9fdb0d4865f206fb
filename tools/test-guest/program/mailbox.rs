// What the test guest and the test tell each other, by 64-bit words in guest memory. Compiled into both.

/// Where the plan lies: what the test wants done.
pub const PLAN: u64 = 0x9_0000;
/// Where the report lies: what the guest has done.
pub const REPORT: u64 = 0x9_1000;

/// Words of the plan.
pub mod plan {
    /// 0: PCI, 1: MMIO.
    pub const TRANSPORT: usize = 0;
    /// PCI device number, or address of the MMIO registers.
    pub const DEVICE: usize = 1;
    /// Line of the I/O APIC (MMIO).
    pub const LINE: usize = 2;
    /// 0: poll the used ring, 1: wait for interrupts.
    pub const INTERRUPTS: usize = 3;
    /// What to do, see the constants below.
    pub const ACTION: usize = 4;
    /// Requests in flight at a time, at most 64.
    pub const DEPTH: usize = 5;
    /// Requests in all, in each part.
    pub const REQUESTS: usize = 6;
    /// Bytes of data in each request, at most 4096.
    pub const BYTES: usize = 7;
    /// How often to start and reset the device.
    pub const SESSIONS: usize = 8;
    /// 0: power off at the end, 1: reset the machine, 2: spin for ever.
    pub const END: usize = 9;
    /// The test counts this up to let the guest go on from a phase.
    pub const GO: usize = 10;

    /// Write a pattern everywhere, read it back, compare.
    pub const ACTION_VERIFY: u64 = 0;
    /// Read, as fast as possible, between two phases that the test acknowledges.
    pub const ACTION_MEASURE: u64 = 1;
    /// One request while the MSI-X vector is masked, then unmask.
    pub const ACTION_MASK: u64 = 2;
    /// Access registers of all kinds at random, then verify.
    pub const ACTION_ABUSE: u64 = 3;
    /// One request while the device may not access memory, then let it.
    pub const ACTION_BUS_MASTER: u64 = 4;
}

/// Words of the report.
pub mod report {
    /// Counts up when the guest reaches a point where it waits for the test.
    pub const PHASE: usize = 0;
    /// 0, or what went wrong: a line of the guest's source, or 1000 + vector of an exception.
    pub const ERROR: usize = 1;
    /// More about the error.
    pub const DETAIL: usize = 2;
    /// Requests completed.
    pub const COMPLETED: usize = 3;
    /// Notifications made.
    pub const KICKS: usize = 4;
    /// Interrupts received.
    pub const INTERRUPTS: usize = 5;
    /// Ticks of the time stamp counter in the measured part.
    pub const TICKS: usize = 6;
    /// 1 when all is done.
    pub const DONE: usize = 7;
    /// Pending bits read while the vector was masked.
    pub const PENDING: usize = 8;
    /// Capacity that the device told, in sectors.
    pub const CAPACITY: usize = 9;
    /// After an exception: the second word on its stack (the first is in DETAIL), and the address of a page fault.
    pub const STACK: usize = 10;
    pub const FAULT_ADDRESS: usize = 11;
}
