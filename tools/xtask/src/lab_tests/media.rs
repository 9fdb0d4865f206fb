//! Media that misbehave below the kernel of the lab: what a guest sees of each, and how it goes on.
use super::guest::{Bench, Guest, Init, PLAIN, Ran};
use crate::{image::Disk, setup::Tool};

/// What makes devices of the device mapper in the lab, whose programs are this machine's.
pub(super) const TOOLS: &[Tool] = &[Tool { program: "dmsetup", package: "dmsetup" }];

/// A bad sector, a device that fails as a whole, writes that fail, a device that hangs, a slow one.
pub(super) fn errors(bench: &Bench<'_>) -> Result<(), String> {
    let ran = misbehaves(bench, "two-disks.toml", "media-errors.sh", "media-errors-host.sh")?;
    ran.expect_text("blk0: a read at offset 2097152 failed: Input/output error (os error 5)")?;
    ran.expect_text("blk0: a write at offset 0 failed: Input/output error (os error 5)")
}

/// Medium errors of a SCSI disk, and its end while it is in use.
pub(super) fn gone(bench: &Bench<'_>) -> Result<(), String> {
    let ran = misbehaves(bench, "two-disks.toml", "media-gone.sh", "media-gone-host.sh")?;
    ran.expect_text("blk0: a read at offset 10240000 failed: ")
}

/// Images with holes on file systems that are full, until there is room again.
pub(super) fn full(bench: &Bench<'_>) -> Result<(), String> {
    let ran = misbehaves(bench, "full.toml", "media-full.sh", "media-full-host.sh")?;
    for disk in ["blk0", "blk1"] {
        ran.expect_text(&format!("{disk}: a write at offset "))?;
    }
    ran.expect_text(" failed: No space left on device (os error 28)")
}

/// The guest's script tells what must be seen by it; the log names what has failed. Whatever happens to a medium, the
/// process ends well.
fn misbehaves(bench: &Bench<'_>, config: &str, script: &str, host_script: &str) -> Result<Ran, String> {
    let disks = [Disk::Blank(16), Disk::Blank(16)];
    let init = Init::Script(script);
    let ran = bench.run(&Guest { config, init, disks: &disks, host_script: Some(host_script), ..PLAIN })?;
    ran.expect_status(0)?;
    ran.expect_line("GUEST PASSED")?;
    Ok(ran)
}
