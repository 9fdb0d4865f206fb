//! The servers: each a process of its own, pinned to the same CPU.
use super::work::Work;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pollux_core::testing::build;
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server.
pub(crate) struct Rival {
    child: Child,
    socket: PathBuf,
}

impl Rival {
    /// `pollux serve` with one spinning worker on `cpu`.
    pub(crate) fn pollux(work: Work, folder: &Path, cpu: usize) -> io::Result<Self> {
        for plugin in ["null", "mem", "uring"] {
            build::plugin(&format!("pollux-{plugin}"));
        }
        let (config, socket) = (folder.join("disks.toml"), folder.join("pollux.sock"));
        let block = work.block(folder);
        let text = format!(
            "[worker.io0]\ncpu = {cpu}\n[block.disk0]\n{block}\n[device.blk0]\ntype = \"blk\"\nblock = \"disk0\"\n\
             workers = [\"io0\"]\ntransport = \"vhost-user\"\nsocket = {socket:?}\n"
        );
        fs::write(&config, text)?;
        let mut command = Command::new(build::program("pollux"));
        command.arg("serve").arg(config).arg("--quiet");
        Self::start(&mut command, socket)
    }

    /// qemu-storage-daemon with one I/O thread, all of it on `cpu`.
    pub(crate) fn qemu_storage_daemon(work: Work, folder: &Path, cpu: usize) -> io::Result<Self> {
        let socket = folder.join("qemu.sock");
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &cpu.to_string(), "qemu-storage-daemon"]);
        command.args(["--object", "iothread,id=t", "--blockdev", &work.blockdev(folder)]);
        let export = format!(
            "type=vhost-user-blk,id=e,addr.type=unix,addr.path={},node-name=n,writable=on,num-queues=1,iothread=t",
            socket.display()
        );
        command.arg("--export").arg(export);
        Self::start(&mut command, socket)
    }

    fn start(command: &mut Command, socket: PathBuf) -> io::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let mut rival = Rival { child, socket };
        let start = Instant::now();
        while !rival.socket.exists() {
            if let Some(status) = rival.child.try_wait()? {
                return Err(io::Error::other(format!("{command:?} has ended: {status}")));
            }
            if start.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("{command:?} does not listen")));
            }
            thread::yield_now();
        }
        Ok(rival)
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Holds it up: it takes no CPU any more.
    pub(crate) fn stop(&self) -> io::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) -> io::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        // It may have ended by itself, which is nothing to report any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether there is a program of that name.
pub(crate) fn has_program(name: &str) -> bool {
    Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}
