//! A guest that gives memory back, as by a balloon or by free page reporting, and takes it again: its front end makes
//! holes in the memory that it shares, and what the guest uses afterwards is other pages.
mod common;

use common::{
    disk::{DIRECT, Disk},
    serving::Serving,
};
use pollux_driver::Buffer;
use pollux_testing::{
    blk::{IN, OK, OUT, pattern, wait_for},
    front_end::FrontEnd,
};
use std::{fs::File, os::unix::fs::FileExt, process::Stdio};

const DATA_BYTES: usize = 8192;

/// A guest whose requests have their data in pages of their own, so that direct I/O takes them as they are.
struct Guest {
    front: FrontEnd,
    /// The file that its memory is in.
    memory: File,
    /// Where the header and, a page further, the status is; the data follows in the next pages.
    area: u64,
}

impl Guest {
    fn new(disk: &Disk) -> Self {
        let mut front = FrontEnd::new(&disk.socket(), 1);
        front.start();
        let region = front.regions()[0];
        assert_eq!((region.guest_phys_addr, region.mmap_offset), (0, 0));
        let memory = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", region.mmap_handle));
        let area = front.drivers[0].area_address();
        Guest { memory: memory.expect("the guest's memory"), area, front }
    }

    fn data(&self) -> u64 {
        self.area + 2 * 4096
    }

    fn request(&mut self, kind: u32, sector: u64) {
        let header = [u64::from(kind).to_le_bytes(), sector.to_le_bytes()].concat();
        self.memory.write_all_at(&header, self.area).expect("memory");
        let status = self.area + 4096;
        self.memory.write_all_at(&[0xff], status).expect("memory");
        let buffers = [
            Buffer { address: self.area, length: 16, writable: false },
            Buffer { address: self.data(), length: DATA_BYTES as u32, writable: kind == IN },
            Buffer { address: status, length: 1, writable: true },
        ];
        let ring = &mut self.front.drivers[0].ring;
        ring.add(&buffers).expect("room");
        ring.publish();
        self.front.kick(0);
        wait_for("a request", || self.front.drivers[0].ring.pop_used());
        let mut answer = [0];
        self.memory.read_exact_at(&mut answer, status).expect("memory");
        assert_eq!(answer, [OK]);
    }

    fn write(&mut self, sector: u64, data: &[u8]) {
        self.memory.write_all_at(data, self.data()).expect("memory");
        self.request(OUT, sector);
    }

    fn read(&mut self, sector: u64) -> Vec<u8> {
        self.request(IN, sector);
        let mut data = vec![0; DATA_BYTES];
        self.memory.read_exact_at(&mut data, self.data()).expect("memory");
        data
    }

    /// Gives the pages of the data back to the host.
    fn give_back(&self) {
        let (file, mode) = (&self.memory, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
        let (offset, length) = (self.data() as i64, DATA_BYTES as i64);
        // SAFETY: no memory of this process is passed; the guest uses that part of its own for nothing now.
        assert_eq!(unsafe { libc::fallocate(std::os::fd::AsRawFd::as_raw_fd(file), mode, offset, length) }, 0);
    }
}

#[test]
fn reads_and_writes_reach_the_pages_that_the_guest_has_now() {
    let disk = Disk::new("uring", &format!("{DIRECT}, engine = \"io_uring\", register_memory = true"), 1);
    if !disk.takes_direct("a balloon with register_memory") {
        return;
    }
    let mut command = disk.folder.command(&["serve", "disks.toml"]);
    command.stderr(Stdio::piped());
    let server = Serving::start(&disk.folder, command);
    let mut guest = Guest::new(&disk);
    for sector in [0, 100, 200, 300] {
        let data = pattern(sector, DATA_BYTES);
        guest.write(sector, &data);
        guest.give_back();
        assert!(guest.read(sector) == data, "what was read went into pages of before");
        guest.give_back();
        let data = pattern(sector + 7, DATA_BYTES);
        guest.write(sector, &data);
        assert!(guest.read(sector) == data, "what was written came from pages of before");
    }
    drop(guest);
    let ran = server.stop();
    assert_eq!(ran.status, Some(0));
    let said = "register_memory has no effect: the guest's memory cannot be registered (over vhost-user";
    assert_eq!(ran.stderr.matches(said).count(), 1, "{}", ran.stderr);
}
