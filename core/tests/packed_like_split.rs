//! A device on a packed ring does what one on a split ring does: the same requests, in the same cuts and batches, end
//! in the same order with the same status, length and data; and in the order of the driver with IN_ORDER. And whatever
//! bytes are in a packed ring, the device stays within guest memory.
use pollux_abi::block_v1::Segment;
use pollux_core::{
    memory::GuestMemory,
    ring::{PackedRing, Ring, SegmentList},
};
use pollux_driver::{AVAILABLE, PackedDriver, RingKind};
use pollux_testing::{
    blk::{Cut, DISCARD, FLUSH, GET_ID, IN, OUT, WRITE_ZEROES, pattern, range, wait_for},
    disk::{self, Behaviour},
    rig::Rig,
};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// A request, good or bad: what a driver might ask for.
#[derive(Clone, Debug)]
struct Request {
    operation: u32,
    sector: u64,
    bytes: u32,
    seed: u64,
    readable: Vec<u32>,
    writable: Vec<u32>,
    indirect: bool,
}

fn request() -> impl Strategy<Value = Request> {
    let operation = prop::sample::select(vec![IN, OUT, IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 77]);
    let cuts = || prop::collection::vec(0u32..2000, 0..5);
    // Some beyond the end, some off the block.
    let bytes = prop_oneof![4 => (0u32..8).prop_map(|blocks| blocks * 512), 1 => 0u32..3000];
    (operation, 0u64..300, bytes, any::<u64>(), cuts(), cuts(), any::<bool>()).prop_map(
        |(operation, sector, bytes, seed, readable, writable, indirect)| Request {
            operation,
            sector,
            bytes,
            seed,
            readable,
            writable,
            indirect,
        },
    )
}

/// Cuts `total` bytes at these lengths.
fn pieces(total: u32, lengths: &[u32]) -> Vec<u32> {
    let mut left = total;
    let mut pieces: Vec<u32> = lengths
        .iter()
        .map(|&length| {
            let piece = length.min(left);
            left -= piece;
            piece
        })
        .collect();
    pieces.push(left);
    pieces
}

impl Request {
    fn add(&self, rig: &mut Rig) -> Option<u16> {
        let (out, into) = match self.operation {
            IN | 77 => (vec![], self.bytes),
            OUT => (pattern(self.seed, self.bytes as usize), 0),
            DISCARD | WRITE_ZEROES => (range(self.sector, self.bytes / 512, 0), 0),
            GET_ID => (vec![], 20),
            _ => (vec![], 0),
        };
        let cut = Cut {
            readable: pieces(16 + out.len() as u32, &self.readable),
            writable: pieces(into + 1, &self.writable),
            indirect: self.indirect,
        };
        rig.driver.add(self.operation, self.sector, &out, &cut)
    }
}

/// Ends of requests in the order in which they came back: number of the request, status, length and data.
type Ends = Vec<(usize, u8, u32, Vec<u8>)>;

fn run(kind: RingKind, in_order: bool, batches: &[Vec<Request>], behaviour: Behaviour) -> Ends {
    let disk = disk::open("alike", 256 * 512, behaviour).expect("disk");
    let new = if in_order { Rig::in_order } else { Rig::new };
    let mut rig = new(kind, disk, 256, true);
    let mut ends = Vec::new();
    let mut number = 0;
    for batch in batches {
        let mut pending = Vec::new();
        for request in batch {
            pending.extend(request.add(&mut rig).map(|head| (head, number)));
            number += 1;
        }
        rig.driver.ring.publish();
        for _ in 0..pending.len() {
            let finished = wait_for("a request", || {
                rig.queue.poll();
                rig.driver.pop()
            });
            let at = pending.iter().position(|(head, _)| *head == finished.head).expect("a request of this batch");
            ends.push((pending.swap_remove(at).1, finished.status, finished.written, finished.data));
        }
    }
    assert!(!rig.interrupts.has_failed());
    ends
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn requests_end_alike_on_both_rings(
        // At most 20 requests of 12 descriptors fit the ring, so both take all of them.
        batches in prop::collection::vec(prop::collection::vec(request(), 1..20), 1..12),
        behaviour in prop::sample::select(
            vec![Behaviour::Inline, Behaviour::Deferred, Behaviour::Slow, Behaviour::Reversed]
        ),
    ) {
        let mut ends = run(RingKind::Split, false, &batches, behaviour);
        prop_assert_eq!(&ends, &run(RingKind::Packed, false, &batches, behaviour));
        ends.sort_by_key(|(number, ..)| *number);
        for kind in RingKind::BOTH {
            prop_assert_eq!(&ends, &run(kind, true, &batches, behaviour), "in order");
        }
    }

    #[test]
    fn any_bytes_in_a_packed_ring_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 16 * 16 + 4),
        // Random flags are available one time in four: these lead further.
        available in any::<u16>(),
        small in any::<u16>(),
    ) {
        const MEMORY: u64 = 0x100000;
        let memory = GuestMemory::create(&[(0, MEMORY)], None).expect("guest memory");
        let driver = PackedDriver::new(&memory, 0, 16, true);
        let mut ring = PackedRing::new(&driver.config(), memory.translator(), true).expect("a ring");
        let mut bytes = bytes;
        for index in 0..16 {
            let descriptor = &mut bytes[16 * index..16 * index + 16];
            if available & 1 << index != 0 {
                let flags = u16::from_le_bytes([descriptor[14], descriptor[15]]) & 0x7fff | AVAILABLE;
                descriptor[14..].copy_from_slice(&flags.to_le_bytes());
                descriptor[12..14].copy_from_slice(&(index as u16).to_le_bytes());
            }
            if small & 1 << index != 0 {
                descriptor[2..8].fill(0);
                descriptor[10..12].fill(0);
            }
        }
        memory.map().write_slice(&bytes, GuestAddress(0)).expect("guest memory");
        let mut ids = [0; 64];
        let mut data = memory.translator();
        let base = memory.map().get_host_address(GuestAddress(0)).expect("guest memory") as u64;
        let empty = Segment { base: std::ptr::null_mut(), length: 0 };
        while let Ok(count @ 1..) = ring.pop(&mut ids) {
            prop_assert!(count <= 16);
            for &id in &ids[..count] {
                let (mut inline, mut overflow) = ([empty; 3], [empty; 16]);
                let mut list = SegmentList::new(&mut inline, &mut overflow);
                if let Ok(chain) = ring.walk(id, &mut data, &mut list) {
                    let segments = list.into_slice();
                    prop_assert_eq!((chain.readable + chain.writable) as usize, segments.len());
                    for segment in segments.iter() {
                        let start = segment.base as u64;
                        prop_assert!(start >= base && start + segment.length as u64 <= base + MEMORY);
                    }
                }
                ring.push_used(id, 1);
            }
            ring.publish();
            ring.needs_signal();
        }
    }
}
