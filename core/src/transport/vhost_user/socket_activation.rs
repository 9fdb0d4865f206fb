//! Sockets that a service manager has opened for this process, as systemd does: see sd_listen_fds(3).
//!
//! The manager passes them as descriptors 3 and up and says so in the environment: `LISTEN_PID` names the process that
//! they are meant for, `LISTEN_FDS` the number of descriptors, `LISTEN_FDNAMES` their names with colons between.
use super::{
    doorkeeper::Doorkeeper,
    socket::{Listener, SocketError},
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::{
    env, fs,
    os::{
        fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    process,
    sync::atomic::{AtomicBool, Ordering},
};

/// The number of the first descriptor (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;
/// More than any service manager opens for one process. Guards against nonsensical numbers.
const COUNT_MAX: i32 = 1024;

/// Why the inherited sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// The environment contradicts itself.
    #[error("LISTEN_FDS={0} is no number of sockets")]
    Count(String),
    /// An announced descriptor is missing.
    #[error("LISTEN_FDS announces descriptor {descriptor}, but it cannot be used: {cause}")]
    Missing {
        /// Its number.
        descriptor: RawFd,
        /// Why.
        cause: std::io::Error,
    },
    /// Clients, and their guests, would have to wait for the whole start.
    #[error("cannot turn clients away from inherited sockets until their devices are served: {0}")]
    Doorkeeper(std::io::Error),
    /// A descriptor is something else.
    #[error("{name}: {cause}")]
    Socket {
        /// Its name in `LISTEN_FDNAMES`.
        name: String,
        /// What is wrong with it.
        cause: SocketError,
    },
}

/// One inherited socket.
#[derive(Debug)]
pub struct Inherited {
    /// Its name in `LISTEN_FDNAMES`: what `FileDescriptorName=` says, by default the name of the socket unit.
    pub name: String,
    /// The socket.
    pub listener: Listener,
}

/// The inherited sockets that no device has taken yet.
#[derive(Debug, Default)]
pub struct InheritedSockets {
    sockets: Vec<Inherited>,
    doorkeeper: Option<Doorkeeper>,
}

impl InheritedSockets {
    /// Takes the sockets meant for this process, so that no child inherits them. They can be taken only once;
    /// afterwards, there are none.
    ///
    /// Clients that connect are turned away until [`admit`](Self::admit), so that they do not wait for slow steps of
    /// the start.
    ///
    /// Call it early: descriptors must still be those that the process was started with.
    ///
    /// # Errors
    /// An announced descriptor is missing, or is not a listening UNIX stream socket.
    pub fn take() -> Result<InheritedSockets, ActivationError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let variable = |name: &str| env::var(name).ok();
        let names = names(variable("LISTEN_PID"), variable("LISTEN_FDS"), variable("LISTEN_FDNAMES"), process::id())?;
        if names.is_empty() || TAKEN.swap(true, Ordering::Relaxed) {
            return Ok(InheritedSockets::default());
        }
        // All are taken over before one is refused, so that none stays open.
        let descriptors: Vec<_> = names.into_iter().zip(FIRST..).map(|(name, number)| (name, own(number))).collect();
        let sockets = descriptors.into_iter().map(|(name, descriptor)| match Listener::inherit(descriptor?) {
            Ok(listener) => Ok(Inherited { name, listener }),
            Err(cause) => Err(ActivationError::Socket { name, cause }),
        });
        let sockets = sockets.collect::<Result<Vec<_>, _>>()?;
        let doorkeeper = Doorkeeper::start(sockets.iter().map(|socket| &socket.listener));
        let doorkeeper = doorkeeper.map_err(ActivationError::Doorkeeper)?;
        Ok(InheritedSockets { sockets, doorkeeper: Some(doorkeeper) })
    }

    /// The devices are served from now on: clients are not turned away any more.
    pub fn admit(&mut self) {
        self.doorkeeper = None;
    }

    /// Takes the socket that is bound to `path`.
    pub fn bound_to(&mut self, path: &Path) -> Option<Listener> {
        self.remove(|socket| socket.listener.path() == path || is_same_file(socket.listener.path(), path))
    }

    /// Takes the socket with that name.
    pub fn named(&mut self, name: &str) -> Option<Listener> {
        self.remove(|socket| socket.name == name)
    }

    /// Those that have not been taken.
    pub fn rest(&self) -> &[Inherited] {
        &self.sockets
    }

    fn remove(&mut self, wanted: impl Fn(&Inherited) -> bool) -> Option<Listener> {
        let index = self.sockets.iter().position(wanted)?;
        Some(self.sockets.remove(index).listener)
    }
}

/// The names of the descriptors that are meant for the process `own_id`, in order.
fn names(
    process: Option<String>,
    count: Option<String>,
    names: Option<String>,
    own_id: u32,
) -> Result<Vec<String>, ActivationError> {
    // The variables may have been meant for a parent of ours.
    if process.and_then(|id| id.parse().ok()) != Some(own_id) {
        return Ok(Vec::new());
    }
    let Some(count) = count else { return Ok(Vec::new()) };
    let Some(number) = count.parse().ok().filter(|number| (0..=COUNT_MAX).contains(number)) else {
        return Err(ActivationError::Count(count));
    };
    let mut names: Vec<String> = names
        .filter(|names| !names.is_empty())
        .map_or_else(Vec::new, |names| names.split(':').map(str::to_owned).collect());
    // As sd_listen_fds_with_names does for sockets without a name.
    names.resize(number as usize, "unknown".into());
    Ok(names)
}

/// Takes ownership of the inherited descriptor.
fn own(number: RawFd) -> Result<OwnedFd, ActivationError> {
    // SAFETY: it is not used beyond this function, where it is open if the first call succeeds; if it is not open, the
    // call fails and does nothing.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .map_err(|error| ActivationError::Missing { descriptor: number, cause: error.into() })?;
    // SAFETY: it is open, and the environment says that it was opened for this process; nothing else here knows of it,
    // as it is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `/run/x` and `/var/run/x` are one path on most systems.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()));
    identity(one).is_some_and(|found| identity(other) == Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(process: &str, count: Option<&str>, fd_names: Option<&str>) -> Result<Vec<String>, String> {
        names(Some(process.into()), count.map(Into::into), fd_names.map(Into::into), 7)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_environment_names_the_sockets() {
        let list = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(said("7", Some("2"), Some("blk0:blk1")), list(&["blk0", "blk1"]));
        assert_eq!(said("7", Some("2"), Some("blk0")), list(&["blk0", "unknown"]));
        assert_eq!(said("7", Some("2"), None), list(&["unknown", "unknown"]));
        assert_eq!(said("7", Some("1"), Some("")), list(&["unknown"]));
        assert_eq!(said("7", Some("0"), None), list(&[]));
        assert_eq!(said("7", None, None), list(&[]));
        assert_eq!(names(None, Some("2".into()), None, 7).expect("nothing"), Vec::<String>::new());
    }

    #[test]
    fn what_is_meant_for_another_process_is_not_ours() {
        for process in ["8", "", "x", "-7"] {
            assert_eq!(said(process, Some("nonsense"), None), Ok(Vec::new()), "{process}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for count in ["-1", "x", "", "1025", "99999999999"] {
            assert_eq!(said("7", Some(count), None), Err(format!("LISTEN_FDS={count} is no number of sockets")));
        }
    }
}
