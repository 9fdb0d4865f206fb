//! The process that serves the disks: `pollux serve`, or for comparison qemu-storage-daemon.
use super::{qmp::Qmp, service::Service};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::{
    fmt::Write,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Which program serves.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendKind {
    /// `pollux serve`
    Pollux,
    /// QEMU's own server: what fails with it too is no fault of Pollux
    QemuStorageDaemon,
}

/// A disk to serve.
pub(super) struct Medium {
    pub(super) image: PathBuf,
    pub(super) queues: u32,
    pub(super) held: Option<Held>,
}

/// What can be made to hang on a disk of `pollux serve`: see [`Backend::hold`].
pub(super) struct Held {
    /// The plugin for media that misbehave.
    pub(super) plugin: PathBuf,
    /// Reads that touch these bytes.
    pub(super) range: Range<u64>,
}

/// The server of a test's disks. It may come and go; sockets stay the same.
pub(super) struct Backend {
    kind: BackendKind,
    pollux: PathBuf,
    /// The test's own.
    folder: PathBuf,
    /// Where sockets are: their paths are short, as they must be.
    sockets: PathBuf,
    media: Vec<Medium>,
    service: Option<Service>,
    echo: bool,
}

/// How long the server may take to begin, and to end after SIGTERM.
const START_LIMIT: Duration = Duration::from_secs(20);
const END_LIMIT: Duration = Duration::from_secs(20);
/// How long a guest may take until it reads what hangs.
const HANG_LIMIT: Duration = Duration::from_secs(90);

impl Backend {
    /// Describes a server; [`Self::start`] runs it.
    pub(super) fn new(
        kind: BackendKind,
        pollux: &Path,
        folder: &Path,
        sockets: &Path,
        media: Vec<Medium>,
        echo: bool,
    ) -> Self {
        let [pollux, folder, sockets] = [pollux, folder, sockets].map(Path::to_owned);
        Backend { kind, pollux, folder, sockets, media, service: None, echo }
    }

    /// The socket of a disk.
    pub(super) fn socket(&self, disk: usize) -> PathBuf {
        self.sockets.join(format!("blk{disk}.sock"))
    }

    /// The socket of a disk for a second front end at the same time: the same one.
    ///
    /// # Errors
    /// The server cannot be told of it.
    pub(super) fn second_socket(&self, disk: usize) -> Result<PathBuf, String> {
        if self.kind == BackendKind::Pollux {
            return Ok(self.socket(disk));
        }
        // It takes one connection a socket, so it gets another for the same disk.
        let socket = self.sockets.join(format!("blk{disk}-second.sock"));
        let export = json!({
            "type": "vhost-user-blk", "id": format!("second{disk}"), "node-name": format!("disk{disk}"),
            "writable": true, "num-queues": self.media[disk].queues, "addr": { "type": "unix", "path": socket },
        });
        self.monitor()?.execute("block-export-add", &export)?;
        Ok(socket)
    }

    pub(super) fn media(&self) -> &[Medium] {
        &self.media
    }

    /// Runs the server, for the first time or again, and waits until it listens on all sockets.
    ///
    /// # Errors
    /// It did not start, ended, or does not listen in time.
    pub(super) fn start(&mut self) -> Result<(), String> {
        let command = match self.kind {
            BackendKind::Pollux => self.pollux_serve()?,
            BackendKind::QemuStorageDaemon => self.storage_daemon(),
        };
        let mut service = Service::start("the backend", &command, &self.folder.join("backend.log"), self.echo)?;
        let start = Instant::now();
        while !(0..self.media.len()).all(|disk| is_listening(&self.socket(disk))) {
            if !service.is_running() || start.elapsed() > START_LIMIT {
                return Err("the backend does not listen on all its sockets".to_owned());
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.service = Some(service);
        Ok(())
    }

    /// Ends the server as a crash would.
    ///
    /// # Errors
    /// It had ended before.
    pub(super) fn kill9(&mut self) -> Result<(), String> {
        let mut service = self.running()?;
        service.kill()
    }

    /// Ends the server by SIGTERM. It must take that as a wish that it fulfils, with status 0.
    ///
    /// # Errors
    /// It had ended before, ends otherwise, or not in time.
    pub(super) fn terminate(&mut self) -> Result<(), String> {
        let mut service = self.running()?;
        service.signal("TERM")?;
        let status = service.wait_exit(END_LIMIT)?;
        if status.success() { Ok(()) } else { Err(format!("after SIGTERM the backend ended with {status}")) }
    }

    /// Makes a disk larger while it is in use.
    ///
    /// # Errors
    /// The image cannot grow, or the server not be told.
    pub(super) fn grow(&mut self, disk: usize, bytes: u64) -> Result<(), String> {
        match self.kind {
            BackendKind::Pollux => {
                let image = &self.media[disk].image;
                let grown = fs::File::options().write(true).open(image).and_then(|file| file.set_len(bytes));
                grown.map_err(|error| format!("{}: {error}", image.display()))?;
                self.service.as_ref().ok_or("no backend runs")?.signal("HUP")
            }
            BackendKind::QemuStorageDaemon => {
                let arguments = json!({ "node-name": format!("disk{disk}"), "size": bytes });
                self.monitor()?.execute("block_resize", &arguments).map(drop)
            }
        }
    }

    /// Lets reads hang from now on that touch what can be held, for as long as this server runs.
    ///
    /// # Errors
    /// A file cannot be made.
    pub(super) fn hold(&self) -> Result<(), String> {
        let file = self.hold_file();
        fs::write(&file, "").map_err(|error| format!("{}: {error}", file.display()))
    }

    /// Lets nothing hang that comes from now on.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub(super) fn release(&self) -> Result<(), String> {
        let file = self.hold_file();
        fs::remove_file(&file).map_err(|error| format!("{}: {error}", file.display()))
    }

    fn hold_file(&self) -> PathBuf {
        self.folder.join("hold")
    }

    /// Waits until a request stays in flight, as the server's own numbers have it.
    ///
    /// # Errors
    /// There is none in time.
    pub(super) fn wait_in_flight(&self) -> Result<(), String> {
        let process = self.service.as_ref().ok_or("no backend runs")?.id().to_string();
        let (start, mut seen) = (Instant::now(), 0);
        // A request that hangs is seen twice; a quick one hardly ever.
        while seen < 3 {
            if start.elapsed() > HANG_LIMIT {
                return Err("no request hangs in the backend".to_owned());
            }
            let stats = Command::new(&self.pollux).args(["stats", "--json", &process]).output();
            let stats = stats.map_err(|error| format!("pollux stats: {error}"))?;
            let stats: Value =
                serde_json::from_slice(&stats.stdout).map_err(|error| format!("pollux stats: {error}"))?;
            let is_hanging = stats["queues"][0]["in_flight"].as_u64().is_some_and(|count| count > 0);
            seen = if is_hanging { seen + 1 } else { 0 };
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn running(&mut self) -> Result<Service, String> {
        let mut service = self.service.take().ok_or("no backend runs")?;
        if service.is_running() { Ok(service) } else { Err("the backend has ended by itself".to_owned()) }
    }

    /// qemu-storage-daemon's QMP.
    fn monitor(&self) -> Result<Qmp, String> {
        Qmp::connect(&self.sockets.join(MONITOR))
    }

    fn pollux_serve(&self) -> Result<Command, String> {
        let mut config = String::from("[worker.io0]\nidle = \"adaptive\"  # the guest needs the processors too\n");
        for (index, medium) in self.media.iter().enumerate() {
            let (image, socket) = (medium.image.display(), self.socket(index));
            let (queues, socket) = (medium.queues, socket.display());
            let (plugin, options) = match &medium.held {
                // Without direct access, which not every file system has.
                None => ("uring".to_owned(), "direct = false".to_owned()),
                Some(Held { plugin, range: Range { start, end } }) => {
                    let file = self.hold_file();
                    let rule = format!("from = {start}, to = {end}, hang = true, since = \"{}\"", file.display());
                    (plugin.display().to_string(), format!("script = [{{ operation = \"read\", {rule} }}]"))
                }
            };
            let written = write!(
                config,
                "\n[block.disk{index}]\nplugin = \"{plugin}\"\noptions = {{ path = \"{image}\", {options} }}\n\n\
                 [device.blk{index}]\ntype = \"blk\"\nblock = \"disk{index}\"\nworkers = [\"io0\"]\nqueues = {queues}\n\
                 transport = \"vhost-user\"\nsocket = \"{socket}\"\n"
            );
            written.map_err(|error| error.to_string())?;
        }
        let path = self.folder.join("disks.toml");
        fs::write(&path, config).map_err(|error| format!("{}: {error}", path.display()))?;
        if !self.pollux.exists() {
            return Err(format!("{} is not built", self.pollux.display()));
        }
        let mut command = Command::new(&self.pollux);
        command.arg("serve").arg("-v").arg(path);
        Ok(command)
    }

    fn storage_daemon(&self) -> Command {
        let mut command = Command::new(STORAGE_DAEMON);
        let monitor = self.sockets.join(MONITOR);
        command.arg("--chardev").arg(format!("socket,id=qmp,server=on,wait=off,path={}", monitor.display()));
        command.args(["--monitor", "chardev=qmp"]);
        for (index, medium) in self.media.iter().enumerate() {
            let (image, queues) = (medium.image.display(), medium.queues);
            let node = format!("driver=file,node-name=disk{index},filename={image},discard=unmap");
            command.arg("--blockdev").arg(node);
            let socket = self.socket(index);
            command.arg("--export").arg(format!(
                "type=vhost-user-blk,id=blk{index},node-name=disk{index},writable=on,num-queues={queues},\
                 addr.type=unix,addr.path={}",
                socket.display()
            ));
        }
        command
    }
}

const MONITOR: &str = "backend-qmp.sock";
pub(super) const STORAGE_DAEMON: &str = "qemu-storage-daemon";

/// Whether somebody listens on a socket. Asking by connecting would take the place of a front end.
fn is_listening(path: &Path) -> bool {
    // Num RefCount Protocol Flags Type St Inode Path; the flag is __SO_ACCEPTCON (Linux: net/unix/af_unix.c).
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let path = path.to_string_lossy();
    sockets.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.nth(3) == Some("00010000") && fields.next_back() == Some(path.as_ref())
    })
}
