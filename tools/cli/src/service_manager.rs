//! What a service manager such as systemd is told: see sd_notify(3), whose protocol this is.
use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};
use tracing::warn;

/// Everything is there that clients may ask for.
pub(crate) fn ready() {
    notify("READY=1");
}

/// The end has begun.
pub(crate) fn stopping() {
    notify("STOPPING=1");
}

/// Tells it to whoever started this process and wants to know.
fn notify(state: &str) {
    let Some(place) = env::var_os("NOTIFY_SOCKET").filter(|place| !place.is_empty()) else { return };
    if let Err(error) = send(&place, state) {
        warn!("cannot tell the service manager {state} at {}: {error}", place.display());
    }
}

fn send(place: &OsStr, state: &str) -> io::Result<()> {
    let address = match place.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(place)?,
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "not a UNIX socket")),
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_go_to_sockets_with_and_without_a_file() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("notify");
        let name = format!("pollux-test-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("address");
        let sockets = [UnixDatagram::bind(&path), UnixDatagram::bind_addr(&address)].map(|it| it.expect("bound"));
        for (place, socket) in [path.as_os_str(), OsStr::new(&format!("@{name}"))].into_iter().zip(&sockets) {
            send(place, "READY=1").expect("sent");
            let mut text = [0; 64];
            let length = socket.recv(&mut text).expect("received");
            assert_eq!(&text[..length], b"READY=1");
        }
        assert!(send(OsStr::new("vsock:2:1234"), "READY=1").is_err());
    }
}
