//! A QEMU with a stock Debian guest: its command line, its console, its QMP.
use super::{firmware::Firmware, qmp::Qmp, service::Service};
use crate::lab::QUICK_BOOT;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// What a machine is made of.
pub(super) struct MachineSpec<'a> {
    /// Part of the names of its log and sockets.
    pub(super) name: &'a str,
    pub(super) boot: Boot<'a>,
    pub(super) processors: u32,
    /// Sockets and numbers of queues.
    pub(super) disks: &'a [(PathBuf, u32)],
    pub(super) interface: Interface,
    /// Wait for another machine's state instead of booting.
    pub(super) incoming: Option<&'a Path>,
}

/// How a machine comes to its kernel.
pub(super) enum Boot<'a> {
    /// QEMU has it in memory.
    Kernel {
        kernel: &'a Path,
        initrd: &'a Path,
        /// Added to the kernel's command line.
        command_line: &'a str,
    },
    /// A firmware loads it from the first disk.
    Firmware(Firmware),
}

/// By which interfaces a disk can be driven (virtio 1.3, 1.3.1).
#[derive(Clone, Copy)]
pub(super) enum Interface {
    /// Both, as QEMU has it by default.
    Transitional,
    Modern,
    Legacy,
}

impl Interface {
    /// QEMU's properties of a device.
    fn properties(self) -> &'static str {
        match self {
            Interface::Transitional => "",
            Interface::Modern => ",disable-legacy=on",
            Interface::Legacy => ",disable-modern=on,disable-legacy=off",
        }
    }
}

impl Boot<'_> {
    fn arguments(&self, folder: &Path) -> Result<Vec<String>, String> {
        match self {
            Boot::Firmware(firmware) => firmware.arguments(folder),
            Boot::Kernel { kernel, initrd, command_line } => {
                let [kernel, initrd] = [kernel, initrd].map(|path| path.display().to_string());
                let command_line = format!("{QUICK_BOOT} {PERIODIC_TICK} {command_line}").trim().to_owned();
                let arguments =
                    ["-bios", "qboot.rom", "-kernel", &kernel, "-initrd", &initrd, "-append", &command_line];
                Ok(arguments.map(str::to_owned).into())
            }
        }
    }

    /// The property by which firmware tries disks in order. A kernel that QEMU loads itself takes the first place.
    fn order(&self, index: usize) -> String {
        match self {
            Boot::Firmware(_) => format!(",bootindex={index}"),
            Boot::Kernel { .. } => String::new(),
        }
    }
}

/// A running QEMU.
pub(super) struct Machine {
    console: Service,
    qmp: Qmp,
    /// The last round that the guest's load has said to be on the disk.
    synced: u64,
}

pub(super) const QEMU: &str = "qemu-system-x86_64";

/// How long a guest may take for a step, on a machine with other work to do.
const STEP_LIMIT: Duration = Duration::from_secs(90);
const MEMORY: &str = "256M";
/// Emulation on a busy host now and then loses the one interrupt that an idle processor's timer was set for, after
/// which that processor sleeps for ever (the kernel: "rcu_preempt kthread timer wakeup didn't happen"). A tick that
/// repeats gets over it.
pub(super) const PERIODIC_TICK: &str = "nohz=off highres=off";

impl Machine {
    /// # Errors
    /// QEMU does not start, or its QMP does not answer.
    pub(super) fn start(spec: &MachineSpec<'_>, folder: &Path, sockets: &Path, echo: bool) -> Result<Self, String> {
        let monitor = sockets.join(format!("{}-qmp.sock", spec.name));
        let mut command = Command::new(QEMU);
        command
            .args(["-nodefaults", "-M", "q35,memory-backend=m,i8042=off"])
            .args(spec.boot.arguments(folder)?)
            .args(["-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", &spec.processors.to_string(), "-m", MEMORY])
            .arg("-object")
            .arg(format!("memory-backend-memfd,id=m,size={MEMORY},share=on"))
            .args(["-display", "none", "-serial", "stdio"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            // A place to plug in another disk.
            .args(["-device", "pcie-root-port,id=spare,chassis=1"]);
        for (index, (socket, queues)) in spec.disks.iter().enumerate() {
            command
                .arg("-chardev")
                .arg(format!("socket,id=chr{index},path={},reconnect-ms={RECONNECT_MS}", socket.display()))
                .arg("-device")
                .arg(format!(
                    "vhost-user-blk-pci,id=disk{index},chardev=chr{index},num-queues={queues}{}{}",
                    spec.boot.order(index),
                    spec.interface.properties()
                ));
        }
        if let Some(socket) = spec.incoming {
            command.arg("-incoming").arg(format!("unix:{}", socket.display()));
        }
        let log = folder.join(format!("{}.log", spec.name));
        let mut console = Service::start(spec.name, &command, &log, echo)?;
        let qmp = Qmp::connect(&monitor)
            .map_err(|why| if console.is_running() { why } else { format!("{} has ended: {why}", spec.name) })?;
        Ok(Machine { console, qmp, synced: 0 })
    }

    /// Waits for the next line that begins so and returns the rest of it.
    ///
    /// # Errors
    /// It did not come in time, or instead of it came a fault of the guest: of its script, its kernel or a disk.
    pub(super) fn expect(&mut self, beginning: &str) -> Result<String, String> {
        self.console.wait_line(&format!("{beginning:?}"), STEP_LIMIT, |line| {
            if let Some(rest) = line.strip_prefix(beginning) {
                return Ok(Some(rest.trim().to_owned()));
            }
            no_fault(line)
        })
    }

    /// Waits until the load has put so many more rounds on the disk, which it does only if all requests get done.
    ///
    /// # Errors
    /// As [`Self::expect`].
    pub(super) fn expect_rounds(&mut self, more: u64) -> Result<u64, String> {
        let goal = self.synced + more;
        self.synced =
            self.console.wait_line(&format!("round {goal} of the load"), STEP_LIMIT, |line| {
                match round(line).filter(|round| *round >= goal) {
                    Some(round) => Ok(Some(round)),
                    None => no_fault(line),
                }
            })?;
        Ok(self.synced)
    }

    /// Takes over what the load has done on a machine that it has left for this one, and ends that.
    ///
    /// # Errors
    /// A fault was the last that it said there.
    pub(super) fn continue_from(&mut self, mut other: Machine) -> Result<(), String> {
        for line in other.console.unread() {
            no_fault::<()>(&line)?;
            other.synced = round(&line).unwrap_or(other.synced);
        }
        self.synced = other.synced;
        Ok(())
    }

    /// Sends the guest's script a word.
    ///
    /// # Errors
    /// QEMU has ended.
    pub(super) fn say(&mut self, word: &str) -> Result<(), String> {
        self.console.say(word)
    }

    /// Waits for the guest's good end and for QEMU's.
    ///
    /// # Errors
    /// One of them ended otherwise.
    pub(super) fn finish(mut self) -> Result<(), String> {
        self.expect("GUEST PASSED")?;
        let status = self.console.wait_exit(STEP_LIMIT)?;
        if status.success() { Ok(()) } else { Err(format!("QEMU: {status}")) }
    }

    /// Runs a QMP command.
    ///
    /// # Errors
    /// QEMU's words.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        self.qmp.execute(command, arguments)
    }

    /// Plugs another disk in.
    ///
    /// # Errors
    /// QEMU's words.
    pub(super) fn plug(&mut self, socket: &Path, queues: u32) -> Result<(), String> {
        let address = json!({ "type": "unix", "data": { "path": socket } });
        let backend =
            json!({ "type": "socket", "data": { "addr": address, "server": false, "reconnect-ms": RECONNECT_MS } });
        self.execute("chardev-add", &json!({ "id": "plugged-chr", "backend": backend }))?;
        let device = json!({
            "driver": "vhost-user-blk-pci", "id": "plugged", "bus": "spare", "chardev": "plugged-chr",
            "num-queues": queues,
        });
        self.execute("device_add", &device).map(drop)
    }

    /// Takes the disk out that was plugged in, once the guest has let go of it.
    ///
    /// # Errors
    /// QEMU's words, or the guest does not let go.
    pub(super) fn unplug(&mut self) -> Result<(), String> {
        self.execute("device_del", &json!({ "id": "plugged" }))?;
        self.qmp.wait_event("DEVICE_DELETED", &json!({ "device": "plugged" }), STEP_LIMIT)?;
        self.execute("chardev-remove", &json!({ "id": "plugged-chr" })).map(drop)
    }
}

/// How soon QEMU tries again to reach a backend that has gone.
const RECONNECT_MS: u32 = 100;

/// The round that the load says to have on the disk.
fn round(line: &str) -> Option<u64> {
    line.strip_prefix("SYNCED ")?.trim().parse().ok()
}

/// Lines of the console that no test goes on after.
fn no_fault<T>(line: &str) -> Result<Option<T>, String> {
    let faults = ["GUEST FAILED", "LOAD FAILED", "Kernel panic", "I/O error", "critical medium error", "L2 EXIT"];
    match faults.iter().any(|fault| line.contains(fault)) {
        true => Err(format!("the guest said: {line}")),
        false => Ok(None),
    }
}
