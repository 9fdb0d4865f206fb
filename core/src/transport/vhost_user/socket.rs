//! The socket that a device is served on.
use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, sockopt},
};
use std::{
    borrow::Cow,
    env,
    fs::{self, File, Metadata, Permissions, TryLockError},
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown},
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Longest path of a socket in bytes: `sun_path` has 108, the last of which is zero (unix(7)).
pub const PATH_BYTES_MAX: usize = 107;

/// A socket to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSpec {
    /// Its file: at most [`PATH_BYTES_MAX`] bytes, either as given or relative to the working folder.
    pub path: PathBuf,
    /// Permission bits; `None`: what the umask leaves of 0777. Connecting requires permission to write.
    pub mode: Option<u32>,
    /// The user who owns it; `None`: the user of this process.
    pub user: Option<u32>,
    /// The group that owns it; `None`: the group of this process.
    pub group: Option<u32>,
    /// Whether front ends may share a file with us that is more than memory: see
    /// [`ForeignMapping::map_for`](crate::memory::ForeignMapping::map_for).
    pub any_file: bool,
}

impl SocketSpec {
    /// Whether this process may give a file in the socket's folder to the owner and the group, determined by means of a
    /// file that has no name.
    ///
    /// # Errors
    /// The kernel refuses. What it does not tell before the socket is made is not an error.
    pub fn check_access(&self) -> Result<(), SocketError> {
        if self.user.is_none() && self.group.is_none() {
            return Ok(());
        }
        let nameless =
            File::options().write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(folder_of(&self.path));
        let Ok(file) = nameless else { return Ok(()) };
        fchown(&file, self.user, self.group).map_err(|cause| self.owner_failed(cause))
    }

    fn owner_failed(&self, cause: io::Error) -> SocketError {
        let what = match (self.user, self.group) {
            (Some(user), Some(group)) => format!("owner to user {user} and group {group}"),
            (Some(user), None) => format!("owner to user {user}"),
            (None, group) => format!("group to {}", group.unwrap_or_default()),
        };
        SocketError::Access { path: self.path.clone(), what, cause }
    }
}

/// The name by which a socket is bound: its path, or, if that is too long and it lies below the working folder, its
/// path relative to that.
pub(crate) fn short_name(path: &Path) -> Cow<'_, Path> {
    let is_short = |path: &Path| path.as_os_str().len() <= PATH_BYTES_MAX;
    let from_here =
        || path.strip_prefix(env::current_dir().ok()?).ok().filter(|name| is_short(name)).map(Path::to_owned);
    match is_short(path) {
        true => Cow::Borrowed(path),
        false => from_here().map_or(Cow::Borrowed(path), Cow::Owned),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Why there is no socket to serve on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error("another process listens on {}: stop it, or choose another path", .0.display())]
    InUse(PathBuf),
    /// There is a file that is not ours to remove.
    #[error("{} is there and is no socket: remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The existing file cannot be inspected, or cannot be removed.
    #[error("cannot take over the socket {}: {cause}", .path.display())]
    TakeOver {
        /// The socket's file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It cannot be created.
    #[error("cannot listen on {}: {cause}", .path.display())]
    Bind {
        /// The socket's file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Its owner or its mode cannot be set.
    #[error("cannot set the {what} of {}: {cause}", .path.display())]
    Access {
        /// The socket's file.
        path: PathBuf,
        /// What it was to be set to: `mode`, `group to 36`.
        what: String,
        /// Why.
        cause: io::Error,
    },
    /// An inherited descriptor is something else.
    #[error("descriptor {descriptor}, which was inherited, is not a UNIX stream socket that listens: {reason}")]
    Inherited {
        /// Its number.
        descriptor: RawFd,
        /// What it is instead.
        reason: String,
    },
}

/// A listening UNIX stream socket. Its file is removed with it, unless the socket was inherited or another file has
/// taken its place.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// What to remove: device and inode of the file as it was made.
    made: Option<(u64, u64)>,
}

impl Listener {
    /// Makes the socket. A socket file left behind by a process that no longer listens is replaced.
    ///
    /// Nobody can connect before the owner and the mode are set: until then, the socket does not listen. Two processes
    /// that do this in one folder take turns.
    ///
    /// # Errors
    /// Another process listens there, the existing file is not a socket, or the system refuses.
    pub fn bind(spec: &SocketSpec) -> Result<Listener, SocketError> {
        let path = spec.path.as_path();
        let failed = |cause: io::Error| SocketError::Bind { path: path.to_owned(), cause };
        let address = UnixAddr::new(short_name(path).as_ref()).map_err(|error| failed(error.into()))?;
        let _turn = take_turn(path).map_err(failed)?;
        remove_stale(path, &address)?;
        let socket = new_socket(SockFlag::empty()).map_err(failed)?;
        socket::bind(socket.as_raw_fd(), &address).map_err(|error| failed(error.into()))?;
        let made = fs::symlink_metadata(path).map_err(failed)?;
        // From here on, an error removes the file.
        let listener =
            Listener { socket: UnixListener::from(socket), path: path.to_owned(), made: Some(identity(&made)) };
        set_access(spec)?;
        socket::listen(&listener.socket, Backlog::MAXCONN).map_err(|error| failed(error.into()))?;
        Ok(listener)
    }

    /// Takes a socket that another process has made, listens on, and will remove.
    ///
    /// # Errors
    /// It is no listening UNIX stream socket.
    pub fn inherit(descriptor: OwnedFd) -> Result<Listener, SocketError> {
        let number = descriptor.as_raw_fd();
        let refuse = |reason: String| SocketError::Inherited { descriptor: number, reason };
        match socket::getsockopt(&descriptor, sockopt::SockType) {
            Ok(SockType::Stream) => {}
            Ok(other) => return Err(refuse(format!("it is of type {other:?}"))),
            Err(Errno::ENOTSOCK) => return Err(refuse("it is no socket".into())),
            Err(error) => return Err(refuse(io::Error::from(error).to_string())),
        }
        let listens = socket::getsockopt(&descriptor, sockopt::AcceptConn);
        let socket = UnixListener::from(descriptor);
        let Ok(address) = socket.local_addr() else { return Err(refuse("it is of another address family".into())) };
        if !listens.map_err(|error| refuse(io::Error::from(error).to_string()))? {
            return Err(refuse("it is a connection".into()));
        }
        // Like one that is made here; the service manager only waits on it while this process does not run.
        socket.set_nonblocking(false).map_err(|error| refuse(error.to_string()))?;
        Ok(Listener { socket, path: name_of(&address), made: None })
    }

    /// Its file. That of a socket without one, in the abstract namespace, starts with an `@`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A duplicate of the socket, for accepting before a device is served.
    pub(super) fn try_clone(&self) -> io::Result<UnixListener> {
        self.socket.try_clone()
    }

    /// Waits for a client. The connection is not inherited by child processes.
    ///
    /// # Errors
    /// That of accept(2).
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.socket.accept().map(|(connection, _)| connection)
    }
}

impl AsRawFd for Listener {
    /// Readable when a client is waiting.
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(made) = self.made else { return };
        if fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == made) {
            // If it cannot be removed, the next listener takes it over.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn new_socket(flags: SockFlag) -> io::Result<OwnedFd> {
    Ok(socket::socket(AddressFamily::Unix, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None)?)
}

/// How long another process may take to make its socket in the same folder.
const TURN_MAX: Duration = Duration::from_secs(2);

/// A folder locked by this process.
struct Turn(File);

impl Drop for Turn {
    fn drop(&mut self) {
        // Explicitly, as a child that another thread has just forked has a copy of the descriptor for a moment. What
        // was locked can always be unlocked.
        let _ = self.0.unlock();
    }
}

/// Locks the folder of `path` against others that take over sockets in it, until the result is dropped. Without it, a
/// second process could take the first one's new socket, which does not listen yet, for a stale one. `None` where the
/// folder cannot be locked: it can be written but not read, or is on a file system without locks.
fn take_turn(path: &Path) -> io::Result<Option<Turn>> {
    let Ok(folder) = File::open(folder_of(path)) else { return Ok(None) };
    let deadline = Instant::now() + TURN_MAX;
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(Some(Turn(folder))),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Err(TryLockError::WouldBlock) => return Err(io::Error::other("another process has locked its folder")),
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
}

/// Removes a socket that nobody listens on, and nothing else.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), SocketError> {
    let failed = |cause: io::Error| SocketError::TakeOver { path: path.to_owned(), cause };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    // A listener with a full backlog would block us; it is a listener all the same.
    let probe = new_socket(SockFlag::SOCK_NONBLOCK).map_err(failed)?;
    match socket::connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(failed),
        Err(Errno::ENOENT) => Ok(()),
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Err(SocketError::InUse(path.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

fn set_access(spec: &SocketSpec) -> Result<(), SocketError> {
    let failed = |cause| SocketError::Access { path: spec.path.clone(), what: "mode".into(), cause };
    if spec.user.is_some() || spec.group.is_some() {
        lchown(&spec.path, spec.user, spec.group).map_err(|cause| spec.owner_failed(cause))?;
    }
    if let Some(mode) = spec.mode {
        fs::set_permissions(&spec.path, Permissions::from_mode(mode)).map_err(failed)?;
    }
    Ok(())
}

/// As `ss` writes it.
fn name_of(address: &SocketAddr) -> PathBuf {
    match (address.as_pathname(), address.as_abstract_name()) {
        (Some(path), _) => path.to_owned(),
        (None, Some(name)) => PathBuf::from(std::ffi::OsStr::from_bytes(&[b"@", name].concat())),
        (None, None) => PathBuf::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollux_testing::sockets::leave_behind;
    use std::{io::Read, os::unix::net::UnixDatagram, process::Command};

    fn spec(path: PathBuf) -> SocketSpec {
        SocketSpec { path, mode: None, user: None, group: None, any_file: false }
    }

    fn inode(path: &Path) -> u64 {
        fs::symlink_metadata(path).expect("a file").ino()
    }

    #[test]
    fn clients_connect_and_the_file_goes_with_the_listener() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("disk.sock");
        let listener = Listener::bind(&spec(path.clone())).expect("bound");
        assert_eq!(listener.path(), path);
        let mut client = UnixStream::connect(&path).expect("connects");
        drop(listener.accept().expect("a client"));
        assert_eq!(client.read(&mut [0]).expect("the end"), 0);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_taken_over() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("disk.sock");
        leave_behind(&path);
        let _listener = Listener::bind(&spec(path.clone())).expect("taken over");
        UnixStream::connect(&path).expect("connects");
    }

    #[test]
    fn a_copy_of_the_folders_descriptor_in_a_forked_child_does_not_keep_the_turn() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("disk.sock");
        let turn = take_turn(&path).expect("free").expect("a folder that can be locked");
        let _copy = turn.0.try_clone().expect("a descriptor");
        drop(turn);
        assert!(take_turn(&path).is_ok_and(|turn| turn.is_some()));
    }

    #[test]
    fn a_socket_in_use_is_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("disk.sock");
        let first = Listener::bind(&spec(path.clone())).expect("bound");
        let found = inode(&path);
        let error = Listener::bind(&spec(path.clone())).expect_err("in use").to_string();
        let words = format!("another process listens on {}: stop it, or choose another path", path.display());
        assert_eq!(error, words);
        assert_eq!(inode(&path), found);
        drop(first);
        // A socket of another type is in use as well.
        let _datagrams = UnixDatagram::bind(&path).expect("bound");
        assert!(matches!(Listener::bind(&spec(path)), Err(SocketError::InUse(_))));
    }

    #[test]
    fn a_listener_whose_backlog_is_full_is_in_use() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("disk.sock");
        let socket = new_socket(SockFlag::empty()).expect("socket");
        let address = UnixAddr::new(&path).expect("address");
        socket::bind(socket.as_raw_fd(), &address).expect("bound");
        socket::listen(&socket, Backlog::new(0).expect("backlog")).expect("listens");
        let _waiting = UnixStream::connect(&path).expect("the one that has room");
        assert!(matches!(Listener::bind(&spec(path)), Err(SocketError::InUse(_))));
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "precious").expect("file");
        std::os::unix::fs::symlink("nowhere", &link).expect("link");
        for path in [&file, &link] {
            let error = Listener::bind(&spec(path.clone())).expect_err("no socket").to_string();
            let words = format!("{} is there and is no socket: remove it, or choose another path", path.display());
            assert_eq!(error, words);
        }
        assert_eq!(fs::read(&file).expect("still there"), b"precious");
        assert!(fs::symlink_metadata(&link).is_ok());
    }

    #[test]
    fn another_ones_file_survives_the_drop() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("disk.sock");
        let listener = Listener::bind(&spec(path.clone())).expect("bound");
        // Renamed over, so that the inode cannot be the same one used again.
        fs::write(folder.path().join("other"), "").expect("file");
        fs::rename(folder.path().join("other"), &path).expect("replaced");
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn the_mode_is_exact_whatever_the_umask() {
        let folder = tempfile::tempdir().expect("folder");
        for mode in [0o600, 0o660, 0o666, 0o777] {
            let path = folder.path().join(format!("{mode:o}.sock"));
            let _listener = Listener::bind(&SocketSpec { mode: Some(mode), ..spec(path.clone()) }).expect("bound");
            assert_eq!(fs::metadata(&path).expect("socket").mode() & 0o7777, mode);
        }
    }

    #[test]
    fn owner_and_group_are_set_or_nothing_is_left() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("disk.sock");
        let spec = SocketSpec { user: Some(12345), group: Some(54321), ..spec(path.clone()) };
        match Listener::bind(&spec) {
            Ok(_listener) => {
                let found = fs::metadata(&path).expect("socket");
                assert_eq!((found.uid(), found.gid()), (12345, 54321));
            }
            Err(error) => {
                assert!(matches!(&error, SocketError::Access { what, .. } if what.starts_with("owner")), "{error}");
                assert!(!path.exists(), "removed again");
            }
        }
    }

    #[test]
    fn a_path_has_107_bytes_at_most() {
        let folder = tempfile::tempdir().expect("folder");
        let room = PATH_BYTES_MAX - folder.path().as_os_str().len() - 1;
        let _longest = Listener::bind(&spec(folder.path().join("x".repeat(room)))).expect("bound");
        let error = Listener::bind(&spec(folder.path().join("x".repeat(room + 1)))).expect_err("too long");
        assert!(matches!(error, SocketError::Bind { .. }), "{error}");
    }

    #[test]
    fn two_that_start_at_once_do_not_take_the_socket_from_each_other() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("disk.sock");
        for _ in 0..50 {
            let start = || {
                let path = path.clone();
                thread::spawn(move || Listener::bind(&spec(path)))
            };
            let ends = [start(), start(), start()].map(|thread| thread.join().expect("no panic"));
            assert_eq!(ends.iter().filter(|end| end.is_ok()).count(), 1, "{ends:?}");
            UnixStream::connect(&path).expect("the winner listens");
        }
    }

    #[test]
    fn a_locked_folder_is_named_and_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("disk.sock");
        let lock = File::open(folder.path()).expect("folder");
        lock.lock().expect("locked");
        let error = Listener::bind(&spec(path.clone())).expect_err("locked").to_string();
        let words = format!("cannot listen on {}: another process has locked its folder", path.display());
        assert_eq!(error, words);
    }

    #[test]
    fn an_inherited_socket_keeps_its_file() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("disk.sock");
        let socket = UnixListener::bind(&path).expect("bound");
        socket.set_nonblocking(true).expect("as some managers leave it");
        let listener = Listener::inherit(socket.into()).expect("inherited");
        assert_eq!(listener.path(), path);
        let _client = UnixStream::connect(&path).expect("connects");
        listener.accept().expect("a client");
        drop(listener);
        assert!(path.exists());

        let address = SocketAddr::from_abstract_name(format!("pollux-test-{}", std::process::id())).expect("address");
        let socket = UnixListener::bind_addr(&address).expect("bound");
        let listener = Listener::inherit(socket.into()).expect("inherited");
        assert_eq!(listener.path(), Path::new(&format!("@pollux-test-{}", std::process::id())));
    }

    #[test]
    fn what_is_no_listening_unix_stream_socket_is_refused() {
        let file: OwnedFd = tempfile::tempfile().expect("file").into();
        let datagrams: OwnedFd = UnixDatagram::unbound().expect("socket").into();
        let internet: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0").expect("socket").into();
        let connection: OwnedFd = UnixStream::pair().expect("sockets").0.into();
        let cases = [
            (file, "it is no socket"),
            (datagrams, "it is of type Datagram"),
            (internet, "it is of another address family"),
            (connection, "it is a connection"),
        ];
        for (descriptor, reason) in cases {
            let number = descriptor.as_raw_fd();
            let error = Listener::inherit(descriptor).expect_err(reason).to_string();
            let words =
                format!("descriptor {number}, which was inherited, is not a UNIX stream socket that listens: {reason}");
            assert_eq!(error, words);
        }
    }

    #[test]
    fn neither_listener_nor_connections_go_to_children() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("disk.sock");
        let listener = Listener::bind(&spec(path.clone())).expect("bound");
        let _client = UnixStream::connect(&path).expect("connects");
        let connection = listener.accept().expect("a client");
        for number in [listener.as_raw_fd(), connection.as_raw_fd()] {
            let child = Command::new("test").arg("-e").arg(format!("/proc/self/fd/{number}")).status().expect("test");
            assert_eq!(child.code(), Some(1), "descriptor {number} is there");
        }
    }
}
