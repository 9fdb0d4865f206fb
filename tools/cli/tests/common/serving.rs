//! A running `pollux serve`.
use super::{Folder, Ran, running::Running};
use std::{
    fs,
    os::unix::net::UnixDatagram,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running program that is ready, as it has told by NOTIFY_SOCKET. Killed when dropped.
pub(crate) struct Serving {
    program: Running,
    manager: UnixDatagram,
}

impl Serving {
    /// Starts `command`, which is made of these arguments, and waits until it is ready.
    pub(crate) fn start(folder: &Folder, mut command: Command) -> Self {
        let place = folder.path().join("notify");
        let _ = fs::remove_file(&place);
        let manager = UnixDatagram::bind(&place).expect("a service manager's socket");
        command.env("NOTIFY_SOCKET", &place).stdout(Stdio::piped());
        let child = command.spawn().expect("starts");
        let serving = Serving::of(child, manager);
        assert_eq!(serving.told(), "READY=1");
        serving
    }

    /// A program that was started otherwise, and tells `manager` of itself.
    pub(crate) fn of(child: Child, manager: UnixDatagram) -> Self {
        manager.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Serving { program: Running::of(child), manager }
    }

    /// What it tells next.
    pub(crate) fn told(&self) -> String {
        let mut text = [0; 256];
        let length = self.manager.recv(&mut text).expect("the program tells its state");
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    pub(crate) fn id(&self) -> u32 {
        self.program.id()
    }

    pub(crate) fn signal(&self, signal: i32) {
        self.program.signal(signal);
    }

    /// Ends it at once, in the middle of whatever it does. Once is enough.
    pub(crate) fn kill(&mut self) {
        self.program.kill();
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn stop(self) -> Ran {
        self.signal(libc::SIGTERM);
        assert_eq!(self.told(), "STOPPING=1");
        self.wait()
    }

    /// Waits for the end.
    pub(crate) fn wait(self) -> Ran {
        self.program.wait()
    }
}
