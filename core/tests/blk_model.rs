//! Random legal request streams, in random cuts and batches, leave the disk as a model in memory says, and read what
//! it says, also through layers.
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{Cut, DISCARD, FLUSH, IN, OK, OUT, WRITE_ZEROES, pattern, range, wait_for},
    disk::{self, Behaviour},
    rig::Rig,
};
use proptest::prelude::*;

const SECTORS: u64 = 512;

#[derive(Clone, Debug)]
enum Request {
    Read { sector: u64, sectors: u64, cut: u64 },
    Write { sector: u64, sectors: u64, seed: u64, cut: u64 },
    Zero { kind: u32, sector: u64, sectors: u64 },
    Flush,
}

fn request() -> impl Strategy<Value = Request> {
    let place = (0..SECTORS).prop_flat_map(|sector| (Just(sector), 1..=(SECTORS - sector).min(32)));
    prop_oneof![
        4 => (place.clone(), any::<u64>()).prop_map(|((sector, sectors), cut)| Request::Read { sector, sectors, cut }),
        4 => (place.clone(), any::<u64>(), any::<u64>())
            .prop_map(|((sector, sectors), seed, cut)| Request::Write { sector, sectors, seed, cut }),
        1 => (place, any::<bool>()).prop_map(|((sector, sectors), zeroes)| Request::Zero {
            kind: if zeroes { WRITE_ZEROES } else { DISCARD },
            sector,
            sectors
        }),
        1 => Just(Request::Flush),
    ]
}

/// Cuts `total` bytes into up to five pieces chosen by `seed`.
fn pieces(total: u32, seed: u64) -> Vec<u32> {
    let mut left = total;
    let mut lengths = Vec::new();
    for bits in (0..seed % 5).map(|index| (seed >> (8 + 10 * index)) as u32 & 0x3ff) {
        let piece = (left * (bits + 1) / 1025).min(left);
        lengths.push(piece);
        left -= piece;
    }
    lengths.push(left);
    lengths
}

fn cut(readable: u32, writable: u32, seed: u64) -> Cut {
    Cut { readable: pieces(readable, seed), writable: pieces(writable, seed >> 3), indirect: seed & 4 != 0 }
}

fn run(kind: RingKind, batches: Vec<Vec<Request>>, behaviour: Behaviour, event_idx: bool, layers: usize) {
    let disk = disk::open("model", SECTORS * 512, behaviour).expect("disk");
    let mut rig = Rig::new(kind, disk::behind(layers, disk), 128, event_idx);
    let mut model = vec![0u8; (SECTORS * 512) as usize];
    for batch in batches {
        let mut expected = Vec::new();
        for request in &batch {
            let bytes = |sector: u64, sectors: u64| (sector * 512) as usize..((sector + sectors) * 512) as usize;
            let (head, data) = match *request {
                Request::Read { sector, sectors, cut: seed } => {
                    let range = bytes(sector, sectors);
                    let head = rig.driver.add(IN, sector, &[], &cut(16, range.len() as u32 + 1, seed));
                    (head, model[range].to_vec())
                }
                Request::Write { sector, sectors, seed, cut: shape } => {
                    let range = bytes(sector, sectors);
                    let data = pattern(seed, range.len());
                    let head = rig.driver.add(OUT, sector, &data, &cut(16 + data.len() as u32, 1, shape));
                    if head.is_some() {
                        model[range].copy_from_slice(&data);
                    }
                    (head, vec![])
                }
                Request::Zero { kind, sector, sectors } => {
                    let head = rig.driver.add(kind, 0, &self::range(sector, sectors as u32, 0), &Cut::plain(16, 0));
                    if head.is_some() {
                        model[bytes(sector, sectors)].fill(0);
                    }
                    (head, vec![])
                }
                Request::Flush => (rig.driver.add(FLUSH, 0, &[], &Cut::plain(0, 0)), vec![]),
            };
            // `None`: the ring is full, the request was not made.
            expected.extend(head.map(|head| (head, data)));
        }
        rig.driver.ring.publish();
        for _ in 0..expected.len() {
            let finished = wait_for("a request", || {
                rig.queue.poll();
                rig.driver.pop()
            });
            let index = expected.iter().position(|(head, _)| *head == finished.head).expect("a request of this batch");
            let (_, data) = expected.swap_remove(index);
            assert_eq!(finished.status, OK);
            assert!(finished.data == data, "the data read is the model's");
        }
    }
    assert!(!rig.interrupts.has_failed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streams_leave_the_disk_as_the_model_says(
        batches in prop::collection::vec(prop::collection::vec(request(), 1..40), 1..8),
        // Those that do requests in order, since requests of a batch may overlap.
        behaviour in prop::sample::select(vec![Behaviour::Inline, Behaviour::Deferred, Behaviour::Slow]),
        event_idx in any::<bool>(),
        layers in 0usize..3,
        kind in prop::sample::select(&RingKind::BOTH[..]),
    ) {
        run(kind, batches, behaviour, event_idx, layers);
    }
}
