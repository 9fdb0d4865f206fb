//! `pollux run` with guests of a few instructions, which print a word and then switch off, reset or wait.
//!
//! They need /dev/kvm, but no kernel and no disk: what they show is the program around the machine.
mod common;

use common::{Folder, POWER_OFF, Ran, WORKER, guest};
use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

/// Resets.
const RESET: (u16, u8) = (0xcf9, 0x06);
/// Does nothing.
const NOTHING: (u16, u8) = (0x80, 0);

/// The folder with a guest in it and a configuration to run it; nothing where there is no KVM.
fn folder_with(text: &str, end: (u16, u8), vm_keys: &str) -> Option<Folder> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        println!("SKIPPED: no KVM: /dev/kvm: {error}");
        return None;
    }
    let folder = Folder::new();
    folder.write("guest.elf", guest(text, end));
    let config = format!(
        "[vm]\nmemory = \"64M\"\nkernel = \"guest.elf\"\n{vm_keys}{WORKER}\
         [block.disk0]\nplugin = \"mem\"\noptions = {{ path = \"disk.img\" }}\n\
         [device.blk0]\ntype = \"blk\"\nblock = \"disk0\"\nworkers = [\"io0\"]\nqueues = 2\n\
         [device.blk1]\ntype = \"blk\"\nblock = \"zero\"\nworkers = [\"io0\"]\ntransport = \"mmio\"\n\
         [block.zero]\nplugin = \"null\"\n"
    );
    folder.write("vm.toml", config);
    Some(folder)
}

#[test]
fn a_power_off_ends_with_success_and_the_numbers() {
    let Some(folder) = folder_with("hello\n", POWER_OFF, "") else { return };
    let ran = folder.run(&["run", "vm.toml", "--stats", "--stats-json", "stats.json"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 9, "{}", ran.stdout);
    assert_eq!(lines[0], "hello", "the console comes first");
    assert!(lines[1].starts_with("device  worker  requests"), "{}", ran.stdout);
    assert!(lines[2].starts_with("blk0    io0") && lines[3].starts_with("blk1    io0"), "{}", ran.stdout);
    assert!(lines[5].starts_with("worker  CPU  idle") && lines[6].starts_with("io0 "), "{}", ran.stdout);
    assert!(lines[8].starts_with("backend disk0 (mem): "), "{}", ran.stdout);
    let text = std::fs::read(folder.path().join("stats.json")).expect("statistics");
    let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let queues: Vec<String> = json["queues"]
        .as_array()
        .expect("queues")
        .iter()
        .map(|queue| format!("{} {} {}", queue["device"], queue["queue"], queue["worker"]))
        .collect();
    assert_eq!(queues, ["\"blk0\" 0 \"io0\"", "\"blk0\" 1 \"io0\"", "\"blk1\" 0 \"io0\""]);
    assert!(json["vcpus"][0]["exits"].as_u64() > Some(0), "{json}");
}

#[test]
fn logs_and_the_console_do_not_mix() {
    let Some(folder) = folder_with("hello\n", POWER_OFF, "") else { return };
    let ran = folder.run(&["run", "vm.toml", "-v"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(0), "hello\n"));
    for line in ["plugin mem", "worker io0: polling on CPU 0", "blk0: attached at", "the guest has powered off"] {
        assert!(ran.stderr.contains(line), "{line}: {}", ran.stderr);
    }
}

#[test]
fn a_console_can_be_a_file_or_nothing() {
    let Some(folder) = folder_with("hello\n", POWER_OFF, "console = { file = \"console.log\" }\n") else { return };
    let ran = folder.run(&["run", "vm.toml"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(0), ""), "{}", ran.stderr);
    assert_eq!(std::fs::read_to_string(folder.path().join("console.log")).expect("console"), "hello\n");
    let Some(folder) = folder_with("hello\n", POWER_OFF, "console = \"off\"\n") else { return };
    let ran = folder.run(&["run", "vm.toml"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(0), ""), "{}", ran.stderr);
}

#[test]
fn a_reset_ends_the_run_if_that_is_wanted() {
    let Some(folder) = folder_with("again\n", RESET, "reboot = \"exit\"\n") else { return };
    let ran = folder.run(&["run", "vm.toml"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(0), "again\n"), "{}", ran.stderr);
}

/// Waits until the guest has printed `lines` lines, sends the signal, waits for the end.
fn signal_after(mut child: Child, lines: usize, signal: i32) -> Ran {
    let mut console = BufReader::new(child.stdout.take().expect("piped"));
    let mut stdout = String::new();
    for _ in 0..lines {
        console.read_line(&mut stdout).expect("the guest prints a line");
    }
    // SAFETY: the child has not been waited for, so its number is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().expect("wait").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("kill");
            panic!("it does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("output");
    Ran { stdout, ..Ran::from(output) }
}

#[test]
fn a_reset_starts_the_guest_again_and_sigint_ends_it() {
    let Some(folder) = folder_with("again\n", RESET, "") else { return };
    let mut command = folder.command(&["run", "vm.toml"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let ran = signal_after(child, 3, libc::SIGINT);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(0), "again\nagain\nagain\n"), "{}", ran.stderr);
}

#[test]
fn sigterm_stops_a_guest_that_does_nothing() {
    let Some(folder) = folder_with("ready\n", NOTHING, "") else { return };
    let mut command = folder.command(&["run", "vm.toml", "--stats-json", "stats.json"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let ran = signal_after(child, 1, libc::SIGTERM);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    assert!(folder.path().join("stats.json").metadata().expect("statistics").len() > 0);
}

/// Starts a guest that waits, with a log, and returns once it has printed its line.
fn start_waiting(folder: &Folder, before: impl FnOnce(&mut Command)) -> Child {
    let mut command = folder.command(&["run", "vm.toml", "-v"]);
    before(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut child = command.spawn().expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("the guest prints a line");
    assert_eq!(line, "ready\n");
    child
}

/// Its log, line by line.
struct Log(Receiver<String>);

impl Log {
    fn of(child: &mut Child) -> Self {
        let (lines, log) = (BufReader::new(child.stderr.take().expect("piped")).lines(), channel());
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| log.0.send(line)));
        Log(log.1)
    }

    /// Waits for a line with these words.
    fn wait_for(&self, words: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Ok(line) = self.0.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line.contains(words) {
                return;
            }
        }
        panic!("no line says: {words}");
    }
}

#[test]
fn sighup_has_the_media_measured_again_while_the_guest_runs() {
    let Some(folder) = folder_with("ready\n", NOTHING, "") else { return };
    let config = std::fs::read_to_string(folder.path().join("vm.toml")).expect("the configuration");
    folder.write("vm.toml", config.replace("\"mem\"", "\"uring\"").replace("disk.img\"", "disk.img\", direct = false"));
    let mut child = start_waiting(&folder, |_| {});
    let log = Log::of(&mut child);
    let image = File::options().write(true).open(folder.path().join("disk.img")).expect("the image");
    for (old, new) in [(2048, 4096), (4096, 3072)] {
        image.set_len(new * 512).expect("another length");
        // SAFETY: the child has not been waited for, so its number is still its own.
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGHUP) }, 0);
        log.wait_for(&format!("blk0: its capacity has changed from {old} to {new} sectors of 512 bytes"));
    }
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    log.wait_for("stopped by signal 15");
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}

/// A pseudoterminal: the side that a terminal emulator has, and the other.
fn pseudoterminal() -> [OwnedFd; 2] {
    let mut sides = [-1; 2];
    let none = std::ptr::null_mut();
    let [emulator, terminal] = &mut sides;
    // SAFETY: room for two descriptors; there are no settings.
    let result = unsafe { libc::openpty(emulator, terminal, none, none.cast_const().cast(), none.cast_const().cast()) };
    assert_eq!(result, 0);
    // SAFETY: both are open and ours.
    let sides = sides.map(|side| unsafe { OwnedFd::from_raw_fd(side) });
    // SAFETY: one flag of a descriptor.
    assert_eq!(unsafe { libc::fcntl(sides[0].as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }, 0);
    sides
}

#[test]
fn a_terminal_that_closes_ends_the_run_in_order() {
    let Some(folder) = folder_with("ready\n", NOTHING, "") else { return };
    let [emulator, terminal] = pseudoterminal();
    let number = terminal.as_raw_fd();
    let mut child = start_waiting(&folder, |command| {
        // SAFETY: two system calls: a session of its own, whose terminal this is.
        unsafe {
            command.pre_exec(move || match libc::setsid() < 0 || libc::ioctl(number, libc::TIOCSCTTY, 0) < 0 {
                true => Err(io::Error::last_os_error()),
                false => Ok(()),
            });
        }
    });
    let log = Log::of(&mut child);
    // SAFETY: the child has not been waited for, so its number is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGHUP) }, 0);
    // It is still there.
    log.wait_for("SIGHUP: measuring all media again");
    drop((emulator, terminal));
    log.wait_for("stopped by signal 1");
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}

#[test]
fn statistics_that_cannot_be_written_fail_before_the_guest_runs() {
    let Some(folder) = folder_with("hello\n", POWER_OFF, "") else { return };
    let ran = folder.run(&["run", "vm.toml", "--stats-json", "none/stats.json"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""));
    assert!(ran.stderr.contains("cannot write the statistics to"), "{}", ran.stderr);
}
