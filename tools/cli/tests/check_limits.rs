//! What a start would fail on for this user and process is said by `pollux check`.
mod common;

use common::{
    Folder, POLLUX, Ran, WORKER,
    disk::{BUFFERED, Disk},
    serving::Serving,
};
use pollux_testing::{
    blk::{Cut, IN, OK},
    front_end::FrontEnd,
};
use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::Path,
    process::Command,
};

/// A file with so many devices, whose sockets are these tables.
fn disks(count: usize, socket: impl Fn(usize) -> String) -> String {
    let disk = |index| {
        format!(
            "[block.b{index}]\nplugin = \"null\"\n[device.d{index}]\ntype = \"blk\"\nblock = \"b{index}\"\nworkers = \
             [\"io0\"]\n\
             transport = \"vhost-user\"\nsocket = {}\n",
            socket(index)
        )
    };
    format!("{WORKER}{}", (0..count).map(disk).collect::<String>())
}

fn check_with_descriptors(folder: &Folder, limit: u32) -> Ran {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -n {limit}; exec \"$0\" check disks.toml"), POLLUX])
        .current_dir(folder.path());
    command.output().expect("sh").into()
}

#[test]
fn too_few_file_descriptors_are_an_error_and_scarce_ones_a_warning() {
    let folder = Folder::new();
    folder.write("disks.toml", disks(20, |index| format!("\"{index}.sock\"")));
    let ran = check_with_descriptors(&folder, 90);
    assert_eq!(ran.status, Some(2), "{ran:?}");
    assert!(
        ran.stderr.contains("20 devices take 108 file descriptors, and this process may have 90"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("`ulimit -Hn 548`, or LimitNOFILE=548"), "{}", ran.stderr);
    let ran = check_with_descriptors(&folder, 300);
    assert_eq!(ran.status, Some(0), "{ran:?}");
    let words = "20 devices take 548 file descriptors when all are in use, and this process may have 300";
    assert!(ran.stderr.contains(words), "{}", ran.stderr);
    let ran = check_with_descriptors(&folder, 1024);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
}

#[test]
fn no_more_file_descriptors_are_in_use_than_check_says() {
    const QUEUES: u16 = 16;
    let disk = Disk::new("uring", &format!("{BUFFERED}, engine = \"io_uring\""), QUEUES);
    let said = check_with_descriptors(&disk.folder, 60).stderr;
    let words = said.split("1 devices take ").nth(1).and_then(|rest| rest.split(' ').next());
    let expected: u64 = words.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{said}"));
    let server = Serving::start(&disk.folder, disk.folder.command(&["serve", "disks.toml"]));
    let mut front = FrontEnd::new(&disk.socket(), QUEUES.into());
    front.track_inflight();
    front.start();
    for queue in 0..QUEUES.into() {
        assert_eq!(front.request(queue, IN, 0, &[], &Cut::plain(0, 4096)).status, OK);
    }
    let open = fs::read_dir(format!("/proc/{}/fd", server.id())).expect("/proc").count() as u64;
    assert!(open <= expected && expected <= 2 * open, "{open} are open, and {expected} were expected");
    drop(front);
    assert_eq!(server.stop().status, Some(0));
}

/// Another user than root, whom the program can be started as. None: there is none, which is said.
fn nobody(folder: &Path) -> Option<(u32, u32)> {
    let (uid, gid) =
        (fs::metadata("/proc/self").expect("/proc").uid(), fs::metadata("/proc/self").expect("/proc").gid());
    if uid != 0 {
        return Some((uid, gid));
    }
    fs::set_permissions(folder, Permissions::from_mode(0o777)).expect("a folder of the test");
    let runs = Command::new(POLLUX).arg("--version").uid(65534).gid(65534).output();
    if runs.is_ok_and(|ran| ran.status.success()) {
        return Some((65534, 65534));
    }
    println!("SKIPPED: another user cannot start {POLLUX}");
    None
}

#[test]
fn a_group_that_this_user_cannot_give_a_socket_to_is_an_error() {
    let folder = Folder::new();
    let Some((uid, gid)) = nobody(folder.path()) else { return };
    let check = |group: u32| -> Ran {
        folder.write("disks.toml", disks(1, |_| format!("{{ path = \"a.sock\", group = {group} }}")));
        folder.command(&["check", "disks.toml"]).uid(uid).gid(gid).output().expect("it starts").into()
    };
    let ran = check(gid);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "its own group");
    let ran = check(0);
    assert_eq!(ran.status, Some(2), "{ran:?}");
    let words = format!("d0: cannot set the group to 0 of {}/a.sock: Operation not permitted", folder.path().display());
    assert!(ran.stderr.contains(&words), "{}", ran.stderr);
    assert!(!folder.path().join("a.sock").exists(), "nothing is made");
}
