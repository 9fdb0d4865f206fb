//! Records in blocks, and whether they come back: the sector a block was written for, how many times it had been
//! written, by which run, and a checksum.
use crate::workload::{SECTOR_BYTES, Span};
use serde::Serialize;
use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

/// First eight bytes of every sector written: `POLLUXDT`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"POLLUXDT");
const SECTOR_WORDS: usize = SECTOR_BYTES as usize / 8;
/// Words of a record: magic, sector, generation, run, checksum. What follows is filled from these.
const RECORD_WORDS: usize = 5;
const CHECKSUM: usize = 4;
/// Faults that are kept in full; all are counted.
const FAULTS_KEPT: usize = 16;

/// What is wrong with a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "found")]
pub enum Finding {
    /// No record: never written, or overwritten by someone else.
    NoRecord,
    /// A record whose checksum does not fit: part of it was lost or changed.
    Corrupt,
    /// The record of another sector.
    OtherSector {
        /// That sector.
        sector: u64,
    },
    /// A record of another run.
    OtherRun,
    /// A record of this sector, older or newer than it can be.
    Generation {
        /// Its generation.
        generation: u64,
    },
}

/// A sector that did not come back as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The sector of 512 bytes.
    pub sector: u64,
    /// The last generation that was acknowledged.
    pub expected: u64,
    /// The last generation that was sent; greater only if a write failed or was cut off.
    pub expected_up_to: u64,
    /// What was there.
    #[serde(flatten)]
    pub finding: Finding,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sector {}: ", self.sector)?;
        match (self.expected, self.expected_up_to) {
            (_, 0) => write!(formatter, "not written by this run")?,
            (from, to) if from == to => write!(formatter, "expected generation {to}")?,
            (from, to) => write!(formatter, "expected generation {from} to {to}")?,
        }
        match self.finding {
            Finding::NoRecord => write!(formatter, ", found no record"),
            Finding::Corrupt => write!(formatter, ", found a record with a wrong checksum"),
            Finding::OtherSector { sector } => write!(formatter, ", found the record of sector {sector}"),
            Finding::OtherRun => write!(formatter, ", found a record of another run"),
            Finding::Generation { generation } => write!(formatter, ", found generation {generation}"),
        }
    }
}

/// What is known of a block.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// Generation of the last write that succeeded; 0: none.
    settled: u32,
    /// Generation of the last write that was sent.
    sent: u32,
}

/// Remembers what was written to the blocks of one queue, and checks what is read.
#[derive(Debug)]
pub struct Verifier {
    run: u64,
    span: Span,
    sectors: u64,
    blocks: Vec<Block>,
    /// Blocks with a request in flight.
    busy: Vec<bool>,
    scratch: Vec<u64>,
    bytes: Vec<u8>,
    checked: u64,
    faults: Vec<Fault>,
    fault_count: u64,
}

impl Verifier {
    /// A verifier for the blocks of `span`, of which nothing is known yet. `run` tells its records from those of
    /// others.
    pub fn new(run: u64, span: Span, block_bytes: u32) -> Self {
        let count = span.count as usize;
        let words = block_bytes as usize / 8;
        Verifier {
            run,
            span,
            sectors: u64::from(block_bytes) / SECTOR_BYTES,
            blocks: vec![Block::default(); count],
            busy: vec![false; count],
            scratch: vec![0; words],
            bytes: vec![0; block_bytes as usize],
            checked: 0,
            faults: Vec::with_capacity(FAULTS_KEPT),
            fault_count: 0,
        }
    }

    /// A number that no other run has.
    pub fn new_run() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        mix(since.as_nanos() as u64 ^ u64::from(std::process::id()) << 40)
    }

    fn index(&self, block: u64) -> usize {
        (block - self.span.first) as usize
    }

    /// Whether a request for the block is in flight.
    #[inline]
    pub fn is_busy(&self, block: u64) -> bool {
        self.busy[self.index(block)]
    }

    /// A read of the block goes out.
    pub fn begin_read(&mut self, block: u64) {
        let index = self.index(block);
        self.busy[index] = true;
    }

    /// A write of the block goes out: the data to write.
    pub fn begin_write(&mut self, block: u64) -> &[u8] {
        let index = self.index(block);
        self.busy[index] = true;
        self.blocks[index].sent += 1;
        let generation = self.blocks[index].sent.into();
        for (number, sector) in self.scratch.chunks_exact_mut(SECTOR_WORDS).enumerate() {
            fill(sector, block * self.sectors + number as u64, generation, self.run);
        }
        for (bytes, word) in self.bytes.chunks_exact_mut(8).zip(&self.scratch) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        &self.bytes
    }

    /// A write came back. If it failed, the block may hold what was written before, or what was to be written.
    pub fn end_write(&mut self, block: u64, success: bool) {
        let index = self.index(block);
        self.busy[index] = false;
        if success {
            self.blocks[index].settled = self.blocks[index].sent;
        }
    }

    /// A read came back, with the data that `read` provides if it succeeded.
    pub fn end_read(&mut self, block: u64, read: Option<impl FnOnce(&mut [u8])>) {
        let index = self.index(block);
        self.busy[index] = false;
        let Some(read) = read else { return };
        read(&mut self.bytes);
        for (word, bytes) in self.scratch.iter_mut().zip(self.bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        self.checked += 1;
        let known = self.blocks[index];
        for number in 0..self.sectors {
            let sector = block * self.sectors + number;
            let words = &self.scratch[number as usize * SECTOR_WORDS..][..SECTOR_WORDS];
            if let Some(finding) = examine(words, sector, self.run, known) {
                self.fault_count += 1;
                if self.faults.len() < FAULTS_KEPT {
                    let (expected, expected_up_to) = (known.settled.into(), known.sent.into());
                    self.faults.push(Fault { sector, expected, expected_up_to, finding });
                }
            }
        }
    }

    /// The blocks that were written, for reading them back.
    pub fn written(&self) -> impl Iterator<Item = u64> + '_ {
        let written = self.blocks.iter().enumerate().filter(|(_, block)| block.sent > 0);
        written.map(|(index, _)| self.span.first + index as u64)
    }

    /// The next block from `block` on that was written and has no request in flight.
    pub(crate) fn next_written(&self, block: u64) -> Option<u64> {
        let start = self.index(block);
        let found =
            self.blocks[start..].iter().zip(&self.busy[start..]).position(|(block, busy)| block.sent > 0 && !busy);
        found.map(|offset| block + offset as u64)
    }

    /// Number of blocks checked.
    pub fn checked(&self) -> u64 {
        self.checked
    }

    /// The first faults.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Number of all faults.
    pub fn fault_count(&self) -> u64 {
        self.fault_count
    }
}

/// What is wrong with a sector, of whose block `known` is known.
fn examine(words: &[u64], sector: u64, run: u64, known: Block) -> Option<Finding> {
    if words[0] != MAGIC {
        return (known.settled > 0).then_some(Finding::NoRecord);
    }
    if words[CHECKSUM] != checksum(words) {
        // Whether a write of one sector can be cut in two is the device's affair; that it says success is ours.
        return Some(Finding::Corrupt);
    }
    if words[1] != sector {
        return Some(Finding::OtherSector { sector: words[1] });
    }
    if words[3] != run {
        return (known.settled > 0).then_some(Finding::OtherRun);
    }
    let possible = u64::from(known.settled)..=u64::from(known.sent);
    (!possible.contains(&words[2])).then_some(Finding::Generation { generation: words[2] })
}

/// Writes the record of a sector and fills the rest.
fn fill(words: &mut [u64], sector: u64, generation: u64, run: u64) {
    words[..CHECKSUM].copy_from_slice(&[MAGIC, sector, generation, run]);
    let mut state = mix(sector ^ mix(generation ^ run));
    for word in &mut words[RECORD_WORDS..] {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        *word = mix(state);
    }
    words[CHECKSUM] = checksum(words);
}

/// A checksum of all words but its own, which depends on their order.
fn checksum(words: &[u64]) -> u64 {
    let fold = |sum: u64, word: &u64| (sum ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29);
    words[..CHECKSUM].iter().chain(&words[RECORD_WORDS..]).fold(MAGIC, fold)
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014).
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { first: 8, count: 4 };

    fn verifier() -> Verifier {
        Verifier::new(7, SPAN, 1024)
    }

    fn write(verifier: &mut Verifier, block: u64, success: bool) -> Vec<u8> {
        let data = verifier.begin_write(block).to_vec();
        assert!(verifier.is_busy(block));
        verifier.end_write(block, success);
        assert!(!verifier.is_busy(block));
        data
    }

    fn read(verifier: &mut Verifier, block: u64, data: &[u8]) -> Vec<Finding> {
        let before = verifier.faults().len();
        verifier.begin_read(block);
        verifier.end_read(block, Some(|target: &mut [u8]| target.copy_from_slice(data)));
        verifier.faults()[before..].iter().map(|fault| fault.finding).collect()
    }

    #[test]
    fn what_was_written_is_taken_and_what_was_before_is_not() {
        let mut verifier = verifier();
        let first = write(&mut verifier, 9, true);
        assert_eq!(read(&mut verifier, 9, &first), []);
        let second = write(&mut verifier, 9, true);
        assert_eq!(read(&mut verifier, 9, &second), []);
        assert_eq!(read(&mut verifier, 9, &first), [Finding::Generation { generation: 1 }; 2]);
        let fault = verifier.faults()[1];
        assert_eq!(fault.to_string(), "sector 19: expected generation 2, found generation 1");
        assert_eq!((verifier.checked(), verifier.fault_count()), (3, 2));
    }

    #[test]
    fn a_failed_write_leaves_the_old_or_the_new_and_each_sector_may_choose() {
        let mut verifier = verifier();
        let old = write(&mut verifier, 8, true);
        let new = write(&mut verifier, 8, false);
        let torn = [&old[..512], &new[512..]].concat();
        for data in [&old, &new, &torn] {
            assert_eq!(read(&mut verifier, 8, data), []);
        }
        write(&mut verifier, 8, true);
        assert_eq!(read(&mut verifier, 8, &torn).len(), 2);
    }

    #[test]
    fn a_torn_block_that_was_acknowledged_is_a_fault() {
        let mut verifier = verifier();
        let old = write(&mut verifier, 8, true);
        let new = write(&mut verifier, 8, true);
        let torn = [&new[..512], &old[512..]].concat();
        assert_eq!(read(&mut verifier, 8, &torn), [Finding::Generation { generation: 1 }]);
        assert_eq!(verifier.faults()[0].sector, 17);
    }

    #[test]
    fn every_kind_of_damage_is_told_apart() {
        let mut verifier = verifier();
        let data = write(&mut verifier, 10, true);
        let elsewhere = write(&mut verifier, 11, true);
        let mut flipped = data.clone();
        flipped[1000] ^= 1;
        let foreign = Verifier::new(8, SPAN, 1024).begin_write(10).to_vec();
        assert_eq!(read(&mut verifier, 10, &[0; 1024]), [Finding::NoRecord; 2]);
        assert_eq!(read(&mut verifier, 10, &flipped), [Finding::Corrupt]);
        assert_eq!(read(&mut verifier, 10, &foreign), [Finding::OtherRun; 2]);
        let sectors = [Finding::OtherSector { sector: 22 }, Finding::OtherSector { sector: 23 }];
        assert_eq!(read(&mut verifier, 10, &elsewhere), sectors);
    }

    #[test]
    fn a_block_that_was_never_written_may_hold_anything_but_a_record_that_lies() {
        let mut verifier = verifier();
        let elsewhere = write(&mut verifier, 11, true);
        assert_eq!(read(&mut verifier, 8, &[0x55; 1024]), []);
        assert_eq!(read(&mut verifier, 8, &elsewhere).len(), 2, "a read that went astray");
        assert_eq!(verifier.written().collect::<Vec<_>>(), [11]);
    }

    #[test]
    fn every_single_bit_counts() {
        let mut sector = [0; SECTOR_WORDS];
        fill(&mut sector, 5, 6, 7);
        for bit in 0..4096 {
            let mut damaged = sector;
            damaged[bit / 64] ^= 1 << (bit % 64);
            let known = Block { settled: 6, sent: 6 };
            assert!(examine(&damaged, 5, 7, known).is_some(), "bit {bit}");
        }
        assert_eq!(examine(&sector, 5, 7, Block { settled: 6, sent: 6 }), None);
    }
}
