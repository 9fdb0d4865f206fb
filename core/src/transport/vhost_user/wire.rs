//! Messages on their way over the socket (vhost-user document, "Message Specification"): a header of request, flags and
//! size, a payload, and file descriptors beside it.
use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use std::{
    fs::File,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};
use vhost::vhost_user::message::{FrontendReq, VhostUserMsgValidator};

const HEADER_BYTES: usize = 12;
/// Longest payload that any message of ours has: a memory table of 32 regions or 256 bytes of configuration are
/// shorter.
const PAYLOAD_BYTES_MAX: u32 = 4096;
/// Most descriptors that come with one message.
const FILES_MAX: usize = 32;

/// How long a front end may let its answers pile up: no honest one keeps sending requests without reading.
const UNREAD_MAX: Duration = Duration::from_secs(10);
/// How often to check meanwhile whether waiting is still worthwhile.
const UNREAD_LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// Why a connection cannot continue.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The other side has closed it between two messages.
    #[error("the front end has closed the connection")]
    Closed,
    /// The other side has closed it within a message.
    #[error("the front end has closed the connection within a message")]
    Cut,
    #[error("cannot read from the front end: {0}")]
    Receive(Errno),
    #[error("cannot answer the front end: {0}")]
    Send(Errno),
    #[error("the front end does not speak vhost-user: a message header has the flags {0:#x}")]
    Flags(u32),
    #[error("a message {0} of {1} bytes, which is longer than any valid one")]
    Size(u32, u32),
    #[error("a message with more than {FILES_MAX} file descriptors")]
    Files,
    #[error("the front end does not read its answers")]
    Unread,
}

/// One message from the front end.
#[derive(Debug)]
pub(super) struct Message {
    /// The number of the request.
    pub(super) code: u32,
    need_reply: bool,
    pub(super) payload: Vec<u8>,
    pub(super) files: Vec<File>,
}

impl Message {
    /// The request, if it is one that the document has.
    pub(super) fn request(&self) -> Option<FrontendReq> {
        FrontendReq::try_from(self.code).ok()
    }

    /// The request's name in the document, or its number.
    pub(super) fn name(&self) -> String {
        self.request().map_or_else(|| format!("request {}", self.code), |request| format!("{request:?}"))
    }

    /// Whether the front end wants to know the outcome.
    pub(super) fn needs_reply(&self) -> bool {
        self.need_reply
    }

    /// The payload as a structure, which it must fill.
    pub(super) fn body<T: VhostUserMsgValidator + Default>(&self) -> Result<T, String> {
        self.front().and_then(|(body, rest)| match rest.len() {
            0 => Ok(body),
            _ => Err(format!("its payload has {} bytes, not {}", self.payload.len(), size_of::<T>())),
        })
    }

    /// The structure at the start of the payload, and what follows it.
    pub(super) fn front<T: VhostUserMsgValidator + Default>(&self) -> Result<(T, &[u8]), String> {
        let Some((front, rest)) = self.payload.split_at_checked(size_of::<T>()) else {
            return Err(format!("its payload has {} bytes, {} are needed", self.payload.len(), size_of::<T>()));
        };
        let mut body = T::default();
        body.as_mut_slice().copy_from_slice(front);
        if body.is_valid() { Ok((body, rest)) } else { Err("its payload has invalid values".into()) }
    }

    /// The one descriptor that comes with it.
    pub(super) fn file(&mut self) -> Result<File, String> {
        match self.files.len() {
            1 => Ok(self.files.remove(0)),
            count => Err(format!("it comes with {count} file descriptors, not with one")),
        }
    }
}

/// Waits for the next message.
pub(super) fn receive(socket: &UnixStream) -> Result<Message, WireError> {
    let mut files = Vec::new();
    let mut header = [0; HEADER_BYTES];
    read_all(socket, &mut header, &mut files, true)?;
    let word = |index: usize| {
        let bytes = &header[4 * index..4 * index + 4];
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    };
    let (code, flags, size) = (word(0), word(1), word(2));
    if flags & VERSION_MASK != VERSION || flags & !(VERSION_MASK | NEED_REPLY) != 0 {
        return Err(WireError::Flags(flags));
    }
    if size > PAYLOAD_BYTES_MAX {
        return Err(WireError::Size(code, size));
    }
    let mut payload = vec![0; size as usize];
    read_all(socket, &mut payload, &mut files, false)?;
    Ok(Message { code, need_reply: flags & NEED_REPLY != 0, payload, files })
}

fn read_all(socket: &UnixStream, buffer: &mut [u8], files: &mut Vec<File>, is_start: bool) -> Result<(), WireError> {
    let mut filled = 0;
    while filled < buffer.len() {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILES_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer[filled..])];
        let received = match recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(Errno::CONNRESET) if is_start && filled == 0 => return Err(WireError::Closed),
            Err(error) => return Err(WireError::Receive(error)),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                files.extend(descriptors.map(|descriptor: OwnedFd| File::from(descriptor)));
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || files.len() > FILES_MAX {
            return Err(WireError::Files);
        }
        match received.bytes {
            0 if is_start && filled == 0 => return Err(WireError::Closed),
            0 => return Err(WireError::Cut),
            bytes => filled += bytes,
        }
    }
    Ok(())
}

/// Answers a request. This waits for a front end that lets its answers pile up, but not for ever, and not beyond
/// `gives_up`.
pub(super) fn reply(
    socket: &UnixStream,
    code: u32,
    payload: &[u8],
    file: Option<&File>,
    gives_up: &dyn Fn() -> bool,
) -> Result<(), WireError> {
    send(socket, code, VERSION | REPLY, payload, file, &mut room_within(UNREAD_MAX, gives_up))
}

/// Sends a request of the back end, to which no answer is wanted. Does not wait.
pub(super) fn request(socket: &UnixStream, code: u32) -> Result<(), WireError> {
    send(socket, code, VERSION, &[], None, &mut |_| Err(WireError::Unread))
}

/// Waits for room in a socket, altogether for `limit`.
fn room_within(limit: Duration, gives_up: &dyn Fn() -> bool) -> impl FnMut(&UnixStream) -> Result<(), WireError> {
    let start = Instant::now();
    move |socket| {
        let mut sockets = [PollFd::new(socket, PollFlags::OUT)];
        // INTR counts as a turn without an event.
        let _ = poll(&mut sockets, Some(&UNREAD_LOOK));
        if gives_up() || start.elapsed() > limit { Err(WireError::Unread) } else { Ok(()) }
    }
}

fn send(
    socket: &UnixStream,
    code: u32,
    flags: u32,
    payload: &[u8],
    file: Option<&File>,
    wait: &mut dyn FnMut(&UnixStream) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    for word in [code, flags, payload.len() as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(payload);
    let descriptors: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
    let mut sent = 0;
    while sent < bytes.len() {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if sent == 0 && !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        // If the socket came from the front end, we do not control whether it blocks: hence DONTWAIT.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(socket, &[IoSlice::new(&bytes[sent..])], &mut ancillary, flags) {
            Ok(count) => sent += count,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(socket)?,
            Err(error) => return Err(WireError::Send(error)),
        }
    }
    Ok(())
}
