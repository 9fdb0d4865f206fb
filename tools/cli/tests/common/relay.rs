//! Stands between a front end and its backend, and counts messages.
use std::{
    fs::File,
    io::Write,
    net::Shutdown,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    thread,
};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Longer than any message of this protocol.
const MESSAGE_BYTES: usize = 4096;

/// Connects the next front end of `listener` to `backend`, until one of them goes. `before` is told the number of each
/// message of the front end, from 0, before it is passed on. Each is answered before the next is sent, so that they
/// come one by one.
pub(crate) fn relay(listener: &UnixListener, backend: &Path, mut before: impl FnMut(usize)) {
    let (front, _) = listener.accept().expect("a front end");
    let back = UnixStream::connect(backend).expect("a backend");
    thread::scope(|scope| {
        scope.spawn(|| {
            // The answers, some of which have a descriptor.
            while let Some((bytes, file)) = receive(&back) {
                if !send(&front, &bytes, file.as_ref()) {
                    break;
                }
            }
            let _ = front.shutdown(Shutdown::Both);
        });
        let mut count = 0;
        while let Some((bytes, file)) = receive(&front) {
            before(count);
            count += 1;
            if !send(&back, &bytes, file.as_ref()) {
                break;
            }
        }
        let _ = back.shutdown(Shutdown::Both);
    });
}

/// What comes next; None: nothing more.
fn receive(stream: &UnixStream) -> Option<(Vec<u8>, Option<File>)> {
    let mut bytes = vec![0; MESSAGE_BYTES];
    let (length, file) = stream.recv_with_fd(&mut bytes).ok().filter(|(length, _)| *length > 0)?;
    bytes.truncate(length);
    Some((bytes, file))
}

fn send(stream: &UnixStream, bytes: &[u8], file: Option<&File>) -> bool {
    match file {
        Some(file) => stream.send_with_fd(bytes, file.as_raw_fd()).is_ok_and(|sent| sent == bytes.len()),
        None => (&*stream).write_all(bytes).is_ok(),
    }
}
