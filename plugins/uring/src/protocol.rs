//! How calls become entries of a ring: one way for files and block devices, another for NVMe namespaces (`nvme`).
use crate::{call::Call, registered::RegisteredMemory, ring::Ring};
use io_uring::{cqueue, opcode, squeue};
use std::fmt;

/// One way. `squeue` and `cqueue` entries have two sizes.
pub(crate) trait Protocol: fmt::Debug + Send + 'static {
    /// What is put into the ring.
    type Submission: squeue::EntryMarker + Send;
    /// What comes out of it.
    type Completion: cqueue::EntryMarker + Send;
    /// The operations of its entries.
    const OPERATIONS: &[u8];

    /// The entry of a call of the slot `index`, with that as its user data.
    fn entry(&mut self, index: u32, call: &Call) -> Self::Submission;

    /// What a completion says of a transfer of at most `asked` bytes: how many were moved, or a negative errno.
    fn result(result: i32, asked: u32) -> i32;

    /// Called at the beginning of each `submit`, on the worker.
    #[inline]
    fn refresh(
        &mut self,
        _ring: &Ring<Self::Submission, Self::Completion>,
        _polled: Option<&Ring<Self::Submission, Self::Completion>>,
    ) {
    }

    /// Whether the protocol registers memory.
    fn registers_memory(&self) -> bool {
        false
    }
}

/// Files and block devices.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// The registered memory of the guest, if there is to be any.
    pub(crate) registered: Option<RegisteredMemory>,
}

impl Protocol for Files {
    type Submission = squeue::Entry;
    type Completion = cqueue::Entry;
    const OPERATIONS: &[u8] = &[
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::ReadFixed::CODE,
        opcode::WriteFixed::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        // The last, for a kernel that does not know it (before 5.19) has no restriction for it either.
        opcode::UringCmd16::CODE,
    ];

    #[inline]
    fn entry(&mut self, index: u32, call: &Call) -> squeue::Entry {
        let buffer = self.registered.as_mut().and_then(|registered| registered.holding(call));
        call.entry(buffer).user_data(u64::from(index))
    }

    #[inline]
    fn result(result: i32, _asked: u32) -> i32 {
        result
    }

    #[inline]
    fn refresh(&mut self, ring: &Ring, polled: Option<&Ring>) {
        if let Some(registered) = &mut self.registered {
            registered.refresh(ring, polled);
        }
    }

    fn registers_memory(&self) -> bool {
        self.registered.is_some()
    }
}
