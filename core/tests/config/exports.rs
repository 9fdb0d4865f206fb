//! Files without `[vm]`: devices that are served over vhost-user.
use super::{Bench, VM, expect};
use pollux_core::{
    config::{Config, Purpose, Transport},
    stats::Thread,
    transport::vhost_user::socket::SocketSpec,
};
use std::{fs, path::PathBuf};

/// A worker and a backend.
const BACKEND: &str = "[worker.io0]\ncpu = 0\n[block.d]\nplugin = \"null\"\nread_only = true\n";

/// A device on that backend, with these lines more.
fn device(name: &str, lines: &str) -> String {
    format!("[device.{name}]\ntype = \"blk\"\nblock = \"d\"\nworkers = [\"io0\"]\n{lines}")
}

fn exported(name: &str, socket: &str) -> String {
    device(name, &format!("transport = \"vhost-user\"\nsocket = {socket}\n"))
}

fn socket_of(config: &Config, index: usize) -> &SocketSpec {
    match &config.devices[index].transport {
        Transport::VhostUser(socket) => &socket.value,
        other => panic!("{other:?}"),
    }
}

#[test]
fn devices_have_sockets_and_no_machine() {
    let bench = Bench::new();
    let text = format!(
        "{BACKEND}{}{}",
        exported("a", "\"a.sock\""),
        exported(
            "b",
            "{ path = \"/tmp/b.sock\", mode = \"0660\", owner = \"root\", group = 12, memory_files = \"any\" }"
        )
    );
    for purpose in [Purpose::Serve, Purpose::Any] {
        let (config, diagnostics) = bench.parse_for(purpose, &text);
        assert_eq!(diagnostics, []);
        let config = config.expect("nothing is wrong");
        assert!(config.vm.is_none());
        let path = bench.folder.path().join("a.sock");
        assert_eq!(*socket_of(&config, 0), SocketSpec { path, mode: None, user: None, group: None, any_file: false });
        let path = PathBuf::from("/tmp/b.sock");
        let wanted = SocketSpec { path, mode: Some(0o660), user: Some(0), group: Some(12), any_file: true };
        assert_eq!(*socket_of(&config, 1), wanted);
        assert_eq!(config.devices[0].queues.value.size, 128, "QEMU's own default");
    }
}

#[test]
fn the_purpose_and_the_file_must_agree() {
    let bench = Bench::new();
    let expect_for = |purpose, text: &str, said: &[&str]| assert_eq!(bench.said_for(purpose, text), said, "{text}");
    let socket = exported("a", "\"a.sock\"");
    let (machine, exports) = (format!("{VM}{BACKEND}{}", device("a", "")), format!("{BACKEND}{socket}"));
    expect_for(Purpose::Run, &machine, &[]);
    expect_for(Purpose::Any, &machine, &[]);
    expect_for(
        Purpose::Serve,
        &machine,
        &["error at [vm]: `pollux serve` starts no machine, but there is a [vm]: start the machine with `pollux \
           run`; or, for the machines of other programs, remove [vm] and write transport = \"vhost-user\" in the \
           devices"],
    );
    expect_for(
        Purpose::Run,
        &exports,
        &["error at : this file describes devices to serve and no machine to run: start it with `pollux serve`, or \
           add [vm] and let the devices have the transport \"pci\""],
    );
    expect_for(
        Purpose::Serve,
        &format!("{VM}{exports}"),
        &["error at [vm]: `pollux serve` starts no machine, but there is a [vm]: remove [vm]: devices are served to \
           the machines of other programs"],
    );
    let not_here = "error at \"vhost-user\": the transport \"vhost-user\" is not offered by `pollux run`: \
                    write \"pci\" or \"mmio\"; or start it with `pollux serve` from a file without [vm]";
    expect_for(Purpose::Run, &format!("{VM}{exports}"), &[not_here]);
    expect_for(Purpose::Any, &format!("{VM}{exports}"), &[not_here]);
    // Nothing says what it is for: most likely it is to be run.
    let no_vm = "error at : there is no table [vm]: add [vm] with `kernel` and `memory` below it";
    expect_for(Purpose::Any, "", &[no_vm]);
    expect_for(Purpose::Any, &format!("{BACKEND}{}", device("a", "")), &[no_vm]);
    expect_for(
        Purpose::Serve,
        "",
        &["error at : there is no device to serve: add [device.blk0] with transport = \"vhost-user\" and socket = \
           \"/run/pollux/blk0.sock\""],
    );
}

#[test]
fn two_devices_cannot_share_a_socket() {
    let bench = Bench::new();
    std::os::unix::fs::symlink(".", bench.folder.path().join("here")).expect("link");
    for other in ["\"a.sock\"", "\"./a.sock\"", "\"here/a.sock\"", "{ path = \"a.sock\" }"] {
        let text = format!("{BACKEND}{}{}", exported("a", "\"a.sock\""), exported("b", other));
        let place = other.trim_start_matches("{ path = ").trim_end_matches(" }");
        let message = format!("error at {place}: a and b have the same socket: give each device a socket of its own");
        assert_eq!(bench.said(&text), [message]);
    }
}

#[test]
fn a_socket_has_room_for_107_bytes_of_path_from_the_configurations_folder() {
    let bench = Bench::new();
    let said = |name: &str| bench.said(&format!("{BACKEND}{}", exported("a", &format!("\"{name}\""))));
    assert!(said(&"x".repeat(107)).is_empty());
    let message = |name: &str, help: String| {
        let path = bench.folder.path().join(name);
        let (path, bytes) = (path.display(), path.as_os_str().len());
        let problem = format!("the path has {bytes} bytes, and sockets have room for 107");
        format!("error at \"{name}\": cannot make the socket {path}: {problem}: {help}")
    };
    let long = "x".repeat(108);
    assert_eq!(said(&long), [message(&long, "write a shorter path, such as one in /run/pollux".into())]);
    let folder = bench.folder.path().join("d".repeat(120));
    fs::create_dir(&folder).expect("a folder");
    let deep = format!("{}/a.sock", "d".repeat(120));
    let link = format!("ln -s {} /run/disks, and write socket = \"/run/disks/a.sock\"", folder.display());
    assert_eq!(said(&deep), [message(&deep, format!("make a short way to its folder: {link}"))]);
}

#[test]
fn a_file_takes_time_in_proportion_to_its_devices() {
    let bench = Bench::new();
    let cost = |count: usize| {
        let devices: String =
            (0..count).map(|index| exported(&format!("d{index}"), &format!("\"{index}.sock\""))).collect();
        let now = || Thread::current().schedule().map(|schedule| schedule.run_ns);
        let before = now()?;
        assert!(bench.said(&format!("{BACKEND}{devices}")).is_empty());
        Some(now()? - before)
    };
    // CPU time of this thread, which others do not add to.
    let Some((few, many)) = cost(100).and_then(|_| Some((cost(500)?, cost(4000)?))) else {
        println!("SKIPPED: the kernel keeps no account of CPU time");
        return;
    };
    // The kernel counts it by ticks, of four milliseconds or less.
    assert!(many < 8 * 5 * few.max(4_000_000), "500 devices take {few} ns, 8 times as many {many} ns");
}

#[test]
fn a_socket_that_was_left_behind_is_no_mistake() {
    let bench = Bench::new();
    pollux_testing::sockets::leave_behind(&bench.folder.path().join("a.sock"));
    assert_eq!(bench.said(&format!("{BACKEND}{}", exported("a", "\"a.sock\""))), Vec::<String>::new());
}

#[test]
fn spinning_workers_leave_a_cpu_to_the_guests() {
    let mut bench = Bench::new();
    bench.host.cpus_usable = vec![0];
    let text = format!("{BACKEND}{}", exported("a", "\"a.sock\""));
    let message = "warning at 0: workers spin on every CPU that this process may use (0): \
                   leave one for the guests, or write idle = \"adaptive\" in one of the workers";
    expect(&bench, &[(&text, message)]);
}
