//! Our ring and the one of the `virtio-queue` crate, given the same driver, see the same chains, write the same used
//! ring and want the same notifications.
use pollux_abi::block_v1::Segment;
use pollux_core::{
    memory::{GuestMemory, Translator},
    ring::{Chain, Ring, SegmentList, SplitRing},
};
use pollux_driver::{Buffer, SplitDriver};
use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const SIZE: u16 = 16;
const DATA: u64 = 0x10000;
const TABLES: u64 = 0x80000;
const MEMORY: u64 = 0x100000;

/// What the driver or the device does next.
#[derive(Clone, Debug)]
enum Step {
    /// The driver adds a chain of buffers with these offsets and lengths, so many of them readable.
    Add { buffers: Vec<(u16, u16)>, readable: usize, indirect: bool },
    /// The driver shows what it has added.
    Publish,
    /// The device takes up to so many.
    Pop(usize),
    /// The device gives one of those it has back.
    Complete(usize, u32),
    /// The device asks whether to signal.
    Signal,
    /// The driver reaps, and asks for the next interrupt or for none.
    Reap(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let buffers = prop::collection::vec((any::<u16>(), 1..=u16::MAX), 1..7);
    prop_oneof![
        4 => (buffers, 0usize..7, any::<bool>()).prop_map(|(buffers, readable, indirect)| Step::Add {
            readable: readable.min(buffers.len()),
            buffers,
            indirect
        }),
        3 => Just(Step::Publish),
        3 => (1usize..20).prop_map(Step::Pop),
        4 => (any::<usize>(), any::<u32>()).prop_map(|(which, written)| Step::Complete(which, written)),
        2 => Just(Step::Signal),
        1 => any::<bool>().prop_map(Step::Reap),
    ]
}

/// One of the two worlds: memory and driver.
struct World {
    memory: GuestMemory,
    driver: SplitDriver,
}

impl World {
    fn new() -> Self {
        let memory = GuestMemory::create(&[(0, MEMORY)], None).expect("guest memory");
        let mut driver = SplitDriver::new(&memory, 0, SIZE, true);
        driver.want_interrupts(true);
        World { memory, driver }
    }

    fn used_ring(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4 + 8 * usize::from(SIZE)];
        let address = GuestAddress(self.driver.config().device_area);
        self.memory.map().read_slice(&mut bytes, address).expect("guest memory");
        // The flags and avail_event are each implementation's own way of staying silent.
        bytes.drain(..2);
        bytes
    }
}

type Buffers = Vec<(u64, u32, bool)>;

/// Our ring, in the oracle's terms.
struct Ours {
    ring: SplitRing,
    data: Translator,
    base: u64,
}

impl Ours {
    fn pop(&mut self, count: usize) -> Vec<(u16, Buffers)> {
        let mut heads = vec![0; count];
        let popped = self.ring.pop(&mut heads).expect("a legal ring");
        heads[..popped].iter().map(|&head| (head, self.walk(head))).collect()
    }

    fn walk(&mut self, head: u16) -> Buffers {
        let empty = Segment { base: std::ptr::null_mut(), length: 0 };
        let (mut inline, mut overflow) = ([empty; 3], [empty; 64]);
        let mut list = SegmentList::new(&mut inline, &mut overflow);
        let Chain { readable, writable, .. } = self.ring.walk(head, &mut self.data, &mut list).expect("a legal chain");
        let segments = list.into_slice();
        assert_eq!((readable + writable) as usize, segments.len());
        let buffer = |(index, segment): (usize, &Segment)| {
            (segment.base as u64 - self.base, segment.length as u32, index >= readable as usize)
        };
        segments.iter().enumerate().map(buffer).collect()
    }
}

fn oracle_pop(queue: &mut Queue, memory: &GuestMemory, count: usize) -> Vec<(u16, Buffers)> {
    let chains: Vec<_> = queue.iter(&**memory.map()).expect("a legal ring").take(count).collect();
    let buffers = |chain: virtio_queue::DescriptorChain<_>| -> (u16, Buffers) {
        let head = chain.head_index();
        (head, chain.map(|buffer| (buffer.addr().0, buffer.len(), buffer.is_write_only())).collect())
    };
    chains.into_iter().map(buffers).collect()
}

fn run(steps: Vec<Step>) {
    let (mut a, mut b) = (World::new(), World::new());
    let config = a.driver.config();
    let base = a.memory.map().get_host_address(GuestAddress(0)).expect("guest memory") as u64;
    let ring = SplitRing::new(&config, a.memory.translator(), true).expect("a ring");
    let mut ours = Ours { ring, data: a.memory.translator(), base };
    let mut oracle = Queue::new(SIZE).expect("a queue");
    oracle.set_size(SIZE);
    oracle.set_desc_table_address(Some(config.descriptors as u32), Some(0));
    oracle.set_avail_ring_address(Some(config.driver_area as u32), Some(0));
    oracle.set_used_ring_address(Some(config.device_area as u32), Some(0));
    oracle.set_event_idx(true);
    oracle.set_ready(true);
    assert!(oracle.is_valid(&**b.memory.map()));
    let mut held = Vec::new();
    let mut tables = 0;
    for step in steps {
        match step {
            Step::Add { buffers, readable, indirect } => {
                let describe = |(index, &(offset, length)): (usize, &(u16, u16))| Buffer {
                    address: DATA + u64::from(offset),
                    length: length.into(),
                    writable: index >= readable,
                };
                let buffers: Vec<Buffer> = buffers.iter().enumerate().map(describe).collect();
                // Each chain's table stays until the chain is done: there are at most 16.
                let table = TABLES + tables % 32 * 256;
                tables += 1;
                let added = [&mut a, &mut b].map(|world| {
                    if indirect { world.driver.add_indirect(&buffers, table) } else { world.driver.add(&buffers) }
                });
                assert_eq!(added[0], added[1]);
            }
            Step::Publish => {
                a.driver.publish();
                b.driver.publish();
            }
            Step::Pop(count) => {
                let popped = ours.pop(count);
                assert_eq!(popped, oracle_pop(&mut oracle, &b.memory, count));
                held.extend(popped.into_iter().map(|(head, _)| head));
            }
            Step::Complete(which, written) if !held.is_empty() => {
                let head = held.swap_remove(which % held.len());
                ours.ring.push_used(head, written);
                oracle.add_used(&**b.memory.map(), head, written).expect("a legal used ring");
            }
            Step::Complete(..) => {}
            Step::Signal => {
                ours.ring.publish();
                assert_eq!(
                    ours.ring.needs_signal(),
                    oracle.needs_notification(&**b.memory.map()).expect("a legal ring")
                );
            }
            Step::Reap(interrupts) => {
                ours.ring.publish();
                for world in [&mut a, &mut b] {
                    while world.driver.pop_used().is_some() {}
                    world.driver.want_interrupts(interrupts);
                }
            }
        }
        ours.ring.publish();
        assert_eq!(a.used_ring(), b.used_ring());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn legal_drivers_are_served_alike(steps in prop::collection::vec(step(), 1..150)) {
        run(steps);
    }

    #[test]
    fn any_bytes_in_the_ring_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 16 * 16 + 6 + 32),
        index in any::<u16>(),
    ) {
        let mut world = World::new();
        let config = world.driver.config();
        let mut ring = SplitRing::new(&config, world.memory.translator(), true).expect("a ring");
        world.memory.map().write_slice(&bytes, GuestAddress(config.descriptors)).expect("guest memory");
        world.driver.set_available_index(index);
        let mut heads = [0; 64];
        let mut data = world.memory.translator();
        let empty = Segment { base: std::ptr::null_mut(), length: 0 };
        if let Ok(count) = ring.pop(&mut heads) {
            prop_assert!(count <= usize::from(SIZE));
            for &head in &heads[..count] {
                let (mut inline, mut overflow) = ([empty; 3], [empty; 16]);
                let mut list = SegmentList::new(&mut inline, &mut overflow);
                if let Ok(chain) = ring.walk(head, &mut data, &mut list) {
                    let segments = list.into_slice();
                    prop_assert_eq!((chain.readable + chain.writable) as usize, segments.len());
                    let base = world.memory.map().get_host_address(GuestAddress(0)).expect("guest memory") as u64;
                    for segment in segments.iter() {
                        let start = segment.base as u64;
                        prop_assert!(start >= base && start + segment.length as u64 <= base + MEMORY);
                    }
                }
            }
        }
    }
}
