//! A block driver for tests: requests with data in any cut (virtio 1.3, 5.2.6).
use pollux_core::memory::GuestMemory;
use pollux_driver::{Buffer, RingDriver, RingKind, ring_bytes};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// `type` of a read.
pub const IN: u32 = 0;
/// `type` of a write.
pub const OUT: u32 = 1;
/// `type` of a flush.
pub const FLUSH: u32 = 4;
/// `type` of a question for the name.
pub const GET_ID: u32 = 8;
/// `type` of a discard.
pub const DISCARD: u32 = 11;
/// `type` of a write-zeroes.
pub const WRITE_ZEROES: u32 = 13;

/// Status of success.
pub const OK: u8 = 0;
/// Status of an error.
pub const IOERR: u8 = 1;
/// Status of a request that the device does not know.
pub const UNSUPP: u8 = 2;
/// What the driver puts into the status byte before.
pub const UNTOUCHED: u8 = 0xaa;

/// How long a test waits for a device before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A request's data: where it goes, and in which pieces.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    /// Lengths of the readable buffers, header first, together 16 bytes and the data to write.
    pub readable: Vec<u32>,
    /// Lengths of the writable buffers, status last, together the data to read and 1 byte.
    pub writable: Vec<u32>,
    /// Whether to describe the chain by an indirect table.
    pub indirect: bool,
}

impl Cut {
    /// Header, data and status in a buffer each, as most drivers do.
    pub fn plain(out: u32, into: u32) -> Self {
        let with = |length: u32| (length > 0).then_some(length);
        Cut {
            readable: std::iter::once(16).chain(with(out)).collect(),
            writable: with(into).into_iter().chain([1]).collect(),
            indirect: false,
        }
    }
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
struct Pending {
    area: usize,
    head: u16,
    length: u32,
}

/// A request's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The head of its chain.
    pub head: u16,
    /// The status byte.
    pub status: u8,
    /// Bytes that the device says it has written, from the start of the writable part.
    pub written: u32,
    /// The data read.
    pub data: Vec<u8>,
}

/// Bytes of guest memory for one request: header, data, status, table.
const AREA_BYTES: u64 = 1 << 20;
const TABLE_OFFSET: u64 = AREA_BYTES - 65536;

/// A block driver on one queue.
#[derive(Debug)]
pub struct BlkDriver {
    /// The ring, for tests that break it.
    pub ring: RingDriver,
    memory: GuestMemory,
    areas: u64,
    free: Vec<usize>,
    pending: Vec<Pending>,
}

impl BlkDriver {
    /// A driver with room for `depth` requests, whose memory starts at guest-physical `base`.
    pub fn new(kind: RingKind, memory: &GuestMemory, base: u64, size: u16, depth: usize, event_idx: bool) -> Self {
        let areas = (base + ring_bytes(kind, size)).next_multiple_of(4096);
        BlkDriver {
            ring: RingDriver::new(kind, memory, base, size, event_idx),
            memory: memory.clone(),
            areas,
            free: (0..depth).rev().collect(),
            pending: Vec::new(),
        }
    }

    /// Guest memory that a driver with this size and depth takes, whatever the kind of its ring.
    pub fn bytes(size: u16, depth: usize) -> u64 {
        let ring = RingKind::BOTH.map(|kind| ring_bytes(kind, size)).into_iter().max().unwrap_or(0);
        ring.next_multiple_of(4096) + depth as u64 * AREA_BYTES
    }

    /// Guest-physical address of the memory that requests are in: that of the next one, if none is in flight.
    pub fn area_address(&self) -> u64 {
        self.free.last().map_or(self.areas, |&index| self.area(index))
    }

    fn area(&self, index: usize) -> u64 {
        self.areas + index as u64 * AREA_BYTES
    }

    /// Builds a request and shows it to the device. Returns its head, and whether the device wants a kick.
    pub fn submit(&mut self, kind: u32, sector: u64, out: &[u8], cut: &Cut) -> Option<(u16, bool)> {
        let head = self.add(kind, sector, out, cut)?;
        Some((head, self.ring.publish()))
    }

    /// Builds a request without showing it to the device.
    pub fn add(&mut self, kind: u32, sector: u64, out: &[u8], cut: &Cut) -> Option<u16> {
        let area = *self.free.last()?;
        let base = self.area(area);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let readable: u32 = cut.readable.iter().sum();
        let writable: u32 = cut.writable.iter().sum();
        assert!(u64::from(readable + writable) < TABLE_OFFSET, "the request fits its area");
        self.write(base, &header);
        self.write(base + 16, out);
        self.fill(base + u64::from(readable), writable);
        let mut buffers = Vec::new();
        let mut at = base;
        for (length, writable) in
            cut.readable.iter().map(|&length| (length, false)).chain(cut.writable.iter().map(|&length| (length, true)))
        {
            buffers.push(Buffer { address: at, length, writable });
            at += u64::from(length);
        }
        let head = if cut.indirect {
            self.ring.add_indirect(&buffers, base + TABLE_OFFSET)?
        } else {
            self.ring.add(&buffers)?
        };
        self.free.pop();
        self.pending.push(Pending { area, head, length: writable });
        // The data read starts behind the readable part; remember where.
        self.write(base + TABLE_OFFSET - 4, &readable.to_le_bytes());
        Some(head)
    }

    /// The next finished request, in the order of the used ring.
    pub fn pop(&mut self) -> Option<Finished> {
        let (head, written) = self.ring.pop_used()?;
        let index = self.pending.iter().position(|pending| pending.head == head).expect("a request that is in flight");
        let Pending { area, length, .. } = self.pending.swap_remove(index);
        self.free.push(area);
        let base = self.area(area);
        let readable = u32::from_le_bytes(self.read(base + TABLE_OFFSET - 4, 4).try_into().expect("four bytes"));
        let mut data = self.read(base + u64::from(readable), length);
        let status = data.pop().unwrap_or(UNTOUCHED);
        Some(Finished { head, status, written, data })
    }

    /// Requests on their way.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// The status byte of a request that is not finished, to see whether the device has touched it.
    pub fn peek_status(&self, head: u16) -> u8 {
        let pending = self.pending.iter().find(|pending| pending.head == head).expect("a request that is in flight");
        let base = self.area(pending.area);
        let readable = u32::from_le_bytes(self.read(base + TABLE_OFFSET - 4, 4).try_into().expect("four bytes"));
        self.read(base + u64::from(readable + pending.length) - 1, 1)[0]
    }

    /// Guest-physical address of the header of a request in flight.
    pub fn header_address(&self, head: u16) -> u64 {
        let pending = self.pending.iter().find(|pending| pending.head == head).expect("a request that is in flight");
        self.area(pending.area)
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.map().write_slice(bytes, GuestAddress(address)).expect("guest memory");
    }

    fn fill(&self, address: u64, length: u32) {
        self.write(address, &vec![UNTOUCHED; length as usize]);
    }

    fn read(&self, address: u64, length: u32) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        self.memory.map().read_slice(&mut bytes, GuestAddress(address)).expect("guest memory");
        bytes
    }

    /// The memory that the driver works in.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}

/// Polls `step` until it answers, or fails the test after [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut step: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = step() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: nothing after {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// The bytes of the range of a discard or write-zeroes.
pub fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// A pattern that differs in every block and between seeds.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}
