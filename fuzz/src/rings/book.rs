//! What every request of an honest driver must come to, by a model of the disk that knows nothing of rings.
use super::request::Request;
use crate::disk;
use pollux_testing::{
    blk::{BlkDriver, DISCARD, FLUSH, Finished, GET_ID, IN, IOERR, OK, OUT, UNSUPP, WRITE_ZEROES},
    disk::Behaviour,
};
use vm_memory::{Bytes, GuestAddress};

/// What lies behind the buffers of each request.
const CANARY: [u8; 64] = [0xc3; 64];

/// What comes of a request by the model.
struct Entry {
    head: u16,
    status: u8,
    /// `None`: it is not known, as requests change places.
    data: Option<Vec<u8>>,
    /// Bytes of all that the device may write.
    writable: u32,
    /// Where the buffers begin, and those that the device may not write.
    address: u64,
    readable: Vec<u8>,
}

pub(super) struct Book {
    entries: Vec<Entry>,
    /// Number of the first entries that the device was shown.
    published: usize,
    disk: Vec<u8>,
    /// The backend does requests in their order, so that the model knows the data.
    is_in_order: bool,
    /// The backend does what it is asked for.
    succeeds: bool,
}

impl Book {
    pub(super) fn new(behaviour: Behaviour) -> Self {
        Book {
            entries: Vec::new(),
            published: 0,
            disk: vec![0; disk::BYTES],
            is_in_order: behaviour != Behaviour::Reversed,
            succeeds: behaviour != Behaviour::Failing,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Notes a request that was just made, and what must come of it.
    pub(super) fn add(&mut self, driver: &BlkDriver, head: u16, request: &Request) {
        let (status, data) = self.outcome(request);
        let (address, writable) = (driver.header_address(head), request.into + 1);
        let mut readable = vec![0; 16 + request.out.len()];
        let map = driver.memory().map();
        map.read_slice(&mut readable, GuestAddress(address)).expect("memory");
        let behind = address + readable.len() as u64 + u64::from(writable);
        map.write_slice(&CANARY, GuestAddress(behind)).expect("memory");
        let data = data.filter(|_| self.is_in_order && self.succeeds);
        self.entries.push(Entry { head, status, data, writable, address, readable });
    }

    /// The device was shown all requests. Returns whether there are new ones.
    pub(super) fn publish(&mut self) -> bool {
        std::mem::replace(&mut self.published, self.entries.len()) < self.entries.len()
    }

    /// The device's process was replaced: what was in flight is done once more, when later writes may have been done.
    pub(super) fn take_over(&mut self) {
        self.entries[..self.published].iter_mut().for_each(|entry| entry.data = None);
    }

    /// Takes up the next request that has ended, and compares. Returns whether there was one.
    pub(super) fn take(&mut self, driver: &mut BlkDriver) -> bool {
        let Some(Finished { head, status, written, data }) = driver.pop() else { return false };
        let at = self.entries[..self.published].iter().position(|entry| entry.head == head);
        let entry = self.entries.remove(at.expect("a request that the device was shown"));
        self.published -= 1;
        let is_expected = status == entry.status || status == IOERR && !self.succeeds;
        assert!(is_expected, "status {status} instead of {}", entry.status);
        assert!(written <= entry.writable, "{written} bytes written of {}", entry.writable);
        if status == OK {
            assert_eq!(written, entry.writable, "the length of data and status");
            assert!(entry.data.is_none_or(|expected| expected == data), "the data is the disk's");
        }
        let map = driver.memory().map();
        let mut readable = vec![0; entry.readable.len()];
        map.read_slice(&mut readable, GuestAddress(entry.address)).expect("memory");
        assert!(readable == entry.readable, "what the device may only read is unchanged");
        let mut canary = [0; CANARY.len()];
        let behind = entry.address + readable.len() as u64 + u64::from(entry.writable);
        map.read_slice(&mut canary, GuestAddress(behind)).expect("memory");
        assert!(canary == CANARY, "what lies behind the buffers is unchanged");
        true
    }

    /// Does the request (virtio 1.3, 5.2.6.2). Returns the status, and the data read.
    fn outcome(&mut self, request: &Request) -> (u8, Option<Vec<u8>>) {
        let Request { kind, sector, out, into } = request;
        match *kind {
            IN if out.is_empty() => match self.sectors(*sector, *into as usize) {
                Some(range) => (OK, Some(self.disk[range].to_vec())),
                None => (IOERR, None),
            },
            OUT if *into == 0 => match self.sectors(*sector, out.len()) {
                Some(range) => {
                    self.disk[range].copy_from_slice(out);
                    (OK, None)
                }
                None => (IOERR, None),
            },
            IN | OUT => (IOERR, None),
            FLUSH => (OK, None),
            GET_ID if out.is_empty() && *into > 0 => {
                let mut name = b"serial-of-this-disk-is-long"[..20].to_vec();
                name.truncate(*into as usize);
                // More room than that stays as it is.
                (OK, (*into as usize == name.len()).then_some(name))
            }
            GET_ID => (IOERR, None),
            DISCARD | WRITE_ZEROES if out.len() == 16 && *into == 0 => (self.zero(*kind, out), None),
            DISCARD | WRITE_ZEROES => (IOERR, None),
            _ => (UNSUPP, None),
        }
    }

    /// A discard, which reads as zeroes here, or write-zeroes.
    fn zero(&mut self, kind: u32, out: &[u8]) -> u8 {
        let word = |at: usize| u32::from_le_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]);
        let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
        let known_flags = u32::from(kind == WRITE_ZEROES);
        if word(12) & !known_flags != 0 {
            return UNSUPP;
        }
        match self.sectors(sector, 512 * word(8) as usize) {
            Some(range) => {
                self.disk[range].fill(0);
                OK
            }
            None => IOERR,
        }
    }

    /// The bytes of whole sectors on the disk.
    fn sectors(&self, sector: u64, length: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(sector.checked_mul(512)?).ok()?;
        let end = start.checked_add(length)?;
        (length.is_multiple_of(512) && end <= self.disk.len()).then_some(start..end)
    }
}
