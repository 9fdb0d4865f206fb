//! Block devices and full file systems, which only root can make.
use super::*;
use crate::testing::{Memory, check_against_model, check_segment_splits, request, transfer};
use pollux_abi::block_v1::*;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// A loop device over an image, detached when dropped.
pub(super) struct LoopDevice {
    pub(super) path: PathBuf,
    backing: Fixture,
}

impl LoopDevice {
    /// `None`, with the reason printed, where none can be made.
    pub(super) fn new(size: u64, sector: u32) -> Option<Self> {
        Self::over(Fixture::new(size), sector)
    }

    pub(super) fn over(backing: Fixture, sector: u32) -> Option<Self> {
        let sector = format!("--sector-size={sector}");
        let path = is_root()
            .then(|| system("losetup", &["--find", "--show", &sector, backing.path.to_str().expect("UTF-8")]))
            .flatten();
        if path.is_none() {
            println!("SKIPPED: a loop device needs the root user and losetup");
        }
        Some(LoopDevice { path: path?.into(), backing })
    }

    /// The image.
    pub(super) fn backing(&self) -> &Path {
        &self.backing.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        system("losetup", &["--detach", self.path.to_str().expect("UTF-8")]);
    }
}

/// A mounted file system, unmounted when dropped.
pub(super) struct Mount {
    folder: TempDir,
    /// What it is on, detached after it is unmounted.
    _device: Option<LoopDevice>,
}

impl Mount {
    pub(super) fn tmpfs(size: &str) -> Option<Self> {
        Self::of(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], None)
    }

    /// Makes a file system on the device.
    pub(super) fn ext4_on(device: LoopDevice) -> Option<Self> {
        let path = device.path.to_str().expect("UTF-8").to_owned();
        if system("mkfs.ext4", &["-q", "-F", "-b", "4096", &path]).is_none() {
            println!("SKIPPED: there is no mkfs.ext4");
            return None;
        }
        Self::of(&["-t", "ext4", &path], Some(device))
    }

    fn of(arguments: &[&str], device: Option<LoopDevice>) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let arguments = [arguments, &[folder.path().to_str().expect("UTF-8")]].concat();
        let mounted = is_root().then(|| system("mount", &arguments)).flatten();
        if mounted.is_none() {
            println!("SKIPPED: to mount a file system needs the root user");
        }
        mounted.map(|_| Mount { folder, _device: device })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        system("umount", &["--lazy", self.path().to_str().expect("UTF-8")]);
    }
}

#[test]
fn a_block_device_is_described_and_served() {
    for sector in [512, 4096] {
        let Some(device) = LoopDevice::new(8 << 20, sector) else { return };
        for direct in [true, false] {
            let instance = Instance::<Uring>::open(&options(&device.path, direct)).expect("it opens");
            let info = instance.info();
            assert_eq!(info.capacity, 8 << 20);
            assert_eq!(info.logical_block_size, sector);
            assert_eq!(info.identity_device, device.path.metadata().expect("metadata").rdev());
            assert!(info.offers(POLLUX_BLOCK_DISCARD), "a loop device over a file discards: {}", instance.log());
            println!("{}", instance.log());
            let mut queue = instance.queue(64);
            check_segment_splits(&mut queue, sector as usize);
            check_against_model(&mut queue, &info, 0, info.capacity / u64::from(sector), 64, 31);
        }
    }
}

#[test]
fn a_block_device_gives_discarded_space_back() {
    let Some(device) = LoopDevice::new(8 << 20, 512) else { return };
    let instance = Instance::<Uring>::open(&options(&device.path, true)).expect("it opens");
    let mut queue = instance.queue(8);
    let fill = |queue: &mut Queue| {
        assert_eq!(queue.write(0, &vec![0xcd; 8 << 20]), 0);
        checked(queue, request(POLLUX_BLOCK_FLUSH, 0, 0, 0));
        allocated(&device.backing.path)
    };
    let full = fill(&mut queue);
    checked(&mut queue, request(POLLUX_BLOCK_DISCARD, 1 << 20, 4 << 20, 0));
    assert!(allocated(&device.backing.path) <= full - (4 << 20));
    assert!(queue.read(5 << 20, 4096).iter().all(|&byte| byte == 0xcd));
    let full = fill(&mut queue);
    checked(&mut queue, request(POLLUX_BLOCK_WRITE_ZEROES, 1 << 20, 4 << 20, POLLUX_BLOCK_UNMAP));
    assert!(allocated(&device.backing.path) <= full - (4 << 20));
    fill(&mut queue);
    checked(&mut queue, request(POLLUX_BLOCK_WRITE_ZEROES, 1 << 20, 4 << 20, 0));
    assert!(is_zero(&queue.read(1 << 20, 4 << 20)));
    assert!(queue.read(5 << 20, 4096).iter().all(|&byte| byte == 0xcd));
}

#[test]
fn a_block_device_in_use_is_refused() {
    let Some(device) = LoopDevice::new(8 << 20, 512) else { return };
    // What a mounted file system does with its device.
    let holder =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&device.path).expect("it opens");
    let message = Instance::<Uring>::open(&options(&device.path, true)).err().expect("the device is in use");
    assert!(message.contains("is mounted or otherwise in use") && message.contains("lock = false"), "{message}");
    assert!(Instance::<Uring>::open_with(&options(&device.path, true), POLLUX_BLOCK_OPEN_PROBE).is_ok());
    drop(holder);
    for _ in 0..20 {
        let instance = Instance::<Uring>::open(&options(&device.path, true)).expect("it opens");
        assert_eq!(instance.queue(4).read(0, 4096).len(), 4096);
    }
}

#[test]
fn a_broken_block_device_answers_with_errors_and_goes_on() {
    let Some(device) = LoopDevice::new(8 << 20, 512) else { return };
    let instance = Instance::<Uring>::open(&options(&device.path, true)).expect("it opens");
    let mut queue = instance.queue(8);
    assert_eq!(queue.write(0, &[1; 4096]), 0);
    // The loop device has lost the second half of its medium.
    File::options().write(true).open(&device.backing.path).expect("it opens").set_len(4 << 20).expect("resized");
    let memory = Memory::new(4097);
    for start in [0, 1] {
        let segments = [memory.segment(start, 4096)];
        assert_eq!(queue.run(transfer(POLLUX_BLOCK_READ, 6 << 20, &segments)), -libc::EIO);
    }
    assert_eq!(queue.read(0, 4096), [1; 4096]);
}

#[test]
fn a_full_file_system_fails_the_request_and_nothing_else() {
    let Some(mount) = Mount::tmpfs("1m") else { return };
    let path = mount.path().join("disk.img");
    File::create(&path).expect("created").set_len(8 << 20).expect("resized");
    {
        let instance = Instance::<Uring>::open(&options(&path, false)).expect("it opens");
        let mut queue = instance.queue(8);
        assert_eq!(queue.write(0, &[1; 65536]), 0);
        assert_eq!(queue.write(1 << 20, &vec![2; 2 << 20]), -libc::ENOSPC);
        assert_eq!(queue.read(0, 65536), [1; 65536]);
        // What was discarded can be written again.
        assert_eq!(queue.run(request(POLLUX_BLOCK_DISCARD, 1 << 20, 2 << 20, 0)), 0);
        assert_eq!(queue.write(4 << 20, &[3; 65536]), 0);
    }
}
