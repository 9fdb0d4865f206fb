//! Any front end: its messages and the descriptors beside them, its memory, which it may cut, and its rings.
use crate::{file, input::Input};
use pollux_core::ring::RingKind;
use pollux_testing::{
    blk::{Cut, IN},
    disk::Behaviour,
    front_end::QUEUE_SIZE,
    neighbours::{Neighbours, QUEUES},
    raw_front_end::{NEED_REPLY, RawFrontEnd, RawGuest, Step, VERSION, words32, words64},
};
use std::{
    cell::RefCell,
    fs::File,
    io::Read,
    net::Shutdown,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
};
use tempfile::TempDir;
use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const STEPS_MAX: usize = 48;
/// Greatest number of a request that the document has (vhost-user document, "Front-end message types").
const REQUEST_MAX: u32 = FrontendReq::SET_STATUS as u32 + 6;

/// The devices under attack, which stay for all inputs, and the folder of their sockets.
struct Place {
    devices: Neighbours,
    _folder: TempDir,
}

thread_local! {
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// Attacks a device as the input says, and leaves.
///
/// # Panics
/// The connection does not end, the device has no use for an honest front end after that, or its neighbour has noticed.
pub fn run(data: &[u8]) {
    PLACE.with_borrow_mut(|place| {
        let place = place.get_or_insert_with(|| {
            let folder = TempDir::new().expect("a folder");
            Place { devices: Neighbours::new(folder.path(), "fuzz", Behaviour::Deferred), _folder: folder }
        });
        Attack::new(RawFrontEnd::connect(&place.devices.path)).run(&mut Input::new(data));
        place.devices.all_work();
    });
}

/// Descriptors that a front end can send.
struct Files {
    short: File,
    inflight: File,
    null: File,
    event: EventFd,
    socket: (UnixStream, UnixStream),
}

impl Files {
    fn new() -> Self {
        let inflight = file::in_memory(&[]);
        let bytes = RingKind::Packed.inflight_bytes(QUEUE_SIZE) * QUEUES as u64;
        inflight.set_len(bytes).expect("a length");
        Files {
            short: file::in_memory(&[0; 100]),
            inflight,
            null: File::open("/dev/null").expect("/dev/null"),
            event: EventFd::new(EFD_NONBLOCK).expect("an event"),
            socket: UnixStream::pair().expect("sockets"),
        }
    }
}

struct Attack {
    wire: RawFrontEnd,
    guest: RawGuest,
    files: Files,
    /// What an honest front end sends, and how much of it was sent.
    steps: Vec<Step>,
    sent: usize,
    /// Memory was taken away, and from the driver as well.
    has_cut: bool,
}

impl Attack {
    fn new(wire: RawFrontEnd) -> Self {
        let guest = RawGuest::new();
        let steps = guest.steps(0);
        Attack { wire, guest, files: Files::new(), steps, sent: 0, has_cut: false }
    }

    fn run(mut self, input: &mut Input<'_>) {
        for _ in 0..STEPS_MAX {
            if input.is_empty() || !self.step(input) {
                break;
            }
        }
        // The device closes its end when it has let go of everything. Answers that were not read are read now.
        let _ = self.wire.stream.shutdown(Shutdown::Write);
        let end = (&self.wire.stream).read_to_end(&mut Vec::new());
        let has_timed_out = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!has_timed_out, "the connection ends");
    }

    /// One message, or one deed beside the socket. Returns whether the connection is still open.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        match input.below(8) {
            // Few inputs would hit upon a whole start.
            0 | 1 => self.honest(input, false),
            2 => self.honest(input, true),
            3 => self.whole(input),
            4 => self.message(input),
            5 => {
                let bytes = input.bytes(40);
                self.wire.send_bytes(bytes, &[])
            }
            6 => {
                self.use_ring(input);
                true
            }
            _ => {
                self.cut_memory(input);
                true
            }
        }
    }

    /// The next message of an honest front end, which may be spoilt.
    fn honest(&mut self, input: &mut Input<'_>, is_spoilt: bool) -> bool {
        let at = if is_spoilt { input.below(self.steps.len()) } else { self.sent % self.steps.len() };
        let (request, mut payload, mut files) = self.steps[at].clone();
        if is_spoilt {
            if let Some(byte) = payload.get_mut(usize::from(input.byte())) {
                *byte ^= 1 << input.below(8);
            }
            if input.below(4) == 0 {
                files.push(self.file(input));
            }
        } else {
            self.sent += 1;
        }
        self.send(request as u32, &payload, &files, input)
    }

    /// All that is left of what an honest front end sends.
    fn whole(&mut self, input: &mut Input<'_>) -> bool {
        while self.sent < self.steps.len() {
            if !self.honest(input, false) {
                return false;
            }
        }
        true
    }

    /// A message of any kind, with words that mean something in some message.
    fn message(&mut self, input: &mut Input<'_>) -> bool {
        let code = u32::from(input.byte()) % REQUEST_MAX;
        let region = self.guest.regions()[input.below(2)];
        let mut payload = Vec::new();
        for _ in 0..input.below(9) {
            payload.extend(match input.below(6) {
                0 => words32(&[input.below(3) as u32]),
                1 => words64(&[u64::from(input.byte())]),
                2 => words64(&[input.choose(&[region.guest_phys_addr, region.userspace_addr, region.memory_size])]),
                3 => words64(&[self.guest.addresses()[input.below(3)]]),
                4 => words64(&[1 << input.below(64)]),
                _ => words64(&[input.long()]),
            });
        }
        let files: Vec<RawFd> = (0..input.below(4)).map(|_| self.file(input)).collect();
        self.send(code, &payload, &files, input)
    }

    fn send(&self, code: u32, payload: &[u8], files: &[RawFd], input: &mut Input<'_>) -> bool {
        let (mut flags, mut size) = (VERSION, payload.len() as u32);
        match input.byte() {
            0xff => flags = input.word(),
            0xfe => size = input.word(),
            byte => flags |= NEED_REPLY * u32::from(byte & 1),
        }
        self.wire.send_message(code, flags, size, payload, files)
    }

    fn file(&self, input: &mut Input<'_>) -> RawFd {
        let files = &self.files;
        input.choose(&[
            self.guest.regions()[0].mmap_handle,
            self.guest.regions()[1].mmap_handle,
            files.inflight.as_raw_fd(),
            files.short.as_raw_fd(),
            files.null.as_raw_fd(),
            files.event.as_raw_fd(),
            files.socket.0.as_raw_fd(),
            self.guest.kick.as_raw_fd(),
        ])
    }

    /// Has the driver do something with its ring.
    fn use_ring(&mut self, input: &mut Input<'_>) {
        match input.below(4) {
            _ if self.has_cut => {}
            0 => drop(self.guest.driver.submit(IN, 0, &[], &Cut::plain(0, 512))),
            1 => {
                let (at, value) = (u64::from(input.half()) % 0x3000, input.long());
                self.guest.driver.ring.write(at, value);
            }
            _ => {}
        }
        // Full means that it was kicked anyway.
        let _ = self.guest.kick.write(1);
    }

    /// Takes pages away that the device may have mapped, or gives them back.
    fn cut_memory(&mut self, input: &mut Input<'_>) {
        let map = self.guest.memory.map();
        let regions: Vec<_> = vm_memory::GuestMemoryBackend::iter(&**map).collect();
        let region = regions[input.below(regions.len())];
        let file = vm_memory::GuestMemoryRegion::file_offset(region).expect("memory with a file").file();
        let length = u64::from(input.byte()) << 12;
        file.set_len(length).expect("a length");
        self.has_cut = true;
    }
}
