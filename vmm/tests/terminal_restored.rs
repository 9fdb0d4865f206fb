//! Whatever ends a machine whose console is a terminal, the terminal has its own settings back afterwards.
//!
//! Each case runs this test binary once more as a child with a pseudo-terminal as its standard input.
#![allow(unsafe_code)] // openpty(3), tcgetattr(3), kill(2)

mod common;

use common::{device, kvm_is_there, rig};
use pollux_core::{
    device::{ActivateError, Activation, ActiveQueue, DeviceModel},
    worker::IdlePolicy,
};
use pollux_test_guest::{PATIENCE, mailbox::plan};
use pollux_vmm::{ConsoleSpec, Exit, Shutdown, Transport};
use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

/// Names the way in which the child is to end; set only in the child.
const WAY: &str = "POLLUX_TEST_TERMINAL";

/// The child: a machine whose guest spins for ever, on the terminal.
#[test]
fn child() {
    let Ok(way) = std::env::var(WAY) else { return };
    let shutdown = Shutdown::on_signals().expect("handlers");
    let mut words =
        vec![(plan::DEPTH, 1), (plan::REQUESTS, 1), (plan::BYTES, 512), (plan::SESSIONS, 1), (plan::END, 2)];
    words.extend(device(Transport::Pci));
    let mut rig = rig(IdlePolicy::Adaptive, &words);
    rig.machine = rig.machine.with_console(ConsoleSpec::Terminal);
    if way == "drain" || way == "drain for ever" {
        let device = Slow { for_ever: way == "drain for ever", started: Instant::now() };
        rig.machine.attach(Box::new(device), Transport::Pci).expect("attached");
    }
    let foreground = (way == "background").then(another_job);
    std::thread::spawn(move || {
        while way != "background" && is_cooked(libc::STDIN_FILENO) {
            std::thread::yield_now();
        }
        match way.as_str() {
            "exit" => std::process::exit(7),
            "abort" => std::process::abort(),
            "panic" => {
                let _ = std::panic::catch_unwind(|| panic!("on purpose"));
                assert!(is_cooked(libc::STDIN_FILENO));
                std::process::exit(8);
            }
            "drain" | "drain for ever" | "background" => raise(libc::SIGTERM),
            // SAFETY: none: it ends the process, as it is to.
            "fault" => unsafe { std::ptr::null_mut::<u8>().add(8).write_volatile(1) },
            _ => {}
        }
    });
    let exit = rig.machine.run(&shutdown);
    if let Some(mut job) = foreground {
        job.kill().expect("killed");
        job.wait().expect("it ended");
    }
    assert!(matches!(exit, Ok(Exit::Stopped(_))), "{exit:?}");
}

/// Puts another job in the foreground of the terminal, and so us in its background.
fn another_job() -> Child {
    let job = Command::new("sleep").arg("60").process_group(0).spawn().expect("started");
    // SAFETY: no memory is passed.
    assert_eq!(unsafe { libc::tcsetpgrp(libc::STDIN_FILENO, job.id() as i32) }, 0);
    job
}

/// A device that takes long to drain, in which time signals arrive.
struct Slow {
    for_ever: bool,
    started: Instant,
}

impl DeviceModel for Slow {
    fn name(&self) -> &str {
        "slow0"
    }
    fn device_id(&self) -> u32 {
        2
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[]
    }
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    fn write_config(&mut self, _offset: u64, _data: &[u8], _features: u64) {}
    fn activate(&mut self, _activation: Activation) -> Result<(), ActivateError> {
        Ok(())
    }
    fn start_queue(&mut self, _queue: ActiveQueue) -> Result<(), ActivateError> {
        Ok(())
    }
    fn deactivate(&mut self) {
        assert!(is_cooked(libc::STDIN_FILENO), "Ctrl-C is not a signal while the devices drain");
        // Those that come with the first.
        raise(libc::SIGTERM);
        raise(libc::SIGINT);
        while self.for_ever && self.started.elapsed() < PATIENCE {
            raise(libc::SIGHUP);
            raise(libc::SIGTERM);
        }
    }
}

fn raise(signal: i32) {
    // SAFETY: the handlers of `Shutdown` are installed.
    unsafe { libc::raise(signal) };
}

struct Terminal {
    user: File,
    program: File,
}

impl Terminal {
    fn open() -> Terminal {
        let (mut user, mut program) = (-1, -1);
        let none = std::ptr::null_mut();
        // SAFETY: the two integers are written; the other pointers may be null.
        let result = unsafe { libc::openpty(&mut user, &mut program, none, none.cast(), none.cast()) };
        assert_eq!(result, 0, "a pseudo-terminal");
        // SAFETY: the descriptors are new and nobody else's.
        unsafe { Terminal { user: File::from_raw_fd(user), program: File::from_raw_fd(program) } }
    }

    fn spawn(&self, way: &str) -> Child {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        // SAFETY: async-signal-safe. Whoever runs the tests may have these ignored, and they would stay so.
        unsafe {
            command.pre_exec(|| {
                for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            });
        }
        if way == "background" {
            // SAFETY: both are async-signal-safe. A session of its own has the terminal as its controlling one.
            unsafe {
                command.pre_exec(|| {
                    assert!(libc::setsid() > 0 && libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) == 0);
                    Ok(())
                });
            }
        }
        command
            .args(["--exact", "child", "--nocapture"])
            .env(WAY, way)
            .stdin(self.program.try_clone().expect("a copy"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("started")
    }
}

fn is_cooked(terminal: i32) -> bool {
    // SAFETY: zeroes are a valid termios, which the call fills.
    let attributes = unsafe {
        let mut attributes: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(terminal, &mut attributes), 0);
        attributes
    };
    attributes.c_lflag & libc::ICANON != 0
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::yield_now();
    }
}

/// Runs a child that ends in its own way, or after `act` once the terminal is raw.
fn end_of(way: &str, act: impl FnOnce(&Child, &mut Terminal)) -> ExitStatus {
    let mut terminal = Terminal::open();
    let mut child = terminal.spawn(way);
    let descriptor = terminal.program.as_raw_fd();
    assert!(is_cooked(descriptor));
    if way == "act" {
        wait_for("raw mode", || !is_cooked(descriptor));
        act(&child, &mut terminal);
    }
    let mut status = None;
    wait_for("the child's end", || {
        status = child.try_wait().expect("a status");
        status.is_some()
    });
    assert!(is_cooked(descriptor), "{way}: the terminal is still raw");
    status.expect("a status")
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: the child has not been waited for, so its number is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

#[test]
fn after_a_signal() {
    if !kvm_is_there() {
        return;
    }
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let status = end_of("act", |child, _| signal(child, number));
        assert!(status.success(), "signal {number}: {status}");
    }
}

#[test]
fn while_devices_drain_and_after_signals_that_came_together() {
    if kvm_is_there() {
        let status = end_of("drain", |_, _| ());
        assert!(status.success(), "{status}");
    }
}

#[test]
fn after_a_second_signal_which_ends_it_at_once() {
    if kvm_is_there() {
        let start = Instant::now();
        // SIGHUP is sent more often, but is not the one that ends it.
        assert_eq!(end_of("drain for ever", |_, _| ()).code(), Some(128 + libc::SIGTERM));
        assert!(start.elapsed() >= Duration::from_millis(500));
    }
}

#[test]
fn after_ctrl_a_x() {
    if !kvm_is_there() {
        return;
    }
    let status = end_of("act", |_, terminal| {
        terminal.user.write_all(b"\x03\x01x").expect("written");
    });
    assert!(status.success(), "{status}");
}

#[test]
fn after_the_user_has_gone() {
    if !kvm_is_there() {
        return;
    }
    let status = end_of("act", |child, _| signal(child, libc::SIGQUIT));
    assert_eq!(status.signal(), Some(libc::SIGQUIT));
}

#[test]
fn in_the_background_it_is_left_alone() {
    if kvm_is_there() {
        let status = end_of("background", |_, _| ());
        assert!(status.success(), "{status}");
    }
}

#[test]
fn after_exit_abort_panic_and_fault() {
    if !kvm_is_there() {
        return;
    }
    assert_eq!(end_of("exit", |_, _| ()).code(), Some(7));
    assert_eq!(end_of("panic", |_, _| ()).code(), Some(8));
    assert_eq!(end_of("abort", |_, _| ()).signal(), Some(libc::SIGABRT));
    assert_eq!(end_of("fault", |_, _| ()).signal(), Some(libc::SIGSEGV));
}

#[test]
fn keys_are_not_echoed_by_the_host() {
    if !kvm_is_there() {
        return;
    }
    let status = end_of("act", |child, terminal| {
        terminal.user.write_all(b"secret").expect("written");
        signal(child, libc::SIGTERM);
        // What a cooked terminal would have echoed comes before the end of this line.
        terminal.program.write_all(b"end").expect("written");
        let mut shown = [0; 3];
        terminal.user.read_exact(&mut shown).expect("readable");
        assert_eq!(&shown, b"end");
    });
    assert!(status.success(), "{status}");
}
