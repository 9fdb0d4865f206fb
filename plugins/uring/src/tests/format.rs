//! Images that are not raw are refused before anything is written to them.
use super::*;
use pollux_abi::block_v1::*;

const MIB: u64 = 1 << 20;

fn refusal(path: &Path, flags: u32) -> String {
    let refused = Instance::<Uring>::open_with(&options(path, true), flags).err();
    refused.unwrap_or_else(|| panic!("{} is taken for raw", path.display()))
}

fn as_raw(path: &Path) -> Instance<Uring> {
    Instance::open(&format!(r#"{{"path": {path:?}, "format": "raw"}}"#)).expect("it opens")
}

#[test]
fn an_image_of_another_format_is_refused_with_the_command_that_converts_it() {
    let fixture = Fixture::filled(4 << 20);
    let source = fixture.path.to_str().expect("UTF-8");
    for format in ["qcow2", "qcow", "vmdk", "vhdx", "vdi", "vpc", "qed", "parallels"] {
        let path = fixture.folder.path().join(format!("disk.{format}"));
        if system("qemu-img", &["convert", "-O", format, source, path.to_str().expect("UTF-8")]).is_none() {
            println!("SKIPPED: qemu-img does not make a {format} image here");
            continue;
        }
        let before = std::fs::read(&path).expect("readable");
        for flags in [0, POLLUX_BLOCK_OPEN_PROBE, POLLUX_BLOCK_OPEN_READ_ONLY] {
            let message = refusal(&path, flags);
            let command = format!("`qemu-img convert -f {format} -O raw {} ", path.display());
            assert!(message.contains(&command) && message.contains(r#"format = "raw""#), "{format}: {message}");
        }
        assert_eq!(std::fs::read(&path).expect("readable"), before);
    }
}

#[test]
fn a_fixed_vhd_image_is_known_by_its_end() {
    let fixture = Fixture::filled(4 << 20);
    let path = fixture.folder.path().join("disk.vhd");
    let arguments = ["convert", "-O", "vpc", "-o", "subformat=fixed", fixture.path.to_str().expect("UTF-8")];
    if system("qemu-img", &[&arguments[..], &[path.to_str().expect("UTF-8")]].concat()).is_none() {
        println!("SKIPPED: qemu-img does not make a fixed VHD image here");
        return;
    }
    assert!(refusal(&path, 0).contains("qemu-img convert -f vpc"));
}

#[test]
fn a_compressed_image_is_refused_with_the_command_that_unpacks_it() {
    for (program, command) in [("gzip", "gzip -dc"), ("xz", "xz -dc"), ("zstd", "zstd -dc"), ("bzip2", "bzip2 -dc")] {
        let fixture = Fixture::filled(1 << 20);
        if system(program, &["-k", fixture.path.to_str().expect("UTF-8")]).is_none() {
            println!("SKIPPED: there is no {program} here");
            continue;
        }
        let packed =
            std::fs::read_dir(fixture.folder.path()).expect("a folder").map(|entry| entry.expect("an entry").path());
        let packed = packed.filter(|path| *path != fixture.path).collect::<Vec<_>>();
        let message = refusal(&packed[0], 0);
        assert!(message.contains(&format!("compressed with {program}: unpack it with `{command} ")), "{message}");
    }
}

#[test]
fn who_insists_on_raw_gets_it() {
    let fixture = Fixture::new(MIB);
    std::fs::write(&fixture.path, [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 4096 - 8]].concat()).expect("written");
    assert!(refusal(&fixture.path, 0).contains("is a QCOW2 image"));
    assert!(as_raw(&fixture.path).queue(4).read(0, 512).starts_with(b"QFI\xfb"));
    let message = Instance::<Uring>::open(&format!(r#"{{"path": {:?}, "format": "qcow2"}}"#, fixture.path)).err();
    assert!(message.is_some_and(|message| message.contains("`qcow2`") && message.contains("`raw`")));
}

#[test]
fn what_a_guest_writes_is_not_taken_for_a_format() {
    for fixture in [Fixture::new(MIB), Fixture::on_tmpfs(MIB)] {
        let open = || Instance::<Uring>::open(&options(&fixture.path, false));
        let first = open().expect("it opens");
        if rustix::fs::getxattr(&fixture.path, "user.pollux.raw", &mut [0; 24][..]).is_err() {
            println!("SKIPPED: no extended attributes in {}", fixture.folder.path().display());
            continue;
        }
        let write = |instance: &Instance<Uring>, magic: &[u8]| {
            let sector = [magic, &vec![0; 512 - magic.len()]].concat();
            assert_eq!(instance.queue(4).write(0, &sector), 0);
        };
        write(&first, b"QFI\xfb\0\0\0\x03");
        drop(first);
        let second = open().expect("the guest's own bytes do not keep its disk away");
        assert!(Instance::<Uring>::open_with(&options(&fixture.path, true), POLLUX_BLOCK_OPEN_PROBE).is_ok());
        // Nor after a change of its size.
        File::options().write(true).open(&fixture.path).expect("it opens").set_len(2 * MIB).expect("resized");
        assert_eq!(second.info().capacity, 2 * MIB);
        drop(second);
        drop(open().expect("the mark is of the new size"));
        // Another image in the same place.
        std::fs::write(&fixture.path, [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 65536]].concat()).expect("written");
        assert!(refusal(&fixture.path, 0).contains("QCOW2"));
    }
}

#[test]
fn a_block_device_is_served_with_a_warning() {
    let Some(device) = device::LoopDevice::new(MIB, 512) else { return };
    let open = || Instance::<Uring>::open(&options(&device.path, true)).expect("it opens");
    let instance = open();
    assert_eq!(instance.queue(4).write(0, &[b"vhdxfile".as_slice(), &[0; 504]].concat()), 0);
    drop(instance);
    let log = open().log();
    assert!(log.contains("is a VHDX image") && log.contains("2 "), "{log}");
}
