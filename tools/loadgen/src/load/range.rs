//! Which blocks each queue works on, and whether the device can do what is asked for.
use crate::{
    frontend::{Error, Facts},
    workload::{Order, Span, Workload},
};
use std::path::Path;

/// Blocks that a verifier remembers at most: about 0.6 GB of memory.
const VERIFIED_MAX: u64 = 64 << 20;

/// The span of each queue.
pub(super) fn spans(
    workload: &Workload,
    path: &Path,
    facts: &Facts,
    queues: u64,
    depth: u16,
    verify: bool,
) -> Result<Vec<Span>, Error> {
    let owned = || path.to_owned();
    check(workload, path, facts)?;
    let block = u64::from(workload.block_bytes);
    let (offset, capacity) = (workload.offset, facts.capacity);
    let size = workload.size.unwrap_or(capacity.saturating_sub(offset));
    if offset.checked_add(size).is_none_or(|end| end > capacity) {
        return Err(Error::Range { path: owned(), offset, size, capacity });
    }
    let whole = Span { first: offset / block, count: size / block };
    if whole.count < queues {
        return Err(Error::Empty { path: owned(), capacity, offset, block: workload.block_bytes });
    }
    if verify && whole.count / queues < depth.into() {
        return Err(Error::TooFewBlocks { path: owned(), blocks: whole.count / queues, depth });
    }
    if verify && whole.count > VERIFIED_MAX {
        return Err(Error::TooManyBlocks { path: owned(), blocks: whole.count });
    }
    let own = verify || workload.order == Order::Sequential;
    Ok((0..queues).map(|queue| if own { whole.part(queue, queues) } else { whole }).collect())
}

fn check(workload: &Workload, path: &Path, facts: &Facts) -> Result<(), Error> {
    let path = path.to_owned();
    let block = workload.block_bytes;
    if block == 0 || !block.is_multiple_of(facts.block_bytes) {
        let (what, why) = ("a block size", "the device's logical block");
        return Err(Error::Alignment { path, what, bytes: block.into(), block: facts.block_bytes, why });
    }
    if !workload.offset.is_multiple_of(block.into()) {
        let (what, why) = ("an offset", "the block size");
        return Err(Error::Alignment { path, what, bytes: workload.offset, block, why });
    }
    if let Some(limit) = facts.size_max.filter(|limit| block > *limit) {
        return Err(Error::TooLong { path, limit });
    }
    if facts.read_only && workload.writes() {
        return Err(Error::ReadOnly { path });
    }
    if !facts.flush && workload.flush_every.is_some() && workload.writes() {
        return Err(Error::NoFlush { path });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts { capacity: 1 << 20, block_bytes: 4096, queues: 2, ..Facts::default() }
    }

    fn spans_of(workload: &Workload, facts: &Facts, verify: bool) -> Result<Vec<Span>, String> {
        spans(workload, Path::new("/s"), facts, 2, 32, verify).map_err(|error| error.to_string())
    }

    #[test]
    fn random_queues_share_the_range_and_the_others_divide_it() {
        let random = Workload { offset: 8192, ..Workload::default() };
        let whole = Span { first: 2, count: 254 };
        assert_eq!(spans_of(&random, &facts(), false), Ok(vec![whole; 2]));
        let halves = vec![Span { first: 2, count: 127 }, Span { first: 129, count: 127 }];
        assert_eq!(spans_of(&random, &facts(), true), Ok(halves.clone()));
        assert_eq!(spans_of(&Workload { order: Order::Sequential, ..random }, &facts(), false), Ok(halves));
    }

    #[test]
    fn what_the_device_cannot_do_is_refused_with_its_reason() {
        let plain = Workload::default();
        let cases = [
            (
                Workload { block_bytes: 512, ..plain.clone() },
                "a block size of 512 bytes is not a multiple of 4096 bytes",
            ),
            (Workload { offset: 512, ..plain.clone() }, "an offset of 512 bytes"),
            (Workload { size: Some(2 << 20), ..plain.clone() }, "ends beyond the device, which has 1048576 bytes"),
            (Workload { offset: 4096, size: Some(u64::MAX), ..plain.clone() }, "ends beyond the device"),
            (Workload { offset: 1 << 20, ..plain.clone() }, "no blocks in the range"),
            (Workload { read_share: 0, flush_every: Some(1), ..plain.clone() }, "takes no flushes"),
        ];
        for (workload, words) in cases {
            let message = spans_of(&workload, &facts(), false).expect_err(words);
            assert!(message.starts_with("/s: ") && message.contains(words), "{message}");
        }
        let read_only = Facts { read_only: true, ..facts() };
        assert!(spans_of(&plain, &read_only, false).is_ok());
        let writes = Workload { read_share: 99, ..plain.clone() };
        assert!(spans_of(&writes, &read_only, false).expect_err("writes").contains("read-only"));
        let short = Facts { size_max: Some(4096), ..facts() };
        let long = Workload { block_bytes: 8192, ..plain.clone() };
        assert!(spans_of(&long, &short, false).expect_err("long").contains("at most 4096 bytes"));
        let few = Workload { size: Some(40 * 4096), ..plain };
        assert!(spans_of(&few, &facts(), true).expect_err("few").contains("too few for a depth of 32"));
    }
}
