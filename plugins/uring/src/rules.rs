//! What the medium lets a request do, and so how each begins.
use crate::{discard::DiscardMethod, end::NOTHING_LOST, image::Image, step::Step, write_order::Change};
use pollux_abi::block::{EIO, ENOTSUP, EROFS, Operation, Request};
use std::fs::File;

/// For [`Rules::checked_from`]: no request is checked.
const NEVER: u32 = u32::MAX;

/// A queue's own copy of what the hot path needs to know of the medium.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Bits that are zero in the address of a segment that direct I/O takes.
    pub(crate) address_mask: usize,
    /// Bits that are zero in its length, and in the offset and length of a transfer.
    pub(crate) length_mask: usize,
    /// Bits that are zero in the range of a discard, or of zeroes that are not written.
    allocation_mask: u64,
    /// Requests may be for parts of what direct I/O takes.
    pub(crate) orders_writes: bool,
    /// Most bytes of a transfer that the plugin makes up itself.
    pub(crate) longest_transfer: u32,
    /// There may be a quicker way to zeroes than to write them.
    has_write_zeroes: bool,
    read_only: bool,
    /// What must be durable is written, then synced: what the page cache lost is known by the sync alone.
    syncs_writes: bool,
    /// Requests beyond this byte fail.
    lost_from: u64,
    /// The length of the medium is looked at before it is changed.
    looks_at_end: bool,
    /// Operations of at least this number are checked before they begin, as some of them may fail at once.
    checked_from: u32,
    /// The same, at the beginning of each `submit`.
    first_checked: u32,
    discard: DiscardMethod,
}

impl Rules {
    /// Of a file through the page cache.
    #[cfg(test)]
    pub(crate) const NONE: Rules = Rules {
        address_mask: 0,
        length_mask: 0,
        allocation_mask: 0,
        orders_writes: false,
        longest_transfer: u32::MAX,
        has_write_zeroes: true,
        read_only: false,
        syncs_writes: true,
        lost_from: NOTHING_LOST,
        looks_at_end: false,
        checked_from: NEVER,
        first_checked: NEVER,
        discard: DiscardMethod::None,
    };

    pub(crate) fn of(image: &Image) -> Self {
        let mut rules = Rules {
            address_mask: image.geometry.alignment.memory as usize - 1,
            length_mask: image.geometry.alignment.offset as usize - 1,
            allocation_mask: u64::from(image.geometry.allocation_unit) - 1,
            orders_writes: image.write_order.is_some(),
            longest_transfer: if image.maximum_transfer > 0 { image.maximum_transfer } else { u32::MAX },
            has_write_zeroes: image.namespace.is_none_or(|namespace| namespace.has_write_zeroes),
            read_only: image.read_only,
            syncs_writes: !image.direct,
            lost_from: NOTHING_LOST,
            looks_at_end: image.looks_at_end,
            checked_from: NEVER,
            first_checked: NEVER,
            discard: image.discard,
        };
        rules.first_checked = rules.first_checked();
        rules
    }

    fn first_checked(&self) -> u32 {
        match () {
            () if self.read_only || self.lost_from != NOTHING_LOST => Operation::Read as u32,
            () if self.looks_at_end => Operation::Write as u32,
            () => NEVER,
        }
    }

    /// Takes over where the medium has turned out to end too early. Called at the beginning of each `submit`.
    #[inline(always)]
    pub(crate) fn refresh(&mut self, image: &Image) {
        let lost_from = image.end.lost_from();
        if lost_from != self.lost_from {
            self.lost_from = lost_from;
            self.first_checked = self.first_checked();
        }
        self.checked_from = self.first_checked;
    }

    /// How a request begins, or the result of one that ends at once. `file` is the queue's own open file.
    #[inline(always)]
    pub(crate) fn begin(&mut self, request: &Request, image: &Image, file: &File) -> Result<(Operation, Step), i32> {
        let Some(operation) = request.operation() else { return Err(-ENOTSUP) };
        if operation as u32 >= self.checked_from {
            self.check(operation, request, image, file)?;
        }
        if request.length() == 0 && operation != Operation::Flush {
            return Err(0);
        }
        let step = match operation {
            Operation::Write if self.syncs_writes && request.is_fua() => Step::TransferThenSync,
            Operation::Read | Operation::Write if self.is_aligned(request) => Step::Transfer,
            Operation::Read | Operation::Write => Step::Bounce,
            Operation::Flush => Step::Sync,
            Operation::Discard => match self.discard {
                DiscardMethod::None => return Err(-ENOTSUP),
                // Nothing has to happen to what is discarded.
                _ if self.discarded(request).1 == 0 => return Err(0),
                DiscardMethod::PunchHole => Step::PunchHole,
                DiscardMethod::Command => Step::DiscardCommand,
            },
            Operation::WriteZeroes if !self.has_write_zeroes => Step::WriteZeroes,
            Operation::WriteZeroes if self.is_part_of(request, self.allocation_mask) => self.zeroes_written(request),
            Operation::WriteZeroes if request.may_unmap() => Step::PunchHole,
            Operation::WriteZeroes => Step::ZeroRange,
        };
        Ok((operation, step))
    }

    /// What a request changes, in whole units, if it changes anything.
    pub(crate) fn change(&self, request: &Request, operation: Operation) -> Option<Change> {
        if !is_change(operation) {
            return None;
        }
        let (start, mask) = (request.offset(), self.length_mask as u64);
        let end = start + request.length();
        Some(Change { bytes: start & !mask..(end + mask) & !mask, is_part: (start | end) & mask != 0 })
    }

    fn is_part_of(&self, request: &Request, mask: u64) -> bool {
        (request.offset() | request.length()) & mask != 0
    }

    /// How the request's zeroes are written.
    pub(crate) fn zeroes_written(&self, request: &Request) -> Step {
        if self.is_part_of(request, self.length_mask as u64) { Step::Bounce } else { Step::WriteZeroes }
    }

    /// What the medium can discard of the request's range: offset and length.
    pub(crate) fn discarded(&self, request: &Request) -> (u64, u64) {
        let mask = self.allocation_mask;
        let (start, end) = (request.offset(), request.offset() + request.length());
        let start = (start + mask) & !mask;
        (start, (end & !mask).saturating_sub(start))
    }

    /// Whether a request must fail now. The first change of a `submit` looks where the medium ends; the others follow
    /// too soon for another look.
    #[inline(never)]
    fn check(&mut self, operation: Operation, request: &Request, image: &Image, file: &File) -> Result<(), i32> {
        if is_change(operation) {
            if self.read_only {
                return Err(-EROFS);
            }
            self.look(image, file);
        }
        if operation != Operation::Flush && request.offset().saturating_add(request.length()) > self.lost_from {
            return Err(-EIO);
        }
        Ok(())
    }

    /// Whether a change that has begun before must not go on: what it is for has been lost meanwhile.
    #[cold]
    pub(crate) fn must_end(&mut self, operation: Operation, request: &Request, image: &Image, file: &File) -> bool {
        is_change(operation) && self.check(operation, request, image, file).is_err()
    }

    fn look(&mut self, image: &Image, file: &File) {
        if !self.looks_at_end {
            return;
        }
        image.look_at_end(file);
        self.refresh(image);
        if self.lost_from == NOTHING_LOST {
            self.checked_from = NEVER;
        }
    }

    /// Whether direct I/O takes the request as it is.
    #[inline(always)]
    fn is_aligned(&self, request: &Request) -> bool {
        let (address_mask, length_mask) = (self.address_mask, self.length_mask);
        address_mask | length_mask == 0
            || request.offset() as usize & length_mask == 0
                && request
                    .segments()
                    .iter()
                    .all(|segment| segment.base.addr() & address_mask == 0 && segment.length & length_mask == 0)
    }
}

fn is_change(operation: Operation) -> bool {
    !matches!(operation, Operation::Read | Operation::Flush)
}
