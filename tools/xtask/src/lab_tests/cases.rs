//! What is tested with stock guests.
use super::{
    case::{Case, Test},
    drive,
    guest::{Bench, Guest, Init, Kernel, PLAIN, Ran},
    media,
};
use crate::image::Disk;
use serde_json::Value;

/// All tests, in the order in which they run.
pub(super) const ALL: &[Case] = &[
    case("power-off", power_off),
    case("bzimage", bzimage),
    case("pci", pci),
    case("mmio", mmio),
    case("two-workers", two_workers),
    case("queues", queues),
    case("reset", reset),
    case("reboot", reboot),
    case("sigterm", sigterm),
    case("mistake", mistake),
    Case { needs: media::TOOLS, ..case("media-errors", media::errors) },
    case("media-gone", media::gone),
    case("media-full", media::full),
    Case { needs: media::TOOLS, ..case("kexec", kexec) },
    Case { needs: media::TOOLS, ..case("kdump", kdump) },
    case("nvme", drive::nvme),
];

const fn case(name: &'static str, test: Test) -> Case {
    Case { name, test, needs: &[] }
}

/// A guest that powers off ends the process, with status 0.
fn power_off(bench: &Bench<'_>) -> Result<(), String> {
    up(&bench.run(&PLAIN)?)
}

/// The compressed kernel of the package boots as well as the ELF file inside it.
fn bzimage(bench: &Bench<'_>) -> Result<(), String> {
    up(&bench.run(&Guest { kernel: Kernel::BzImage, ..PLAIN })?)
}

fn up(ran: &Ran) -> Result<(), String> {
    ran.expect_status(0)?;
    ran.expect_line("processors: 2")?;
    ran.expect_line("GUEST PASSED")
}

fn pci(bench: &Bench<'_>) -> Result<(), String> {
    root_and_second_disk(bench, "pci.toml").map(drop)
}

fn mmio(bench: &Bench<'_>) -> Result<(), String> {
    root_and_second_disk(bench, "mmio.toml").map(drop)
}

/// Two disks on two workers: each worker has done the requests of its own disk.
fn two_workers(bench: &Bench<'_>) -> Result<(), String> {
    let ran = root_and_second_disk(bench, "two-workers.toml")?;
    let queues = ran.queues()?;
    for (device, worker) in [("blk0", "io0"), ("blk1", "io1")] {
        let served: Vec<&Value> = queues.iter().filter(|queue| queue["device"] == device).collect();
        if served.len() != 1 || served[0]["worker"] != worker || requests(served[0]) == 0 {
            return ran.fail(&format!("{device} was not served by {worker}: {served:?}"));
        }
    }
    Ok(())
}

/// The guest boots from a root file system on the first disk, and what it wrote on both, 64 MiB on the second, is what
/// it reads after unmounting and what is in the images in the end.
fn root_and_second_disk(bench: &Bench<'_>, config: &str) -> Result<Ran, String> {
    let disks = [Disk::Root("root.sh"), Disk::Ext4(128)];
    let ran = bench.run(&Guest { config, init: Init::Root, disks: &disks, ..PLAIN })?;
    ran.expect_status(0)?;
    ran.expect_line("root: /dev/vda ext4")?;
    ran.expect_line("GUEST PASSED")?;
    for (disk, key) in [(0, "sum on root:"), (1, "sum on vdb:")] {
        ran.expect_clean(disk)?;
        if ran.value(key)? != ran.sha256_in(disk, "/data")? {
            return ran.fail(&format!("disk {disk} holds other than the guest has written"));
        }
    }
    Ok(ran)
}

/// Four queues over two workers: the driver uses all, and each does its requests on the worker it was dealt to.
fn queues(bench: &Bench<'_>) -> Result<(), String> {
    let ran = bench.run(&Guest { config: "queues.toml", init: Init::Script("queues.sh"), ..PLAIN })?;
    ran.expect_status(0)?;
    ran.expect_line("queues: 4")?;
    ran.expect_line("GUEST PASSED")?;
    let queues = ran.queues()?;
    let workers: Vec<&str> = queues.iter().filter_map(|queue| queue["worker"].as_str()).collect();
    if workers != ["io0", "io1", "io0", "io1"] || queues.iter().any(|queue| requests(queue) < 16) {
        return ran.fail(&format!("not four busy queues dealt out to two workers: {queues:?}"));
    }
    Ok(())
}

/// Drivers are unbound and bound again, of virtio and of the bus, idle and under load; the disks work as before.
fn reset(bench: &Bench<'_>) -> Result<(), String> {
    let disks = [Disk::Blank(64), Disk::Blank(64)];
    let ran = bench.run(&Guest { config: "reset.toml", init: Init::Script("reset.sh"), disks: &disks, ..PLAIN })?;
    ran.expect_status(0)?;
    ran.expect_line("/dev/vda: virtio-pci")?;
    ran.expect_line("/dev/vdb: virtio-mmio")?;
    ran.expect_line("GUEST PASSED")
}

/// A guest that reboots boots again in the same process, its disks as it left them.
fn reboot(bench: &Bench<'_>) -> Result<(), String> {
    let ran = bench.run(&Guest { init: Init::Script("reboot.sh"), ..PLAIN })?;
    ran.expect_status(0)?;
    ran.expect_line("boot 1")?;
    ran.expect_line("boot 2: BOOTED")
}

/// SIGTERM while the guest writes ends the process with status 0, and what the guest had synced is in the image.
fn sigterm(bench: &Bench<'_>) -> Result<(), String> {
    let guest = Guest {
        init: Init::Script("writer.sh"),
        disks: &[Disk::Ext4(128)],
        host_script: Some("sigterm-host.sh"),
        ..PLAIN
    };
    let ran = bench.run(&guest)?;
    ran.expect_status(0)?;
    ran.expect_line("WRITING")?;
    ran.expect_clean(0)?;
    if ran.value("sum on vda:")? != ran.sha256_in(0, "/data")? {
        return ran.fail("the image holds other than the guest has written and synced");
    }
    Ok(())
}

/// A second kernel takes over while many reads of a slow disk are in flight: nothing of them comes to its memory, and
/// it finds its disks.
fn kexec(bench: &Bench<'_>) -> Result<(), String> {
    second_kernel(bench, "now").map(drop)
}

/// A kernel panics while many reads of a slow disk are in flight, and another one keeps its memory on a disk.
fn kdump(bench: &Bench<'_>) -> Result<(), String> {
    second_kernel(bench, "crash")?.expect_line("vmcore kept")
}

fn second_kernel(bench: &Bench<'_>, how: &str) -> Result<Ran, String> {
    let disks = [Disk::Blank(16), Disk::Blank(16)];
    let ran = bench.run(&Guest {
        config: "two-disks.toml",
        init: Init::Kexec(how),
        disks: &disks,
        host_script: Some("kexec-host.sh"),
        ..PLAIN
    })?;
    ran.expect_status(0)?;
    ran.expect_text("the second kernel, up")?;
    ran.expect_line("GUEST PASSED")?;
    Ok(ran)
}

/// A mistake in the configuration is named, with its place, and nothing is started.
fn mistake(bench: &Bench<'_>) -> Result<(), String> {
    let ran = bench.run(&Guest { config: "mistake.toml", ..PLAIN })?;
    ran.expect_status(2)?;
    ran.expect_text("vm.toml")?;
    ran.expect_text("initdr")
}

/// Requests that a queue has completed.
fn requests(queue: &Value) -> u64 {
    queue["requests"].as_u64().unwrap_or(0)
}
