//! Guests whose blocks are a part of what the medium takes at a time: nothing that they write undoes another write.
use super::*;
use crate::{
    testing::{DEADLINE, Memory, Random, check_against_model, check_segment_splits, request, transfer},
    tests::device::{LoopDevice, Mount},
    write_order::WriteOrder,
};
use pollux_abi::block_v1::*;
use std::{ops::Range, sync::Barrier};

const MIB: u64 = 1 << 20;
const SECTOR: usize = 512;
/// Sectors of a unit.
const SECTORS: usize = 8;
const UNIT: u64 = 4096;

/// The backend on a medium that takes direct I/O in units of so many bytes and no less.
struct Coarse<const UNIT: u32>(Uring);

impl<const UNIT: u32> Block for Coarse<UNIT> {
    type Options = Options;
    type Queue = crate::queue::UringQueue;

    fn open(options: Options, context: &OpenContext) -> Result<Self, Error> {
        let mut uring = Uring::open(options, context)?;
        let image = Arc::get_mut(&mut uring.image).expect("no queue is open");
        image.geometry.alignment.offset = UNIT;
        image.write_order = image.geometry.has_parts().then(WriteOrder::default);
        Ok(Coarse(uring))
    }
    fn info(&self) -> BlockInfo {
        self.0.info()
    }
    fn open_queue(&self, index: u32, depth: u32) -> Result<Self::Queue, Error> {
        self.0.open_queue(index, depth)
    }
    fn statistics(&self) -> String {
        self.0.statistics()
    }
}

/// A file on ext4 on a disk with sectors of 4096 bytes: its direct I/O takes nothing smaller.
fn on_large_sectors(size: u64) -> Option<(Mount, PathBuf)> {
    let mount = Mount::ext4_on(LoopDevice::new(64 * MIB, 4096)?)?;
    let path = mount.path().join("disk.img");
    File::create(&path).expect("created").set_len(size).expect("resized");
    Some((mount, path))
}

fn check<B: Block>(instance: &Instance<B>, sector: u32) {
    let info = instance.info();
    assert_eq!(info.logical_block_size, sector);
    check_segment_splits(&mut instance.queue(8), sector as usize);
    check_against_model(&mut instance.queue(64), &info, 0, info.capacity / u64::from(sector), 64, 71);
}

#[test]
fn a_file_has_blocks_of_512_bytes_wherever_it_lies() {
    let Some((_mount, path)) = on_large_sectors(8 * MIB) else { return };
    for engine in ["io_uring", "sync"] {
        let instance = Instance::<Uring>::open(&with_engine(&path, true, engine)).expect("it opens");
        let info = instance.info();
        assert_eq!((info.logical_block_size, info.physical_block_size), (512, 4096), "{}", instance.log());
        assert_eq!(info.capacity, 8 * MIB);
        // A write of one sector: here the kernel takes nothing that is not aligned.
        assert_eq!(instance.queue(4).write(3 * 512, &[9; 512]), 0);
        assert_eq!(instance.queue(4).read(3 * 512, 512), [9; 512]);
        check(&instance, 512);
    }
}

#[test]
fn units_of_other_sizes_are_served_too() {
    for engine in ["io_uring", "sync"] {
        let fixture = Fixture::new(8 * MIB);
        let options = with_engine(&fixture.path, true, engine);
        check(&Instance::<Coarse<1024>>::open(&options).expect("it opens"), 512);
        check(&Instance::<Coarse<65536>>::open(&options).expect("it opens"), 512);
        // Without the ways that the file system has of its own, zeroes are written.
        let fixture = Fixture::on_tmpfs(8 * MIB);
        check(&Instance::<Coarse<4096>>::open(&with_engine(&fixture.path, false, engine)).expect("it opens"), 512);
    }
}

#[test]
fn a_block_device_has_its_own_blocks_or_those_that_are_asked_for() {
    for (sector, asked, direct, engine) in [
        (512, None, true, "io_uring"),
        (4096, None, true, "io_uring"),
        (4096, Some(512), true, "io_uring"),
        (4096, Some(512), true, "sync"),
        (4096, Some(512), false, "io_uring"),
        (512, Some(4096), true, "io_uring"),
    ] {
        let Some(device) = LoopDevice::new(2 * MIB, sector) else { return };
        let block_size = asked.map_or(String::new(), |asked| format!(r#", "block_size": {asked}"#));
        let options = with_engine(&device.path, direct, engine).replace('}', &format!("{block_size}}}"));
        let instance = Instance::<Uring>::open(&options).expect("it opens");
        let info = instance.info();
        let block = asked.unwrap_or(sector);
        assert_eq!(info.logical_block_size, block, "{options}");
        assert!(info.physical_block_size >= sector.max(block), "{options}");
        check_against_model(&mut instance.queue(64), &info, 0, info.capacity / u64::from(block), 64, 71);
    }
}

#[test]
fn the_block_size_of_a_file_can_be_chosen() {
    let fixture = Fixture::new(8 * MIB + 512);
    let with = |size: &str| format!(r#"{{"path": {:?}, "block_size": {size}}}"#, fixture.path);
    let refusal = |size| Instance::<Uring>::open(&with(size)).err().expect("refused");
    assert!(refusal("4096").contains("whole number of its 4096-byte blocks: extend it with `truncate -s 8392704`"));
    assert!(refusal("8192").contains("block_size = 8192: write 512, 1024, 2048 or 4096"));
    assert!(refusal("1000").contains("power of two"));
    File::options().write(true).open(&fixture.path).expect("it opens").set_len(8 * MIB).expect("resized");
    for (text, size) in [("1024", 1024), (r#""4K""#, 4096)] {
        check(&Instance::<Uring>::open(&with(text)).expect("it opens"), size);
    }
}

#[test]
fn a_rest_at_the_end_is_read_and_makes_no_disk_that_is_written() {
    let Some((_mount, path)) = on_large_sectors(MIB + 512) else { return };
    std::fs::write(&path, vec![7; MIB as usize + 512]).expect("written");
    let message = Instance::<Uring>::open(&options(&path, true)).err().expect("refused");
    for words in ["1049088 bytes", "truncate -s 1052672", "direct = false"] {
        assert!(message.contains(words), "{message}");
    }
    let read_only = Instance::<Uring>::open_with(&options(&path, true), POLLUX_BLOCK_OPEN_READ_ONLY).expect("it opens");
    assert_eq!(read_only.info().capacity, MIB + 512);
    assert_eq!(read_only.queue(4).read(MIB - 512, 1024), [7; 1024]);
    drop(read_only);
    // A file that gets such an end while it is in use is offered up to the last whole unit.
    File::options().write(true).open(&path).expect("it opens").set_len(MIB).expect("resized");
    let instance = Instance::<Uring>::open(&options(&path, true)).expect("it opens");
    File::options().write(true).open(&path).expect("it opens").set_len(2 * MIB + 512).expect("resized");
    assert_eq!(instance.info().capacity, 2 * MIB);
    // A part of a unit that is not there any more is not made up from nothing.
    File::options().write(true).open(&path).expect("it opens").set_len(MIB).expect("resized");
    assert_eq!(instance.queue(4).write(3 * MIB / 2 + 512, &[1; 512]), -libc::EIO);
    assert_eq!(path.metadata().expect("metadata").len(), MIB);
}

/// What one of two queues does to a unit.
#[derive(Clone, Debug)]
struct Deed {
    operation: u32,
    flags: u32,
    sectors: Range<usize>,
    fill: u8,
}

impl Deed {
    fn random(random: &mut Random) -> Self {
        let fill = 1 + random.below(255) as u8;
        let first = random.below(SECTORS as u64) as usize;
        let sectors = match random.below(4) {
            0 => 0..SECTORS,
            1 => first..first + 1,
            _ => first..first + 1 + random.below((SECTORS - first) as u64) as usize,
        };
        match random.below(6) {
            0 => Deed { operation: POLLUX_BLOCK_WRITE_ZEROES, flags: 0, sectors, fill: 0 },
            1 => Deed { operation: POLLUX_BLOCK_WRITE_ZEROES, flags: POLLUX_BLOCK_UNMAP, sectors, fill: 0 },
            _ => Deed { operation: POLLUX_BLOCK_WRITE, flags: 0, sectors, fill },
        }
    }
}

const UNITS: usize = 16;

/// Does a deed to each unit, all at once.
fn do_all(queue: &mut Queue, deeds: &[Deed]) {
    let memories: Vec<_> = deeds.iter().map(|deed| Memory::holding(&vec![deed.fill; SECTORS * SECTOR])).collect();
    let length = |deed: &Deed| deed.sectors.len() * SECTOR;
    let segments: Vec<_> =
        deeds.iter().zip(&memories).map(|(deed, memory)| [memory.segment(0, length(deed))]).collect();
    let requests: Vec<_> = deeds
        .iter()
        .enumerate()
        .map(|(unit, deed)| {
            let offset = unit as u64 * UNIT + (deed.sectors.start * SECTOR) as u64;
            let request = match deed.operation {
                POLLUX_BLOCK_WRITE => transfer(POLLUX_BLOCK_WRITE, offset, &segments[unit]),
                operation => request(operation, offset, length(deed) as u64, deed.flags),
            };
            BlockRequest { token: unit as u64, ..request }
        })
        .collect();
    assert_eq!(queue.submit(&requests), requests.len());
    assert!(queue.wait(requests.len()).iter().all(|completion| completion.result == 0));
}

/// Two queues change the same units at the same time. What only one of them wrote is there, what neither did is as it
/// was.
fn check_races<B: Block>(instance: &Instance<B>, rounds: usize) {
    let barrier = Barrier::new(2);
    let mut random = Random(97);
    let deeds: Vec<[Vec<Deed>; 2]> =
        (0..rounds).map(|_| [0, 1].map(|_| (0..UNITS).map(|_| Deed::random(&mut random)).collect())).collect();
    std::thread::scope(|scope| {
        let mut other = instance.open_queue(1, 64).expect("a queue");
        let (deeds, barrier) = (&deeds, &barrier);
        scope.spawn(move || {
            other.start().expect("started");
            for round in deeds {
                barrier.wait();
                do_all(&mut other, &round[1]);
                barrier.wait();
            }
        });
        let mut queue = instance.queue(64);
        let mut before = vec![0; UNITS * SECTORS * SECTOR];
        assert_eq!(queue.write(0, &before), 0);
        for (nth, round) in deeds.iter().enumerate() {
            barrier.wait();
            do_all(&mut queue, &round[0]);
            barrier.wait();
            let after = queue.read(0, before.len());
            for sector in 0..UNITS * SECTORS {
                let both = [&round[0], &round[1]].map(|deeds| &deeds[sector / SECTORS]);
                let mut allowed: Vec<u8> = both
                    .iter()
                    .filter(|deed| deed.sectors.contains(&(sector % SECTORS)))
                    .map(|deed| deed.fill)
                    .collect();
                if allowed.is_empty() {
                    allowed.push(before[sector * SECTOR]);
                }
                let found = &after[sector * SECTOR..][..SECTOR];
                let is_right = allowed.iter().any(|fill| found.iter().all(|byte| byte == fill));
                // The other thread waits at the barrier for ever if this one panics.
                if !is_right {
                    eprintln!("round {nth}, sector {sector}: {}, allowed {allowed:?}, {both:?}", found[0]);
                    std::process::abort();
                }
            }
            before = after;
        }
    });
}

#[test]
fn requests_of_two_queues_never_undo_each_other() {
    for engine in ["io_uring", "sync"] {
        let fixture = Fixture::new(MIB);
        let options = with_engine(&fixture.path, true, engine);
        check_races(&Instance::<Coarse<4096>>::open(&options).expect("it opens"), 100);
        let Some((_mount, path)) = on_large_sectors(MIB) else { return };
        check_races(&Instance::<Uring>::open(&with_engine(&path, true, engine)).expect("it opens"), 100);
    }
}

#[test]
fn a_worker_that_sleeps_is_woken_when_its_turn_has_come() {
    let fixture = Fixture::new(MIB);
    let instance = Instance::<Coarse<4096>>::open(&fixture.options(true)).expect("it opens");
    // Both write all sectors of the same unit, one by one, and look only when they are woken.
    let write_all = |index| {
        let mut queue = instance.open_queue(index, 64).expect("a queue");
        move || {
            queue.start().expect("started");
            let memory = Memory::holding(&[5; 4096]);
            let segments: Vec<_> = (0..SECTORS).map(|nth| [memory.segment(nth * SECTOR, SECTOR)]).collect();
            for round in 0..50 {
                let write = |nth: usize| BlockRequest {
                    token: nth as u64,
                    ..transfer(POLLUX_BLOCK_WRITE, (nth * SECTOR) as u64, &segments[nth])
                };
                assert_eq!(queue.submit(&(0..SECTORS).map(write).collect::<Vec<_>>()), SECTORS);
                while queue.done.len() < SECTORS {
                    if !queue.arm(true) {
                        assert!(queue.sleep(DEADLINE), "round {round}: the wake-up was lost");
                    }
                    queue.arm(false);
                    queue.poll();
                }
                assert!(queue.done.drain(..).all(|completion| completion.result == 0));
            }
        }
    };
    let writers = [0, 1].map(write_all);
    std::thread::scope(|scope| writers.into_iter().for_each(|writer| _ = scope.spawn(writer)));
    assert_eq!(instance.queue(4).read(0, 4096), [5; 4096]);
}

#[test]
fn a_queue_that_is_given_up_leaves_its_units_to_others() {
    let fixture = Fixture::new(MIB);
    let instance = Instance::<Coarse<4096>>::open(&fixture.options(true)).expect("it opens");
    let mut survivor = instance.open_queue(1, 8).expect("a queue");
    survivor.start().expect("started");
    let memory = Memory::holding(&[6; 4096]);
    for round in 0..20 {
        let mut queue = instance.queue(64);
        let segments = [[memory.segment(0, 512)], [memory.segment(512, 4096 - 512)]];
        let writes =
            [0, 512, 0, 512, 0].map(|offset| transfer(POLLUX_BLOCK_WRITE, offset, &segments[(offset > 0) as usize]));
        assert_eq!(queue.submit(&writes), writes.len());
        assert_eq!(queue.stop(), 0);
        let fill = 100 + round;
        assert_eq!(survivor.write(1024, &[fill; 512]), 0);
        assert_eq!(survivor.write(0, &[fill; 4096]), 0);
        assert_eq!(survivor.read(0, 4096), [fill; 4096]);
    }
}
