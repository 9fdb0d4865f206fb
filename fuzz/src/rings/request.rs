//! A request as an honest driver makes it: whole buffers in any cut, of which the device may yet refuse what they say.
use crate::{disk, input::Input};
use pollux_testing::blk::{Cut, DISCARD, FLUSH, GET_ID, IN, OUT, WRITE_ZEROES, pattern, range};

/// Requests that the driver can have in flight.
pub(super) const DEPTH: usize = 16;
/// Longest data, in sectors.
const SECTORS_MAX: usize = 24;

pub(super) struct Request {
    pub(super) kind: u32,
    pub(super) sector: u64,
    /// What follows the header.
    pub(super) out: Vec<u8>,
    /// Bytes to be read, without the status.
    pub(super) into: u32,
}

impl Request {
    pub(super) fn new(input: &mut Input<'_>) -> Self {
        // Beyond the end of the disk as well.
        let mut sector = input.below(disk::BYTES / 512 + 8) as u64;
        let sectors = input.below(SECTORS_MAX);
        let kind = input.choose(&[IN, OUT, IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES]);
        let (mut out, mut into) = match kind {
            IN => (vec![], 512 * sectors as u32),
            OUT => (pattern(sector ^ u64::from(input.byte()) << 8, 512 * sectors), 0),
            GET_ID => (vec![], 20),
            DISCARD | WRITE_ZEROES => (range(sector, sectors as u32, input.choose(&[0, 0, 0, 1, 2])), 0),
            _ => (vec![], 0),
        };
        let mut request_kind = kind;
        match input.byte() {
            // Lengths that are none, data in the wrong direction, places and types that there are not.
            0xff => into += u32::from(input.byte()),
            0xfe => out.extend_from_slice(input.bytes(32)),
            0xfd => sector = input.long(),
            0xfc => request_kind = input.word(),
            _ => {}
        }
        Request { kind: request_kind, sector, out, into }
    }

    /// The buffers that the request lies in.
    pub(super) fn cut(&self, input: &mut Input<'_>) -> Cut {
        Cut {
            readable: pieces(16 + self.out.len() as u32, input),
            writable: pieces(self.into + 1, input),
            indirect: input.flag(),
        }
    }
}

/// Cuts `length` into at most four pieces, some of which may be empty.
fn pieces(length: u32, input: &mut Input<'_>) -> Vec<u32> {
    let mut pieces = Vec::new();
    let mut rest = length;
    for _ in 0..input.below(4) {
        let piece = u32::from(input.half()) % (rest + 1);
        pieces.push(piece);
        rest -= piece;
    }
    pieces.push(rest);
    pieces
}
