//! What a front end tells a backend that came back, seen by a backend that takes notes.
use pollux_loadgen::{
    Error, FrontEnd, FrontEndOptions,
    slots::{Kind, Operation},
};
use std::{
    fs::File,
    io::Read,
    os::unix::{
        fs::{FileExt, MetadataExt},
        net::{UnixListener, UnixStream},
    },
    path::Path,
    thread::{self, JoinHandle},
    time::Duration,
};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

// Requests (vhost-user specification, "Front-end message types").
const GET_FEATURES: u32 = 1;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;
const GET_INFLIGHT_FD: u32 = 31;
const SET_INFLIGHT_FD: u32 = 32;
const GET_MAX_MEM_SLOTS: u32 = 36;
const ADD_MEM_REG: u32 = 37;

/// VERSION_1, PROTOCOL_FEATURES, EVENT_IDX, INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;
/// MQ, REPLY_ACK, CONFIG, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 9 | 1 << 12 | 1 << 15;

/// A message as it came.
struct Message {
    request: u32,
    body: Vec<u8>,
    file: Option<File>,
}

/// What the backend has seen of one front end, until the queue was enabled.
struct Notes {
    messages: Vec<Message>,
    stream: UnixStream,
}

impl Notes {
    fn all(&self, request: u32) -> Vec<&Message> {
        self.messages.iter().filter(|message| message.request == request).collect()
    }

    fn one(&self, request: u32) -> &Message {
        let found = self.all(request);
        assert_eq!(found.len(), 1, "request {request}");
        found[0]
    }

    fn word(&self, request: u32, at: usize) -> u64 {
        u64::from_le_bytes(self.one(request).body[at..at + 8].try_into().expect("eight bytes"))
    }

    fn inode(&self, request: u32) -> u64 {
        self.one(request).file.as_ref().expect("a file descriptor").metadata().expect("a file").ino()
    }
}

/// Serves one front end until its queue is enabled. The device has `sectors` sectors.
fn serve(listener: &UnixListener, sectors: u64, features: u64) -> JoinHandle<Notes> {
    let listener = listener.try_clone().expect("a listener");
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a front end");
        let mut notes = Notes { messages: Vec::new(), stream };
        loop {
            let mut header = [0; 12];
            let (length, file) = notes.stream.recv_with_fd(&mut header).expect("a message");
            let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
            if length == 0 {
                return notes;
            }
            let (request, wants_reply) = (word(0), word(4) & 8 != 0);
            let mut body = vec![0; word(8) as usize];
            notes.stream.read_exact(&mut body).expect("a body");
            let (reply, inflight) = answer(request, &body, sectors, features, wants_reply);
            notes.messages.push(Message { request, body, file });
            if let Some(reply) = reply {
                let header = [request, 1 | 4, reply.len() as u32].map(u32::to_le_bytes).concat();
                let message = [header, reply].concat();
                match inflight {
                    Some(file) => notes.stream.send_with_fd(&message[..], std::os::fd::AsRawFd::as_raw_fd(&file)),
                    None => notes.stream.send_with_fds(&[&message[..]], &[]),
                }
                .expect("a reply");
            }
            if request == SET_VRING_ENABLE {
                return notes;
            }
        }
    })
}

fn answer(
    request: u32,
    body: &[u8],
    sectors: u64,
    features: u64,
    wants_reply: bool,
) -> (Option<Vec<u8>>, Option<File>) {
    let number = |value: u64| Some(value.to_le_bytes().to_vec());
    let reply = match request {
        GET_FEATURES => number(features),
        GET_PROTOCOL_FEATURES => number(PROTOCOL),
        GET_QUEUE_NUM => number(1),
        GET_MAX_MEM_SLOTS => number(8),
        GET_CONFIG => {
            let mut reply = body.to_vec();
            reply[12..20].copy_from_slice(&sectors.to_le_bytes());
            Some(reply)
        }
        GET_INFLIGHT_FD => {
            let file = tempfile::tempfile().expect("a file");
            file.set_len(4096).expect("a file");
            // With the padding at its end, as QEMU and the vhost crate send it.
            let reply = [&4096u64.to_le_bytes()[..], &0u64.to_le_bytes(), &body[16..24]].concat();
            return (Some(reply), Some(file));
        }
        GET_VRING_BASE => Some(body.to_vec()),
        _ => wants_reply.then(|| vec![0; 8]),
    };
    (reply, None)
}

fn start(path: &Path) -> (FrontEnd, Notes, UnixListener) {
    let listener = UnixListener::bind(path).expect("a socket");
    let server = serve(&listener, 2048, FEATURES);
    let options = FrontEndOptions { depth: 4, patience: Duration::from_secs(30), ..FrontEndOptions::default() };
    let front_end = FrontEnd::connect(path, &options).expect("a front end");
    (front_end, server.join().expect("a backend"), listener)
}

#[test]
fn the_backend_gets_its_record_and_the_used_index_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let (mut front_end, first, listener) = start(&path);
    assert!(front_end.facts().inflight);
    let inode = first.inode(SET_INFLIGHT_FD);
    assert_eq!(first.all(GET_INFLIGHT_FD).len(), 1);

    let queue = &mut front_end.queues_mut()[0];
    for sector in 0..3 {
        let slot = queue.reserve().expect("room");
        queue.submit(slot, Operation { kind: Kind::Read, sector: sector * 8, bytes: 4096 }, 0);
    }
    queue.publish().expect("a kick");
    // The backend completes the second request in the shared memory, and is gone before the driver has looked.
    let region = first.one(ADD_MEM_REG).file.as_ref().expect("memory");
    let used = first.word(SET_VRING_ADDR, 16) - first.word(ADD_MEM_REG, 24);
    region.write_all_at(&[1, 0, 0, 0, 1, 0, 0, 0], used + 4).expect("an element");
    region.write_all_at(&[1, 0], used + 2).expect("the index");
    drop(first);
    assert!(!front_end.is_alive());

    let server = serve(&listener, 2048, FEATURES);
    front_end.reconnect(&path).expect("the backend is back");
    let second = server.join().expect("a backend");
    assert_eq!(second.all(GET_INFLIGHT_FD).len(), 0, "it has one");
    assert_eq!(second.inode(SET_INFLIGHT_FD), inode, "the same record");
    let base = u32::from_le_bytes(second.one(SET_VRING_BASE).body[4..8].try_into().expect("four bytes"));
    assert_eq!(base, 1, "the used index");
    let order: Vec<u32> = second.messages.iter().map(|message| message.request).collect();
    let position = |request: u32| order.iter().position(|other| *other == request).expect("it was sent");
    assert!(position(SET_INFLIGHT_FD) < position(ADD_MEM_REG) && position(ADD_MEM_REG) < position(SET_VRING_ADDR));
    assert_eq!(second.messages.last().map(|message| message.request), Some(SET_VRING_ENABLE));

    assert_eq!(front_end.in_flight(), 3);
    let completion = front_end.queues_mut()[0].pop().expect("an honest ring").expect("what was completed before");
    assert_eq!((completion.slot, completion.operation.sector), (1, 8));
    assert_eq!(front_end.in_flight(), 2);
}

#[test]
fn a_backend_that_came_back_as_another_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let (mut front_end, first, listener) = start(&path);
    drop(first);
    for (sectors, features, what) in
        [(4096, FEATURES, "its device changed"), (2048, FEATURES & !(1 << 28), "its features changed")]
    {
        let server = serve(&listener, sectors, features);
        let error = front_end.reconnect(&path).expect_err(what);
        assert!(matches!(error, Error::Changed { .. }) && error.to_string().contains(what), "{error}");
        drop(server.join().expect("a backend"));
    }
    let server = serve(&listener, 2048, FEATURES);
    front_end.reconnect(&path).expect("as it was");
    drop(server.join().expect("a backend"));
}
