//! The servers: each a process of its own, pinned to the same CPU.
use super::{
    medium::Medium,
    work::{Aio, Work},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pollux_benches::plugin;
use pollux_testing::build;
use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
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
    pub(crate) fn pollux(work: Work, medium: &Medium, cpu: usize) -> io::Result<Self> {
        static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
        let program = PROGRAM.get_or_init(|| {
            for name in ["null", "mem", "uring"] {
                plugin(name);
            }
            build::program("pollux")
        });
        let (config, socket) = (medium.folder().join("disks.toml"), medium.folder().join("pollux.sock"));
        let block = block(work, medium);
        let text = format!(
            "[worker.io0]\ncpu = {cpu}\n[block.disk0]\n{block}\n[device.blk0]\ntype = \"blk\"\nblock = \"disk0\"\n\
             workers = [\"io0\"]\ntransport = \"vhost-user\"\nsocket = {socket:?}\n"
        );
        fs::write(&config, text)?;
        let mut command = Command::new(program);
        command.arg("serve").arg(config).arg("--quiet");
        Self::start(&mut command, socket)
    }

    /// qemu-storage-daemon with one I/O thread, all of it on `cpu`.
    pub(crate) fn qemu_storage_daemon(work: Work, medium: &Medium, aio: Option<Aio>, cpu: usize) -> io::Result<Self> {
        let socket = medium.folder().join(format!("qemu-{}.sock", aio.map_or("null", Aio::name)));
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &cpu.to_string(), "qemu-storage-daemon"]);
        command.args(["--object", "iothread,id=t", "--blockdev", &blockdev(work, medium, aio)]);
        let export = format!(
            "type=vhost-user-blk,id=e,addr.type=unix,addr.path={},node-name=n,writable=on,num-queues=1,iothread=t",
            socket.display()
        );
        command.arg("--export").arg(export);
        Self::start(&mut command, socket)
    }

    fn start(command: &mut Command, socket: PathBuf) -> io::Result<Self> {
        // In a group of its own, so that Ctrl-C reaches us alone, who end it.
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).spawn()?;
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

/// Our side's `[block]`.
fn block(work: Work, medium: &Medium) -> String {
    let path = medium.path();
    match work {
        Work::Null | Work::Packed | Work::PackedDirect => {
            format!("plugin = \"null\"\noptions = {{ size = {} }}", Medium::BYTES)
        }
        // The same file as theirs: pages that were never written would all be one, and in the cache.
        Work::Memory => format!("plugin = \"mem\"\noptions = {{ path = {path:?}, lock = false }}"),
        Work::Tmpfs | Work::Zram | Work::File => {
            format!("plugin = \"uring\"\noptions = {{ path = {path:?}, direct = true, lock = false }}")
        }
    }
}

/// Their side's `--blockdev`.
fn blockdev(work: Work, medium: &Medium, aio: Option<Aio>) -> String {
    let Some(aio) = aio else {
        return format!("driver=null-co,node-name=n,size={},read-zeroes=off", Medium::BYTES);
    };
    let driver = if work == Work::Zram { "host_device" } else { "file" };
    let (path, aio) = (medium.path().display(), aio.name());
    // Direct on tmpfs as well: native AIO does nothing else, and there is no page cache to pass by.
    format!("driver={driver},node-name=n,filename={path},aio={aio},cache.direct=on,locking=off")
}

/// The first line of what a program says of its version; `None`: there is no such program.
pub(crate) fn version(name: &str) -> Option<String> {
    let output = Command::new(name).arg("--version").stdin(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or(name).to_owned())
}
