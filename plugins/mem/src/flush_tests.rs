//! A flush that has failed stays failed.
use crate::{
    Mem,
    testing::{Instance, request},
};
use pollux_abi::block_v1::*;
use std::{fs::File, path::PathBuf, process::Command};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A file system on a disk whose space runs out when the kernel writes back what it took: a file with holes on a full
/// tmpfs.
struct FileSystemThatLosesData(TempDir);

impl FileSystemThatLosesData {
    /// `None`, with the reason printed, where it cannot be made.
    fn new() -> Option<Self> {
        let made = FileSystemThatLosesData(tempfile::tempdir().expect("a folder"));
        let (below, above) = (made.folder("below"), made.folder("above"));
        let disk = below.join("disk.img");
        let is_made = run("mount -t tmpfs -o size=3m tmpfs", &[&below])
            && File::create(&disk).and_then(|file| file.set_len(64 * MIB)).is_ok()
            && run("mkfs.ext4 -q -F -O ^has_journal", &[&disk])
            && run("mount -o loop", &[&disk, &above]);
        if !is_made {
            println!("SKIPPED: to mount file systems needs the root user, mkfs.ext4 and a loop device");
        }
        is_made.then_some(made)
    }

    fn folder(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        path
    }
}

impl Drop for FileSystemThatLosesData {
    fn drop(&mut self) {
        run("umount --lazy", &[&self.folder("above")]);
        run("umount --lazy", &[&self.folder("below")]);
    }
}

/// Runs a command of the system on these files. Prints why it fails.
fn run(command: &str, files: &[&PathBuf]) -> bool {
    let mut words = command.split(' ');
    let output = Command::new(words.next().expect("another one")).args(words).args(files).output();
    match output {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            println!("{command} {files:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
            false
        }
        Err(error) => {
            println!("{command}: {error}");
            false
        }
    }
}

#[test]
fn after_a_flush_has_failed_no_queue_promises_anything_until_the_file_is_opened_again() {
    let Some(mount) = FileSystemThatLosesData::new() else { return };
    let path = mount.folder("above").join("disk.img");
    let options = format!(r#"{{"path": {path:?}, "size": "8M"}}"#);
    let instance = Instance::<Mem>::open(&options).expect("it opens");
    let (mut queue, mut other) = (instance.queue(4), instance.open_queue(1, 4).expect("a queue"));
    other.start().expect("started");
    let flush = request(POLLUX_BLOCK_FLUSH, 0, 0, 0);
    assert_eq!(queue.write(0, &vec![7; 8 * MIB as usize]), 0, "the page cache has room");
    let failure = queue.run(flush);
    assert!(failure < 0, "the disk is full");
    for queue in [&mut queue, &mut other] {
        assert_eq!(queue.run(flush), failure);
        let zeroes = request(POLLUX_BLOCK_WRITE_ZEROES, 0, 4096, POLLUX_BLOCK_FUA);
        assert_eq!(queue.run(zeroes), failure);
        assert_eq!(queue.write(4096, &[8; 4096]), 0, "it makes no promise");
        assert_eq!(queue.read(4096, 4096), [8; 4096]);
    }
    let log = instance.log();
    assert_eq!(log.matches("a flush failed").count(), 1, "{log}");
}
