//! Random requests, compared with a model of the disk.
use super::{DEADLINE, Memory, Queue, Random, request, transfer};
use pollux_abi::{
    block::{BlockInfo, Segment},
    block_v1::*,
};
use std::time::Instant;

/// What a model knows of one block.
#[derive(Clone, Copy, PartialEq)]
enum Content {
    /// Every byte of it has this value.
    Bytes(u8),
    /// It was discarded.
    Anything,
}

struct Pending {
    request: BlockRequest,
    memory: Memory,
    segments: Vec<Segment>,
    fill: u8,
}

/// Random requests, `depth` in flight, on the blocks `first..first + count`; every read is compared with a model.
pub(crate) fn check_against_model(
    queue: &mut Queue,
    info: &BlockInfo,
    first: u64,
    count: u64,
    depth: usize,
    seed: u64,
) {
    let block = u64::from(info.logical_block_size);
    let mut random = Random(seed);
    let mut model = vec![Content::Anything; count as usize];
    let mut pending: Vec<Pending> = Vec::new();
    let mut next_token = 1_u64;
    let (mut begun, mut ended) = (0, 0);
    const TOTAL: usize = 3000;
    let mut last = Instant::now();
    while ended < TOTAL {
        assert!(last.elapsed() < DEADLINE, "nothing ends any more after {ended} of {TOTAL} requests");
        let mut batch = Vec::new();
        while begun < TOTAL && pending.len() + batch.len() < depth && random.below(4) > 0 {
            let at = random.below(count);
            let longest = if random.below(8) == 0 { 300 } else { 16 };
            let blocks = (1 + random.below(longest)).min(count - at);
            let busy = |other: &Pending| {
                let other_at = other.request.offset / block - first;
                at < other_at + other.request.length / block && other_at < at + blocks
            };
            if pending.iter().chain(&batch).any(busy) {
                break;
            }
            let offset = (first + at) * block;
            let mut new = random_request(&mut random, info, offset, blocks * block);
            new.request.token = next_token;
            next_token += 1;
            begun += 1;
            batch.push(new);
        }
        let requests: Vec<BlockRequest> = batch.iter().map(|new| new.request).collect();
        assert_eq!(queue.submit(&requests), requests.len());
        pending.append(&mut batch);
        queue.poll();
        for completion in std::mem::take(&mut queue.done) {
            let place = pending.iter().position(|other| other.request.token == completion.token);
            let ending = pending.swap_remove(place.expect("a token in flight"));
            assert_eq!(completion.result, 0, "{:?}", ending.request);
            apply(&ending, &mut model, first, block);
            ended += 1;
            last = Instant::now();
        }
    }
    for (at, content) in model.iter().enumerate() {
        if let Content::Bytes(value) = content {
            let found = queue.read((first + at as u64) * block, block as usize);
            assert!(found.iter().all(|byte| byte == value), "block {at} in the end");
        }
    }
}

fn random_request(random: &mut Random, info: &BlockInfo, offset: u64, length: u64) -> Pending {
    let mut operation = match random.below(20) {
        0 => POLLUX_BLOCK_FLUSH,
        1 => POLLUX_BLOCK_DISCARD,
        2 | 3 => POLLUX_BLOCK_WRITE_ZEROES,
        4..=11 => POLLUX_BLOCK_WRITE,
        _ => POLLUX_BLOCK_READ,
    };
    if !info.offers(operation) {
        operation = POLLUX_BLOCK_READ;
    }
    let fill = 1 + random.below(255) as u8;
    let mut flags = 0;
    if random.below(8) == 0 && matches!(operation, POLLUX_BLOCK_WRITE | POLLUX_BLOCK_WRITE_ZEROES) {
        flags |= POLLUX_BLOCK_FUA;
    }
    if random.below(2) == 0 && operation == POLLUX_BLOCK_WRITE_ZEROES {
        flags |= POLLUX_BLOCK_UNMAP;
    }
    if !matches!(operation, POLLUX_BLOCK_READ | POLLUX_BLOCK_WRITE) {
        let length = if operation == POLLUX_BLOCK_FLUSH { 0 } else { length };
        let request = request(operation, offset, length, flags);
        return Pending { request, memory: Memory::new(0), segments: Vec::new(), fill };
    }
    let length = length as usize;
    let start = if random.below(4) == 0 { random.below(600) as usize } else { 0 };
    let mut memory = Memory::new(start + length);
    memory.bytes_mut().fill(if operation == POLLUX_BLOCK_WRITE { fill } else { 0 });
    let unit = if random.below(4) == 0 { 1 } else { 512 };
    let first = random.below((length / unit) as u64) as usize * unit;
    let segments = match random.below(2) {
        0 => memory.segments(start, 0, &[length]),
        _ => memory.segments(start, 0, &[first, length - first]),
    };
    let request = BlockRequest { flags, ..transfer(operation, offset, &segments) };
    Pending { request, memory, segments, fill }
}

/// What a completed request did to the model, or what it read.
fn apply(ended: &Pending, model: &mut [Content], first: u64, block: u64) {
    let at = (ended.request.offset / block - first) as usize;
    let blocks = at..at + (ended.request.length / block) as usize;
    match ended.request.operation {
        POLLUX_BLOCK_WRITE => model[blocks].fill(Content::Bytes(ended.fill)),
        POLLUX_BLOCK_WRITE_ZEROES => model[blocks].fill(Content::Bytes(0)),
        POLLUX_BLOCK_DISCARD => model[blocks].fill(Content::Anything),
        POLLUX_BLOCK_READ => {
            let base = ended.segments[0].base.addr() - ended.memory.base.addr();
            for (nth, content) in model[blocks].iter().enumerate() {
                let found = &ended.memory.bytes()[base + nth * block as usize..][..block as usize];
                if let Content::Bytes(value) = content {
                    assert!(found.iter().all(|byte| byte == value), "block {nth} of {:?}", ended.request);
                }
            }
        }
        _ => {}
    }
}
