//! What an operator reads in the log of a start: each thing once, as it is.
mod common;

use common::{disk::Disk, serving::Serving};
use std::process::Stdio;

#[test]
fn the_line_about_a_medium_comes_once_and_tells_how_it_is_served() {
    for (plugin, options, says) in [
        ("uring", "path = \"disk.img\", direct = false", "writable, through the page cache, locked"),
        ("mem", "path = \"disk.img\"", "disk.img, mapped"),
    ] {
        let disk = Disk::new(plugin, options, 1);
        let mut command = disk.folder.command(&["serve", "disks.toml", "-v"]);
        command.stderr(Stdio::piped());
        let ran = Serving::start(&disk.folder, command).stop();
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
        let lines: Vec<&str> = ran.stderr.lines().filter(|line| line.contains(" bytes in ")).collect();
        assert!(matches!(lines[..], [line] if line.contains(says)), "{lines:#?}");
    }
}
