//! Guests that a firmware boots from the disk: its driver and the boot loader come first, and they only poll.
use super::{
    backend::{Backend, BackendKind, Held, Medium},
    bench::{Bench, sources},
    firmware::Firmware,
    machine::{Boot, Interface, Machine, MachineSpec, PERIODIC_TICK},
};
use crate::{
    boot_disk::{self, LOADING, PARTITION_END},
    image::sha256_of_start,
    lab::QUICK_BOOT,
};
use std::{thread, time::Duration};

/// How long the backend is away. What polls with a time limit of its own would show it.
const AWAY: Duration = Duration::from_secs(3);

pub(super) fn seabios(bench: &Bench<'_>) -> Result<(), String> {
    boots(bench, Firmware::SeaBios, Interface::Transitional)
}

/// As the drivers of old guests have it: SeaBIOS, then Linux.
pub(super) fn seabios_legacy(bench: &Bench<'_>) -> Result<(), String> {
    boots(bench, Firmware::SeaBios, Interface::Legacy)
}

/// OVMF drives a device that offers both interfaces by the legacy one.
pub(super) fn ovmf(bench: &Bench<'_>) -> Result<(), String> {
    boots(bench, Firmware::Ovmf, Interface::Transitional)
}

pub(super) fn ovmf_modern(bench: &Bench<'_>) -> Result<(), String> {
    boots(bench, Firmware::Ovmf, Interface::Modern)
}

/// A guest boots from the disk, reads it as it is, writes and reboots. Then the backend is killed while a read of the
/// boot loader is in flight, and the guest comes up all the same, its disk as it left it.
fn boots(bench: &Bench<'_>, firmware: Firmware, interface: Interface) -> Result<(), String> {
    let (medium, sum) = make_medium(bench)?;
    let media = vec![medium];
    let mut backend = Backend::new(bench.backend, bench.pollux, &bench.folder, &bench.sockets, media, bench.verbose);
    backend.start()?;
    let spec = MachineSpec {
        name: "guest",
        boot: Boot::Firmware(firmware),
        processors: 1,
        disks: &[(backend.socket(0), 1)],
        interface,
        incoming: None,
    };
    let mut machine = Machine::start(&spec, &bench.folder, &bench.sockets, bench.verbose)?;
    let loading = format!("{LOADING} {}", firmware.platform());
    let comes_up = |machine: &mut Machine, round| {
        machine.expect(&format!("CHECKED {round}:"))?;
        let found = machine.expect("sum of the partition:")?;
        if found == sum { Ok(()) } else { Err(format!("the guest reads {found} on its boot disk, not {sum}")) }
    };
    machine.expect(&loading)?;
    comes_up(&mut machine, 0)?;
    if bench.backend == BackendKind::Pollux {
        backend.hold()?;
    }
    machine.say("reboot")?;
    machine.expect(&loading)?;
    if bench.backend == BackendKind::Pollux {
        backend.wait_in_flight()?;
        backend.kill9()?;
        backend.release()?;
        // Not a wait for a condition: the time is the test.
        thread::sleep(AWAY);
        backend.start()?;
    }
    comes_up(&mut machine, 1)?;
    machine.say("stop")?;
    machine.finish()?;
    backend.terminate()?;
    let round = bench.check_image(&backend.media()[0].image, &[&format!("offset={PARTITION_END}")])?;
    if round == 2 { Ok(()) } else { Err(format!("the image has round {round}, not 2")) }
}

/// The boot disk, which can be made to hang in the middle of the kernel, and the sum of what is in its partition.
fn make_medium(bench: &Bench<'_>) -> Result<(Medium, String), String> {
    let tools = bench.tools;
    let (image, initrd) = (bench.folder.join("disk0.img"), bench.folder.join("initrd"));
    let common = sources(bench.project).join("common.sh");
    let files = [(tools.load.as_path(), "/bin/load"), (common.as_path(), "/common.sh")];
    tools.lab.initrd_that_runs(&sources(bench.project).join("firmware.sh"), &files, &initrd)?;
    let command_line = format!("{QUICK_BOOT} {PERIODIC_TICK} no_timer_check");
    let kernel = tools.lab.path("kernel")?;
    let held = boot_disk::make(&bench.folder, &kernel, &initrd, &command_line, &image)?;
    let sum = sha256_of_start(&image, PARTITION_END)?;
    let plugin = bench.project.target.join("debug/libpollux_fixture_faulty.so");
    Ok((Medium { image, queues: 1, held: Some(Held { plugin, range: held }) }, sum))
}
