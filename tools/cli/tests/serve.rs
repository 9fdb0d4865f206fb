//! `pollux serve`: its sockets, what it tells a service manager, and its end.
mod common;

use common::{
    Folder, Ran, WORKER,
    serving::{PATIENCE, Serving},
};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::{UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Two devices; these are the values of their `socket`.
fn folder_with(sockets: [&str; 2]) -> Folder {
    let folder = Folder::new();
    let mut text = format!("{WORKER}[block.zero]\nplugin = \"null\"\nread_only = true\n");
    for (index, socket) in sockets.iter().enumerate() {
        text += &format!(
            "[device.blk{index}]\ntype = \"blk\"\nblock = \"zero\"\nworkers = [\"io0\"]\n\
             transport = \"vhost-user\"\nsocket = {socket}\n"
        );
    }
    folder.write("disks.toml", text);
    folder
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
}

#[test]
fn devices_are_served_until_a_signal_and_then_come_the_numbers() {
    let folder = folder_with(["\"a.sock\"", "{ path = \"b.sock\", mode = \"0622\" }"]);
    let (a, b) = (folder.path().join("a.sock"), folder.path().join("b.sock"));
    let mut command = folder.command(&["serve", "disks.toml", "-v", "--stats", "--stats-json", "stats.json"]);
    command.stderr(Stdio::piped());
    let serving = Serving::start(&folder, command);
    for path in [&a, &b] {
        UnixStream::connect(path).expect("everything listens when it is ready");
    }
    assert_eq!(fs::metadata(&b).expect("socket").mode() & 0o777, 0o622);
    let ran = serving.stop();
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    for (name, path) in [("blk0", &a), ("blk1", &b)] {
        let line = format!("{name}: serving on {}\n", path.display());
        assert!(ran.stderr.contains(&line), "{line}: {}", ran.stderr);
        assert!(!path.exists(), "removed");
    }
    assert!(ran.stderr.contains("stopped by signal 15"), "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 6, "two devices, and a worker: {}", ran.stdout);
    assert!(lines[5].starts_with("io0     0    adaptive"), "{}", ran.stdout);
    assert!(lines[1].starts_with("blk0    io0") && lines[2].starts_with("blk1    io0"), "{}", ran.stdout);
    let text = fs::read(folder.path().join("stats.json")).expect("statistics");
    let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let devices: Vec<_> = json["queues"].as_array().expect("queues").iter().map(|queue| &queue["device"]).collect();
    assert_eq!(devices, ["blk0", "blk1"]);
    assert_eq!(json["vcpus"], serde_json::json!([]), "those are another program's");
}

#[test]
fn a_second_server_leaves_the_first_alone_and_takes_over_when_it_is_gone() {
    let folder = folder_with(["\"a.sock\"", "\"b.sock\""]);
    let first = Serving::start(&folder, folder.command(&["serve", "disks.toml"]));
    let ran = folder.run(&["serve", "disks.toml"]);
    let words = format!(
        "pollux: blk0: another process listens on {}/a.sock: stop it, or choose another path\n",
        folder.path().display()
    );
    assert_eq!((ran.status, ran.stderr), (Some(1), words));
    UnixStream::connect(folder.path().join("a.sock")).expect("the first still listens");
    // Killed, it leaves its sockets behind.
    drop(first);
    assert!(is_socket(&folder.path().join("a.sock")));
    let second = Serving::start(&folder, folder.command(&["serve", "disks.toml"]));
    UnixStream::connect(folder.path().join("a.sock")).expect("taken over");
    assert_eq!(second.stop().status, Some(0));
}

#[test]
fn when_one_socket_cannot_be_had_none_is_left() {
    let folder = folder_with(["\"a.sock\"", "\"b.sock\""]);
    let _other = UnixListener::bind(folder.path().join("b.sock")).expect("bound");
    let ran = folder.run(&["serve", "disks.toml"]);
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.starts_with("pollux: blk1: another process listens on "), "{}", ran.stderr);
    assert!(!folder.path().join("a.sock").exists());
}

/// The program as a service manager starts it: with `first` and `second` as descriptors 3 and 4.
fn activated(folder: &Folder, first: OwnedFd, second: OwnedFd, names: &str) -> Command {
    let script = "exec 3<&0 4<&1 </dev/null >/dev/null; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", common::POLLUX, "serve", "disks.toml", "-v"]).current_dir(folder.path());
    command.env("LISTEN_FDNAMES", names).stdin(first).stdout(second);
    command
}

#[test]
fn inherited_sockets_go_to_their_devices_by_path_or_by_name() {
    let folder = folder_with(["\"a.sock\"", "\"b.sock\""]);
    // The first is bound to the path of the first device, whatever its name says; the other has only a name.
    let (by_path, by_name) = (folder.path().join("a.sock"), folder.path().join("elsewhere.sock"));
    let path_socket = UnixListener::bind(&by_path).expect("bound");
    let name_socket = UnixListener::bind(&by_name).expect("bound");
    let place = folder.path().join("notify");
    let manager = UnixDatagram::bind(&place).expect("a service manager's socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let mut command = activated(&folder, name_socket.into(), path_socket.into(), "blk1:blk1");
    let child = command.env("NOTIFY_SOCKET", &place).stderr(Stdio::piped()).spawn().expect("starts");
    // The command holds the sockets as well.
    drop(command);
    let serving = Serving::of(child, manager);
    assert_eq!(serving.told(), "READY=1");
    assert!(!folder.path().join("b.sock").exists(), "blk1 is served elsewhere");
    for path in [&by_path, &by_name] {
        UnixStream::connect(path).expect("listens");
    }
    serving.signal(libc::SIGTERM);
    let ran = serving.wait();
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    for (name, path) in [("blk0", &by_path), ("blk1", &by_name)] {
        let line = format!("{name}: serving on {}\n", path.display());
        assert!(ran.stderr.contains(&line), "{line}: {}", ran.stderr);
        assert!(is_socket(path), "the service manager's to remove");
    }
}

/// A client that waited would be a guest that stands still.
#[test]
fn clients_of_an_inherited_socket_are_turned_away_until_their_device_is_served() {
    let folder = folder_with(["\"a.sock\"", "\"b.sock\""]);
    let (a, b) = (folder.path().join("a.sock"), folder.path().join("b.sock"));
    let [first, second] = [&a, &b].map(|path| OwnedFd::from(UnixListener::bind(path).expect("bound")));
    // A start that takes its time: its configuration is not there yet.
    let config = folder.path().join("disks.toml");
    let text = fs::read(&config).expect("the configuration");
    fs::remove_file(&config).expect("removed");
    assert!(Command::new("mkfifo").arg(&config).status().expect("mkfifo").success());
    let place = folder.path().join("notify");
    let manager = UnixDatagram::bind(&place).expect("a service manager's socket");
    let mut command = activated(&folder, first, second, "x:y");
    let child = command.env("NOTIFY_SOCKET", &place).stderr(Stdio::piped()).spawn().expect("starts");
    drop(command);
    let serving = Serving::of(child, manager);
    for path in [&a, &b, &a] {
        let mut client = UnixStream::connect(path).expect("it listens");
        client.set_read_timeout(Some(PATIENCE)).expect("timeout");
        assert_eq!(client.read(&mut [0]).expect("an answer"), 0, "it is turned away");
    }
    fs::write(&config, text).expect("somebody reads it");
    assert_eq!(serving.told(), "READY=1");
    for path in [&a, &b] {
        let mut client = UnixStream::connect(path).expect("it listens");
        client.set_read_timeout(Some(PATIENCE)).expect("timeout");
        // GET_FEATURES, and the header of its answer.
        client.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).expect("it reads");
        client.read_exact(&mut [0; 20]).expect("it answers");
    }
    assert_eq!(serving.stop().status, Some(0));
}

#[test]
fn inherited_sockets_that_nobody_wants_are_an_error() {
    let folder = folder_with(["\"a.sock\"", "\"b.sock\""]);
    let (a, stray) = (folder.path().join("a.sock"), folder.path().join("stray.sock"));
    let sockets = [&a, &stray].map(|path| OwnedFd::from(UnixListener::bind(path).expect("bound")));
    let [first, second] = sockets;
    let ran = Ran::from(activated(&folder, first, second, "x:y").output().expect("starts"));
    assert_eq!(ran.status, Some(1));
    let words = format!(
        "pollux: the service manager has opened what no device is served on: {} (y); write the path as the socket of a \
         device, or the name of a device as FileDescriptorName= in the socket unit\n",
        stray.display()
    );
    assert!(ran.stderr.ends_with(&words), "{}", ran.stderr);
}

#[test]
fn an_inherited_descriptor_that_is_no_listening_socket_is_an_error() {
    let folder = folder_with(["\"a.sock\"", "\"b.sock\""]);
    let socket = UnixListener::bind(folder.path().join("a.sock")).expect("bound");
    let file = fs::File::open(folder.path().join("disk.img")).expect("a file");
    let ran = Ran::from(activated(&folder, socket.into(), file.into(), "x:y").output().expect("starts"));
    let words = "pollux: y: descriptor 4, which was inherited, is not a UNIX stream socket that listens: \
                 it is no socket\n";
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(1), words));
}

#[test]
fn a_service_manager_and_a_log_that_are_gone_are_no_reason_to_fail() {
    let folder = folder_with(["\"a.sock\"", "\"b.sock\""]);
    let mut command = folder.command(&["serve", "disks.toml", "-v"]);
    command.env("NOTIFY_SOCKET", folder.path().join("none")).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let mut log = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("cannot tell the service manager READY=1 at ") {
        line.clear();
        assert_ne!(log.read_line(&mut line).expect("a warning"), 0, "the log ends without it");
    }
    // From here on, every line that it logs fails.
    drop(log);
    // SAFETY: the child has not been waited for, so its number is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().expect("wait").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("kill");
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}

#[test]
fn a_socket_beside_its_configuration_has_a_short_name_however_deep_that_lies() {
    let folder = Folder::new();
    let deep = folder.path().join("d".repeat(120));
    fs::create_dir(&deep).expect("a folder");
    let text = fs::read_to_string(folder_with(["\"a.sock\"", "\"b.sock\""]).path().join("disks.toml")).expect("a file");
    fs::write(deep.join("disks.toml"), text).expect("a file");
    let mut command = folder.command(&["serve", "disks.toml"]);
    command.current_dir(&deep);
    let served = Serving::start(&folder, command);
    std::os::unix::fs::symlink(&deep, folder.path().join("short")).expect("a link");
    UnixStream::connect(folder.path().join("short/a.sock")).expect("somebody listens");
    served.stop();
    assert!(!deep.join("a.sock").exists(), "it goes with its server");
}
