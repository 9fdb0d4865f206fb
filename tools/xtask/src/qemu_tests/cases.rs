//! What is tested with QEMU as the front end.
use super::{
    backend::BackendKind,
    bench::{Bench, Guest, Stage},
    case::{Case, Test},
    firmware_boots,
    machine::Machine,
};
use crate::{
    image::{self, Disk},
    setup::BOOT_DISK_TOOLS,
};
use serde_json::json;
use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// All tests, in the order in which they run.
pub(super) const ALL: &[Case] = &[
    case("boot", boot),
    case("verify", verify),
    case("reboot", reboot),
    case("system-reset", system_reset),
    case("hotplug", hotplug),
    case("resize", resize),
    case("migration", migration),
    Case {
        storage_daemon_obstacle: Some("does not track requests in flight (VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)"),
        ..case("crash", crash)
    },
    case("sigterm", sigterm),
    firmware("seabios", firmware_boots::seabios),
    firmware("seabios-legacy", firmware_boots::seabios_legacy),
    firmware("ovmf", firmware_boots::ovmf),
    firmware("ovmf-modern", firmware_boots::ovmf_modern),
];

const fn case(name: &'static str, test: Test) -> Case {
    Case { name, test, storage_daemon_obstacle: None, needs: &[] }
}

const fn firmware(name: &'static str, test: Test) -> Case {
    Case { needs: BOOT_DISK_TOOLS, ..case(name, test) }
}

/// A guest that writes and compares until it is told to stop.
const LOADED: Guest<'_> = Guest { script: Some("load.sh"), processors: 2, disks: &[(Disk::Blank(16), 2)], attached: 1 };

/// The guest boots from a root file system on its disk, and what it wrote there, 64 MiB, is what it reads once the page
/// cache has forgotten it, and what the image holds in the end.
fn boot(bench: &Bench<'_>) -> Result<(), String> {
    let guest = Guest { script: None, disks: &[(Disk::Root("root.sh"), 2)], ..LOADED };
    let Stage { mut machine, mut backend } = bench.stage(&guest)?;
    machine.expect("root: /dev/vda ext4")?;
    let sum = machine.expect("sum on root:")?;
    machine.finish()?;
    backend.terminate()?;
    let image = &backend.media()[0].image;
    image::expect_clean(image)?;
    if image::sha256_in(image, "/data")? != sum {
        return Err("the image holds other than the guest has written".to_owned());
    }
    Ok(())
}

/// Two disks of one queue and of four: every block reads as it was last written, discarded or zeroed, while requests
/// are in flight on all queues, and in the image in the end.
fn verify(bench: &Bench<'_>) -> Result<(), String> {
    let disks = [(Disk::Blank(32), 1), (Disk::Blank(32), 4)];
    let guest = Guest { script: Some("verify.sh"), processors: 4, disks: &disks, attached: 2 };
    let Stage { mut machine, mut backend } = bench.stage(&guest)?;
    for (disk, queues) in [("vda", 1), ("vdb", 4)] {
        machine.expect(&format!("{disk}: {queues} queues"))?;
        if bench.backend == BackendKind::Pollux {
            // The other offers the driver to choose and begins with "write through".
            machine.expect(&format!("{disk}: write back"))?;
        }
        machine.expect(&format!("{disk}: VERIFIED 3"))?;
    }
    machine.finish()?;
    backend.terminate()?;
    for medium in backend.media() {
        let round = bench.check_image(&medium.image, &["workers=8", "trim=1"])?;
        if round != 3 {
            return Err(format!("{}: of round {round}, not 3", medium.image.display()));
        }
    }
    Ok(())
}

/// A guest that reboots twice finds its disk as it left it each time.
fn reboot(bench: &Bench<'_>) -> Result<(), String> {
    let Stage { mut machine, backend: _backend } = bench.stage(&Guest { script: Some("reboot.sh"), ..LOADED })?;
    for round in [0, 2, 4] {
        machine.expect(&format!("CHECKED {round}:"))?;
    }
    machine.finish()
}

/// A reset from outside while requests are in flight: the guest comes up again and finds all that it had synced.
fn system_reset(bench: &Bench<'_>) -> Result<(), String> {
    let Stage { mut machine, backend: _backend } = bench.stage(&Guest { script: Some("system-reset.sh"), ..LOADED })?;
    machine.expect("CHECKED 0:")?;
    let synced = machine.expect_rounds(3)?;
    machine.execute("system_reset", &json!({}))?;
    let checked = machine.expect("CHECKED ")?;
    let checked: u64 = checked.split(':').next().and_then(|round| round.parse().ok()).unwrap_or(0);
    if checked < synced {
        return Err(format!("round {synced} was on the disk before the reset, round {checked} after it"));
    }
    machine.say("stop")?;
    machine.finish()
}

/// A second disk comes, is written and read, goes, and comes again with what was on it, while the first is busy.
fn hotplug(bench: &Bench<'_>) -> Result<(), String> {
    let disks = [(Disk::Blank(16), 2), (Disk::Blank(16), 2)];
    let Stage { mut machine, backend } = bench.stage(&Guest { script: Some("hotplug.sh"), disks: &disks, ..LOADED })?;
    machine.expect_rounds(2)?;
    for round in [0, 2] {
        machine.plug(&backend.socket(1), 2)?;
        machine.expect(&format!("CHECKED {round}:"))?;
        machine.expect(&format!("VERIFIED {}:", round + 2))?;
        machine.unplug()?;
        machine.expect("vdb is gone")?;
    }
    machine.say("stop")?;
    machine.expect("VERIFIED ")?;
    machine.finish()
}

/// The image grows; the guest sees so while its disk is busy, and uses what is new.
fn resize(bench: &Bench<'_>) -> Result<(), String> {
    let Stage { mut machine, mut backend } = bench.stage(&Guest { script: Some("resize.sh"), ..LOADED })?;
    machine.expect("sectors: 32768")?;
    machine.expect_rounds(2)?;
    backend.grow(0, 48 << 20)?;
    machine.expect("sectors: 98304")?;
    machine.expect("VERIFIED 1:")?;
    machine.say("stop")?;
    machine.expect("VERIFIED ")?;
    machine.finish()
}

/// A running guest moves to another QEMU, whose device is served by the same backend on the same socket. Its load goes
/// on there, and everything that it wrote here and there is on the disk.
fn migration(bench: &Bench<'_>) -> Result<(), String> {
    let Stage { machine: mut source, mut backend } = bench.stage(&LOADED)?;
    source.expect_rounds(2)?;
    let socket = bench.socket("migration.sock");
    let disks = [(backend.second_socket(0)?, LOADED.disks[0].1)];
    let mut destination = bench.machine("destination", &LOADED, &disks, Some(&socket))?;
    migrate(&mut source, &socket)?;
    destination.continue_from(source)?;
    destination.expect_rounds(3)?;
    destination.say("stop")?;
    destination.expect("VERIFIED ")?;
    destination.finish()?;
    backend.terminate()?;
    bench.check_image(&backend.media()[0].image, &[]).map(drop)
}

/// Moves a machine to where another one listens. Slowly at first: what the backend writes to memory that was copied
/// already must be copied again, which is what can go wrong, and would not happen if all were copied while the guest is
/// stopped.
fn migrate(source: &mut Machine, socket: &Path) -> Result<(), String> {
    source.execute("migrate-set-parameters", &json!({ "max-bandwidth": 48 << 20, "downtime-limit": 300 }))?;
    source.execute("migrate", &json!({ "uri": format!("unix:{}", socket.display()) }))?;
    let (start, mut patient) = (Instant::now(), true);
    loop {
        let state = source.execute("query-migrate", &json!({}))?;
        match state["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => return Err(format!("the migration failed: {state}")),
            _ if start.elapsed() > Duration::from_secs(60) => return Err(format!("the migration hangs: {state}")),
            _ if start.elapsed() > Duration::from_secs(15) && patient => {
                // The guest writes faster than a busy host copies.
                source.execute(
                    "migrate-set-parameters",
                    &json!({ "max-bandwidth": 1u64 << 32, "downtime-limit": 10_000 }),
                )?;
                patient = false;
            }
            _ => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// The backend is killed three times while requests are in flight, and comes back, once after 5 s: the guest waits and
/// sees no error, and everything that it wrote is on the disk. It would wait for ever; 5 s keep the test short.
fn crash(bench: &Bench<'_>) -> Result<(), String> {
    let Stage { mut machine, mut backend } = bench.stage(&LOADED)?;
    for seconds_away in [0, 0, 5] {
        machine.expect_rounds(2)?;
        backend.kill9()?;
        // Not a wait for a condition: the time is the test.
        thread::sleep(Duration::from_secs(seconds_away));
        backend.start()?;
    }
    machine.expect_rounds(2)?;
    machine.say("stop")?;
    machine.expect("VERIFIED ")?;
    machine.finish()?;
    backend.terminate()?;
    bench.check_image(&backend.media()[0].image, &[]).map(drop)
}

/// The backend ends by SIGTERM while requests are in flight, with status 0, and all that the guest had synced is in the
/// image; when it comes back the guest goes on.
fn sigterm(bench: &Bench<'_>) -> Result<(), String> {
    let Stage { mut machine, mut backend } = bench.stage(&LOADED)?;
    let synced = machine.expect_rounds(2)?;
    backend.terminate()?;
    let in_image = bench.check_image(&backend.media()[0].image, &[])?;
    if in_image < synced {
        return Err(format!(
            "round {synced} was on the disk before the backend's end, round {in_image} is in the image"
        ));
    }
    backend.start()?;
    machine.expect_rounds(2)?;
    machine.say("stop")?;
    machine.expect("VERIFIED ")?;
    machine.finish()
}
