//! The initial RAM disk in guest memory.
use super::kernel::{Error, KernelSpec};
use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    path::Path,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Initrd {
    pub(super) address: u64,
    pub(super) bytes: u64,
}

/// Puts the initrd, if there is one, at the end of low memory but below `end_max`. `kernel_end` is the first
/// address that the kernel does not need for itself.
pub(super) fn load_initrd(
    memory: &GuestMemoryMmap<()>,
    kernel: &KernelSpec,
    kernel_end: u64,
    end_max: u64,
) -> Result<Option<Initrd>, Error> {
    let Some(path) = &kernel.initrd else {
        return Ok(None);
    };
    let (mut file, bytes) =
        open_initrd(path).map_err(|source| Error::Read { what: "initrd", path: path.clone(), source })?;
    let available = low_memory_end(memory).min(end_max);
    let address = available.saturating_sub(bytes) & !0xfff;
    if address < kernel_end {
        return Err(Error::TooLittleMemory {
            what: "initrd",
            path: path.clone(),
            needed: kernel_end.saturating_add(bytes),
            available,
        });
    }
    let result = memory.read_exact_volatile_from(GuestAddress(address), &mut file, bytes as usize);
    result.map_err(|error| Error::Read { what: "initrd", path: path.clone(), source: io::Error::other(error) })?;
    Ok(Some(Initrd { address, bytes }))
}

fn open_initrd(path: &Path) -> io::Result<(File, u64)> {
    let mut file = File::open(path)?;
    let bytes = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    Ok((file, bytes))
}

/// The first address behind the memory that starts at 0.
pub(super) fn low_memory_end(memory: &GuestMemoryMmap<()>) -> u64 {
    memory.find_region(GuestAddress(0)).map_or(0, |region| region.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_initrd_ends_below_the_end_of_memory() {
        let mut file = tempfile::NamedTempFile::new().expect("made");
        file.write_all(&[0x5a; 5000]).expect("written");
        let kernel =
            KernelSpec { image: "/nowhere".into(), initrd: Some(file.path().to_owned()), command_line: String::new() };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).expect("memory");
        let initrd = load_initrd(&memory, &kernel, 1 << 20, u64::MAX).expect("loaded").expect("no error");
        assert_eq!((initrd.address % 4096, initrd.bytes), (0, 5000));
        assert!(initrd.address + initrd.bytes <= 16 << 20);
        let last: u8 = memory.read_obj(GuestAddress(initrd.address + 4999)).expect("in memory");
        assert_eq!(last, 0x5a);
        let error = load_initrd(&memory, &kernel, (16 << 20) - 4096, u64::MAX).expect_err("it fails");
        assert!(error.to_string().contains("give it more memory"), "{error}");
    }
}
