//! Devices that come and go leave nothing behind, and their neighbour on the same worker loses nothing.
mod common;

use common::churn::churn;

#[test]
fn devices_come_and_go_without_a_leak_beside_a_neighbour_that_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = churn(folder.path(), 200);
    assert_eq!((report.beside.errors, report.faults), (0, 0), "{}", report.beside);
    assert!(report.beside.requests > 0 && report.blocks_checked > 0, "{}", report.beside);
    let (before, after) = (report.before, report.after);
    assert_eq!((after.descriptors, after.threads), (before.descriptors, before.threads), "{before:?}, {after:?}");
    // An allocator takes and gives back as it likes, but not as much as a leak of a mapping or a page each time.
    assert!(after.mappings < before.mappings + 50, "{before:?}, {after:?}");
    assert!(after.resident_kib < before.resident_kib + 8192, "{before:?}, {after:?}");
}
