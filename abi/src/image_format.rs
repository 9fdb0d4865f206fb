//! Image formats that are not raw. Served as raw, such an image looks like a disk full of something else, and the first
//! write destroys it. A plugin that serves the bytes of a file as they are asks here first.
use crate::{block::OpenContext, error::Error, host::Level};
use std::{
    fs::{File, FileType},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::FileTypeExt,
    path::Path,
};

/// The option `format` of such a plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FormatChoice {
    /// Raw, unless the medium looks like something else.
    #[default]
    Auto,
    /// Raw, whatever it looks like.
    Raw,
}

/// A format, and the way from it to a raw image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageFormat {
    /// As in "is a QCOW2 image".
    name: &'static str,
    way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `qemu-img convert`, with this name of the format.
    Convert(&'static str),
    /// This program unpacks it.
    Unpack(&'static str),
}

/// Bytes of the beginning and of the end that are looked at: one sector, which a guest writes as a whole.
const SECTOR: usize = 512;

/// What the first sector has, and where in it.
const FIRST: [(usize, &[u8], ImageFormat); 17] = [
    (0, b"QFI\xfb", image("a QCOW2 image", "qcow2")),
    (0, b"QED\0", image("a QED image", "qed")),
    (0, b"KDMV", image("a VMDK image", "vmdk")),
    (0, b"COWD", image("a VMDK image", "vmdk")),
    (0, b"# Disk DescriptorFile", image("the descriptor of a VMDK image", "vmdk")),
    (0, b"vhdxfile", image("a VHDX image", "vhdx")),
    (0, b"conectix", image("a VHD image", "vpc")),
    (64, &[0x7f, 0x10, 0xda, 0xbe], image("a VDI image", "vdi")),
    (0, b"WithoutFreeSpace", image("a Parallels image", "parallels")),
    (0, b"WithouFreSpacExt", image("a Parallels image", "parallels")),
    (0, b"Bochs Virtual HD Image", image("a Bochs image", "bochs")),
    (0, b"\x1f\x8b\x08", packed("gzip", "gzip -dc")),
    (0, b"\xfd7zXZ\0", packed("xz", "xz -dc")),
    (0, b"\x28\xb5\x2f\xfd", packed("zstd", "zstd -dc")),
    (0, b"BZh", packed("bzip2", "bzip2 -dc")),
    (0, b"\x04\x22\x4d\x18", packed("lz4", "lz4 -dc")),
    (0, b"7z\xbc\xaf\x27\x1c", packed("7-Zip", "7z x -so")),
];

/// What the last sector begins with. A VHD image of fixed size is raw up to there.
const LAST: [(&[u8], ImageFormat); 2] =
    [(b"conectix", image("a VHD image", "vpc")), (b"koly", image("a DMG image", "dmg"))];

/// What follows `BZh` and a digit: a compressed block, or the end of none.
const BZIP2_BLOCKS: [&[u8]; 2] = [&[0x31, 0x41, 0x59, 0x26, 0x53, 0x59], &[0x17, 0x72, 0x45, 0x38, 0x50, 0x90]];

const fn image(name: &'static str, driver: &'static str) -> ImageFormat {
    ImageFormat { name, way: Way::Convert(driver) }
}

const fn packed(name: &'static str, command: &'static str) -> ImageFormat {
    ImageFormat { name, way: Way::Unpack(command) }
}

impl ImageFormat {
    /// The format of a medium with these sectors at its beginning and at its end; `None`: nothing but raw.
    pub fn of(first: &[u8], last: &[u8]) -> Option<Self> {
        let begins = |(at, magic, _): &&(usize, &[u8], ImageFormat)| {
            first.get(*at..).is_some_and(|rest| rest.starts_with(magic))
        };
        let found = FIRST.iter().find(begins).map(|(_, magic, format)| (*magic, *format));
        match found {
            // Three letters are not enough.
            Some((b"BZh", _))
                if !BZIP2_BLOCKS.iter().any(|block| first.get(4..).is_some_and(|rest| rest.starts_with(block))) => {}
            Some((b"QFI\xfb", format)) if first.get(4..8) == Some(&[0, 0, 0, 1]) => {
                return Some(ImageFormat { way: Way::Convert("qcow"), ..format });
            }
            Some((_, format)) => return Some(format),
            None => {}
        }
        LAST.iter().find(|(magic, _)| last.starts_with(magic)).map(|(_, format)| *format)
    }

    fn of_file(path: &Path) -> Option<Self> {
        // What cannot be read has no format, and is found out about when it is used.
        let mut file = File::open(path).ok()?;
        let length = file.seek(SeekFrom::End(0)).ok()?;
        let mut sector_at = |offset: u64| {
            let mut sector = Vec::with_capacity(SECTOR);
            file.seek(SeekFrom::Start(offset)).ok()?;
            (&mut file).take(SECTOR as u64).read_to_end(&mut sector).ok()?;
            Some(sector)
        };
        Self::of(&sector_at(0)?, &sector_at(length.saturating_sub(SECTOR as u64))?)
    }

    /// Says what the medium at `path` is, and what to do.
    fn advice(&self, path: &Path) -> String {
        let (name, path) = (self.name, path.display());
        match self.way {
            Way::Convert(driver) => {
                format!("{path} is {name}: make a raw one with `qemu-img convert -f {driver} -O raw {path} {path}.raw`")
            }
            Way::Unpack(command) => {
                format!("{path} is compressed with {name}: unpack it with `{command} {path} > {path}.raw`")
            }
        }
    }
}

impl FormatChoice {
    /// Refuses a file that looks like another format than raw. `[control]`
    ///
    /// A guest may write whatever it likes to its disk, such a beginning as well. On a file that does not matter: it is
    /// marked when it is first served ([`mark_raw`]). A block device has no place for a mark, and no guest shall
    /// keep a host from starting: there it is a warning.
    ///
    /// # Errors
    /// The message has the command that makes a raw image of it.
    pub fn check(self, path: &Path, kind: FileType, context: &OpenContext) -> Result<(), Error> {
        if self == FormatChoice::Raw || is_marked_raw(path) {
            return Ok(());
        }
        let Some(format) = ImageFormat::of_file(path) else { return Ok(()) };
        let advice = format.advice(path);
        if kind.is_block_device() {
            let message =
                "is served as raw, which destroys it unless a guest wrote that itself; format = \"raw\" if it did";
            context.host.log(Level::Warn, format_args!("{advice}; it {message}"));
            return Ok(());
        }
        Err(Error::new(format!("{advice}; or write format = \"raw\" to have it served, and written to, as it is")))
    }
}

/// The extended attribute of a file that is served as raw. Its value is the file's length: what somebody else makes in
/// its place has another one.
const MARK: &str = "user.pollux.raw";

/// Marks a file that a guest may write to, so that nothing it writes is taken for a format at the next start. Not every
/// file system has marks; there, `format = "raw"` has the same effect. `[control]`
pub fn mark_raw(file: &File) {
    let Ok(metadata) = file.metadata() else { return };
    let length = metadata.len().to_string();
    let mut room = [0; 24];
    let marked =
        rustix::fs::fgetxattr(file, MARK, &mut room[..]).is_ok_and(|count| room[..count] == *length.as_bytes());
    if metadata.is_file() && !marked {
        let _ = rustix::fs::fsetxattr(file, MARK, length.as_bytes(), rustix::fs::XattrFlags::empty());
    }
}

fn is_marked_raw(path: &Path) -> bool {
    let mut room = [0; 24];
    let Ok(metadata) = path.metadata() else { return false };
    rustix::fs::getxattr(path, MARK, &mut room[..])
        .is_ok_and(|count| metadata.is_file() && room[..count] == *metadata.len().to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(first: &[u8], last: &[u8]) -> Option<String> {
        ImageFormat::of(first, last).map(|format| format.advice(Path::new("d.img")))
    }

    #[test]
    fn each_format_has_its_command() {
        let mut vdi = vec![0; 512];
        vdi[64..68].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
        let cases: [(&[u8], &str); 12] = [
            (b"QFI\xfb\0\0\0\x03", "-f qcow2 -O raw d.img d.img.raw"),
            (b"QFI\xfb\0\0\0\x01", "-f qcow -O raw"),
            (b"KDMV\x01", "-f vmdk"),
            (b"# Disk DescriptorFile\nversion=1\n", "-f vmdk"),
            (b"vhdxfileQ\0", "-f vhdx"),
            (b"conectix\0\0\0\x02", "-f vpc"),
            (&vdi, "-f vdi"),
            (b"\x1f\x8b\x08\0", "`gzip -dc d.img > d.img.raw`"),
            (b"\xfd7zXZ\0\0\x04", "xz -dc"),
            (b"\x28\xb5\x2f\xfd\x04", "zstd -dc"),
            (b"BZh91AY&SY", "bzip2 -dc"),
            (b"7z\xbc\xaf\x27\x1c", "7z x -so"),
        ];
        for (first, words) in cases {
            let advice = named(first, &[]).unwrap_or_else(|| panic!("{first:?} is taken for raw"));
            assert!(advice.contains(words), "{advice}");
        }
        let advice = named(&[0xeb, 0x63, 0x90], b"conectix\0\0\0\x02").expect("a fixed VHD has its mark at its end");
        assert!(advice.contains("is a VHD image") && advice.contains("-f vpc"), "{advice}");
    }

    #[test]
    fn what_a_guest_sees_as_a_disk_is_raw() {
        let mut partitioned = [0; 512];
        partitioned[..3].copy_from_slice(&[0xeb, 0x63, 0x90]);
        partitioned[510..].copy_from_slice(&[0x55, 0xaa]);
        // LUKS is the guest's own encryption, and an ISO begins with zeroes.
        for first in [&partitioned[..], b"LUKS\xba\xbe\0\x02", &[0; 512], b"", b"BZhang", b"LABELONE"] {
            assert_eq!(named(first, first), None, "{first:?}");
        }
    }
}
