//! NVMe namespaces through their generic devices (`/dev/ng0n1`): each request is one command that goes straight to the
//! driver's queue, past the block layer.
//!
//! Command sets and structures are those of the NVM Express Base and NVM Command Set specifications, revision 2.0; the
//! passthrough is that of linux/nvme_ioctl.h.
use crate::{
    call::{Call, Memory, Transfer},
    protocol::Protocol,
    ring::MEDIUM,
};
use io_uring::{cqueue, opcode, squeue};
use std::{fs::File, io, os::fd::AsRawFd};

const NVME_IOCTL_ID: libc::Ioctl = 0x4e40;
const NVME_IOCTL_ADMIN_CMD: libc::Ioctl = 0xc048_4e41_u32 as libc::Ioctl;
const NVME_URING_CMD_IO: u32 = 0xc048_4e80;
const NVME_URING_CMD_IO_VEC: u32 = 0xc048_4e81;

// Opcodes, and bits of their dwords (NVM Command Set, section 3.2).
const ADMIN_IDENTIFY: u8 = 0x06;
const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const WRITE_ZEROES: u8 = 0x08;
const DATASET_MANAGEMENT: u8 = 0x09;
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
const DEALLOCATE: u32 = 1 << 25;
const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;

/// Most blocks that one command's 16-bit count can name.
const MAXIMUM_BLOCKS: u64 = 65536;

/// `struct nvme_uring_cmd`; as `struct nvme_passthru_cmd` the last word is the result.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Command {
    opcode: u8,
    flags: u8,
    reserved1: u16,
    namespace: u32,
    dword2: u32,
    dword3: u32,
    metadata: u64,
    address: u64,
    metadata_length: u32,
    data_length: u32,
    dword10: u32,
    dword11: u32,
    dword12: u32,
    dword13: u32,
    dword14: u32,
    dword15: u32,
    timeout_ms: u32,
    reserved2: u32,
}

const _: () = assert!(size_of::<Command>() == 72);

/// What identifies a namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Namespace {
    pub(crate) id: u32,
    pub(crate) blocks: u64,
    /// Block size as a power of two.
    pub(crate) block_shift: u8,
    /// Bytes of metadata with each block.
    pub(crate) metadata: u16,
    pub(crate) has_discard: bool,
    pub(crate) has_write_zeroes: bool,
    /// Writes may be in a volatile cache.
    pub(crate) has_cache: bool,
    /// Most bytes of a transfer, as the controller says; 0 for no limit.
    pub(crate) maximum_transfer: u64,
}

impl Namespace {
    /// Asks the controller of a generic device.
    pub(crate) fn identify(file: &File) -> io::Result<Self> {
        // SAFETY: the request takes no argument.
        let id = unsafe { libc::ioctl(file.as_raw_fd(), NVME_IOCTL_ID) };
        let id = u32::try_from(id).map_err(|_| io::Error::last_os_error())?;
        let (namespace, controller) = (identify(file, id, 0)?, identify(file, 0, 1)?);
        let word = |data: &[u8], at: usize| u16::from_le_bytes([data[at], data[at + 1]]);
        let mut blocks = [0; 8];
        blocks.copy_from_slice(&namespace[..8]);
        // The format in use: four bits of the index, and two more above them.
        let format = usize::from(namespace[26] & 0xf | (namespace[26] >> 5 & 3) << 4);
        let format = 128 + format * 4;
        let optional = word(&controller, 520);
        let longest = controller[77];
        Ok(Namespace {
            id,
            blocks: u64::from_le_bytes(blocks),
            block_shift: namespace[format + 2],
            metadata: word(&namespace, format),
            has_discard: optional & 1 << 2 != 0,
            has_write_zeroes: optional & 1 << 3 != 0,
            has_cache: controller[525] & 1 != 0,
            // In units of the smallest page, which is 4096 bytes at the least.
            maximum_transfer: if longest == 0 { 0 } else { 4096 << longest.min(32) },
        })
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.blocks.saturating_mul(1_u64.checked_shl(self.block_shift.into()).unwrap_or(0))
    }

    /// Most bytes of a command.
    pub(crate) fn longest_command(&self) -> u64 {
        MAXIMUM_BLOCKS << self.block_shift
    }
}

fn identify(file: &File, namespace: u32, what: u32) -> io::Result<Vec<u8>> {
    let mut data = vec![0_u8; 4096];
    let mut command = Command {
        opcode: ADMIN_IDENTIFY,
        namespace,
        address: data.as_mut_ptr().expose_provenance() as u64,
        data_length: data.len() as u32,
        dword10: what,
        ..Command::default()
    };
    // SAFETY: the driver reads the command and writes its result, and no more than its length to the data.
    match unsafe { libc::ioctl(file.as_raw_fd(), NVME_IOCTL_ADMIN_CMD, &raw mut command) } {
        0 => Ok(data),
        status if status > 0 => Err(io::Error::other(format!("identify failed with NVMe status {status:#x}"))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Calls as NVMe commands.
#[derive(Debug)]
pub(crate) struct NvmeCommands {
    namespace: Namespace,
    /// For each slot the range of its discard, which the kernel reads when the command is submitted: context attributes
    /// and number of blocks, then the first block.
    ranges: Box<[[u64; 2]]>,
}

impl NvmeCommands {
    pub(crate) fn new(namespace: Namespace, depth: u32) -> Self {
        NvmeCommands { namespace, ranges: vec![[0; 2]; depth as usize].into() }
    }

    fn on_blocks(&self, opcode: u8, offset: u64, length: u64) -> Command {
        let first = offset >> self.namespace.block_shift;
        let blocks = length >> self.namespace.block_shift;
        Command {
            opcode,
            namespace: self.namespace.id,
            dword10: first as u32,
            dword11: (first >> 32) as u32,
            // One less than there are.
            dword12: (blocks as u32).wrapping_sub(1) & 0xffff,
            ..Command::default()
        }
    }

    fn transfer(&self, transfer: &Transfer) -> (u32, Command) {
        let opcode = if transfer.is_write { WRITE } else { READ };
        let mut command = self.on_blocks(opcode, transfer.offset, transfer.length.into());
        if transfer.is_durable {
            command.dword12 |= FORCE_UNIT_ACCESS;
        }
        match transfer.memory {
            Memory::Piece(base) => {
                command.address = base.expose_provenance() as u64;
                command.data_length = transfer.length;
                (NVME_URING_CMD_IO, command)
            }
            Memory::Segments(vector, count) => {
                command.address = vector.expose_provenance() as u64;
                command.data_length = count;
                (NVME_URING_CMD_IO_VEC, command)
            }
        }
    }

    fn discard(&mut self, index: u32, offset: u64, length: u64) -> Command {
        let (first, blocks) = (offset >> self.namespace.block_shift, length >> self.namespace.block_shift);
        let range = &mut self.ranges[index as usize];
        *range = [(blocks << 32).to_le(), first.to_le()];
        Command {
            opcode: DATASET_MANAGEMENT,
            namespace: self.namespace.id,
            address: range.as_ptr().expose_provenance() as u64,
            data_length: size_of_val(range) as u32,
            dword11: ATTRIBUTE_DEALLOCATE,
            ..Command::default()
        }
    }
}

impl Protocol for NvmeCommands {
    type Submission = squeue::Entry128;
    type Completion = cqueue::Entry32;
    const OPERATIONS: &[u8] = &[opcode::UringCmd80::CODE];

    #[inline]
    fn entry(&mut self, index: u32, call: &Call) -> squeue::Entry128 {
        let (operation, command) = match *call {
            Call::Transfer(ref transfer) => self.transfer(transfer),
            Call::Allocate { mode, offset, length } => {
                let mut command = self.on_blocks(WRITE_ZEROES, offset, length);
                if mode & libc::FALLOC_FL_PUNCH_HOLE != 0 {
                    command.dword12 |= DEALLOCATE;
                }
                (NVME_URING_CMD_IO, command)
            }
            Call::Discard { offset, length } => (NVME_URING_CMD_IO, self.discard(index, offset, length)),
            Call::Sync => {
                let namespace = self.namespace.id;
                (NVME_URING_CMD_IO, Command { opcode: FLUSH, namespace, ..Command::default() })
            }
        };
        let mut bytes = [0; 80];
        // SAFETY: the command is 72 bytes of plain numbers without padding, and there is room for 80.
        unsafe { bytes.as_mut_ptr().cast::<Command>().write_unaligned(command) };
        opcode::UringCmd80::new(MEDIUM, operation).cmd(bytes).build().user_data(u64::from(index))
    }

    /// A command moves all or nothing. Positive results are the controller's status (Base Specification, section
    /// 3.3.3.2.1).
    #[inline]
    fn result(result: i32, asked: u32) -> i32 {
        match result {
            0 => asked.min(i32::MAX as u32) as i32,
            ..0 => result,
            status => match status & 0x7ff {
                0x20 | 0x182 => -libc::EROFS,
                0x81 => -libc::ENOSPC,
                // Invalid opcode, or an invalid field: the next way is tried, where there is one.
                0x01 | 0x02 => -libc::EOPNOTSUPP,
                _ => -libc::EIO,
            },
        }
    }
}
