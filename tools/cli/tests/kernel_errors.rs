//! What is said of a kernel, its initrd and its command line before a machine is made.
mod common;

use common::{Folder, POWER_OFF, VM, guest};

#[test]
fn the_kernel_is_a_file_with_something_in_it() {
    let folder = Folder::new();
    folder.write("empty", "");
    for (name, problem) in [
        ("none", "no such file or directory"),
        ("empty", "it is empty"),
        (".", "it is a folder"),
        ("vmlinuz/x", "not a directory"),
        ("/dev/null", "it is not a regular file"),
    ] {
        let path = if name.starts_with('/') { name.to_owned() } else { format!("FOLDER/{name}") };
        let mark = "^".repeat(name.len() + 2);
        folder.refuses(
            &VM.replace("vmlinuz", name),
            &format!(
                "vm.toml:3:10: error: cannot use the kernel {path}: {problem}\n  3 | kernel = \"{name}\"\n    \
                 |          {mark}\n  help: name a bzImage such as /boot/vmlinuz, or an ELF file (vmlinux)\n"
            ),
        );
    }
}

#[test]
fn a_kernel_that_cannot_be_started_is_found_before_the_machine_is() {
    let folder = Folder::new();
    folder.write("vmlinuz", "no kernel");
    folder.refuses(
        VM,
        "vm.toml:3:10: error: kernel FOLDER/vmlinuz: neither a bzImage (such as /boot/vmlinuz-…) nor an ELF file \
         (vmlinux); is it compressed?\n  3 | kernel = \"vmlinuz\"\n    |          ^^^^^^^^^\n",
    );
    let mut elf = guest("", POWER_OFF);
    // The type of the note segment: without it the file has no PVH entry.
    elf[64 + 56] = 0;
    folder.write("vmlinuz", elf);
    folder.refuses(
        VM,
        "vm.toml:3:10: error: kernel FOLDER/vmlinuz: this ELF file has no PVH entry; use a kernel built with \
         CONFIG_PVH=y, or its bzImage\n  3 | kernel = \"vmlinuz\"\n    |          ^^^^^^^^^\n",
    );
    let folder = Folder::new();
    folder.write("initrd.img", vec![0; 80 << 20]);
    let text = format!("{VM}initrd = \"initrd.img\"\n");
    let ran = folder.check(&text);
    assert_eq!(ran.status, Some(2));
    assert!(ran.stderr.starts_with("vm.toml:4:10: error: initrd "), "{}", ran.stderr);
    assert!(ran.stderr.contains("give it more memory"), "{}", ran.stderr);
}

#[test]
fn a_command_line_has_room() {
    let long = "x".repeat(2048);
    let ran = Folder::new().check(&format!("{VM}cmdline = \"{long}\"\n"));
    assert!(
        ran.stderr.starts_with("vm.toml:4:11: error: the command line has 2048 bytes, kernels take 2047\n"),
        "{}",
        ran.stderr
    );
    let ran = Folder::new().check(&format!("{VM}cmdline = \"{}\"\n", &long[1..]));
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
}
