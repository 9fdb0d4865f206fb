//! A disk that firmware boots from, both of the old kind (BIOS) and by UEFI: GRUB for either, a kernel and its initial
//! RAM disk.
//!
//! The first sectors are GRUB's boot sector and its core image, which a BIOS starts. Behind them is a partition with a
//! FAT file system, in which UEFI finds `EFI/BOOT/BOOTX64.EFI`, and both loaders the kernel. What follows it is free.
use crate::image::{blank, run_tool_well, text};
use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    ops::Range,
    path::Path,
};

/// GRUB's boot sector, which loads the core image from the sectors after it.
pub(crate) const BIOS_BOOT_SECTOR: &str = "/usr/lib/grub/i386-pc/boot.img";
/// The modules of GRUB for UEFI.
pub(crate) const EFI_MODULES: &str = "/usr/lib/grub/x86_64-efi/moddep.lst";
/// UEFI for QEMU, and what it keeps its variables in.
pub(crate) const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
pub(crate) const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Bytes before the partition: boot sector and core image.
const PARTITION_START: u64 = 1 << 20;
/// Where the partition ends. The rest of the disk is free.
pub(crate) const PARTITION_END: u64 = 40 << 20;
const DISK_BYTES: u64 = 48 << 20;
const SECTOR: u64 = 512;

/// What the loaders say when they begin to read the kernel, and what they are called there.
pub(crate) const LOADING: &str = "LOADING BY";

/// Makes the disk. Returns where the middle of the kernel is, which no loader can do without.
///
/// # Errors
/// A file cannot be written, or a tool failed: its words.
pub(crate) fn make(
    folder: &Path,
    kernel: &Path,
    initrd: &Path,
    command_line: &str,
    image: &Path,
) -> Result<Range<u64>, String> {
    blank(image, DISK_BYTES)?;
    let core = loader(folder, "i386-pc", "biosdisk", command_line)?;
    let efi = loader(folder, "x86_64-efi", "efi_gop", command_line)?;
    let core = read(Path::new(&core))?;
    if core.len() as u64 > PARTITION_START - SECTOR {
        return Err(format!("GRUB's core image of {} bytes does not fit before the partition", core.len()));
    }
    let write = |at: u64, bytes: &[u8]| {
        let mut file = File::options().write(true).open(image)?;
        file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes))
    };
    let boot_sector = boot_sector(&read(Path::new(BIOS_BOOT_SECTOR))?);
    write(0, &boot_sector).and_then(|()| write(SECTOR, &core)).map_err(|error| format!("{image:?}: {error}"))?;

    // mtools work on the file system within the image.
    let place = format!("{}@@{PARTITION_START}", text(image));
    let sectors = ((PARTITION_END - PARTITION_START) / SECTOR).to_string();
    run_tool_well(folder, "mformat", &["-i", &place, "-T", &sectors, "-h", "64", "-s", "32", "::"])?;
    run_tool_well(folder, "mmd", &["-i", &place, "::/EFI", "::/EFI/BOOT"])?;
    for (source, target) in
        [(text(kernel), "::/kernel"), (text(initrd), "::/initrd"), (&efi, "::/EFI/BOOT/BOOTX64.EFI")]
    {
        run_tool_well(folder, "mcopy", &["-i", &place, source, target])?;
    }
    middle_of(kernel, image)
}

/// GRUB with all that it needs and these orders in it. Returns its file.
fn loader(folder: &Path, format: &str, disk_module: &str, command_line: &str) -> Result<String, String> {
    let (orders, output) = (folder.join("grub.cfg"), folder.join(format!("grub-{format}")));
    let text_of_orders = format!(
        "serial --unit=0 --speed=115200\nterminal_output serial\nsearch --no-floppy --set=root --file /kernel\n\
         echo\necho {LOADING} {format}\nset gfxpayload=text\nlinux /kernel {command_line}\ninitrd /initrd\nboot\n"
    );
    fs::write(&orders, text_of_orders).map_err(|error| format!("{}: {error}", orders.display()))?;
    let modules = ["part_msdos", "fat", "search", "search_fs_file", "linux", "serial", "terminal", "echo", "boot"];
    let arguments = ["-O", format, "-p", "(hd0,msdos1)/", "-c", text(&orders), "-o", text(&output), disk_module];
    run_tool_well(folder, "grub-mkimage", &[&arguments[..], &modules].concat())?;
    Ok(text(&output).to_owned())
}

/// GRUB's boot sector with a table of partitions that has one entry.
fn boot_sector(code: &[u8]) -> [u8; SECTOR as usize] {
    const ACTIVE: u8 = 0x80;
    const EFI_SYSTEM_PARTITION: u8 = 0xef;
    // Cylinders, heads and sectors say nothing here: only block numbers count.
    const NO_GEOMETRY: [u8; 3] = [0xfe, 0xff, 0xff];
    let mut sector = [0; SECTOR as usize];
    sector[..440].copy_from_slice(&code[..440]);
    let mut entry = vec![ACTIVE];
    entry.extend(NO_GEOMETRY);
    entry.push(EFI_SYSTEM_PARTITION);
    entry.extend(NO_GEOMETRY);
    for bytes in [PARTITION_START, PARTITION_END - PARTITION_START] {
        entry.extend(((bytes / SECTOR) as u32).to_le_bytes());
    }
    sector[446..462].copy_from_slice(&entry);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Where the middle of a file lies on the disk: the file system is fresh, so all of the file is in one piece.
fn middle_of(file: &Path, image: &Path) -> Result<Range<u64>, String> {
    let (content, disk) = (read(file)?, read(image)?);
    let sector = SECTOR as usize;
    let middle = content.chunks_exact(sector).nth(content.len() / 2 / sector).ok_or("the kernel is empty")?;
    let number = disk.chunks_exact(sector).position(|other| other == middle);
    let at = number.ok_or_else(|| format!("{} is not in {}", file.display(), image.display()))? as u64 * SECTOR;
    Ok(at..at + SECTOR)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}
