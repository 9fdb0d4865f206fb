//! Disks that are opened once and used by one input after the other: the process keeps something of each for ever.
use pollux_core::plugin::BlockBackend;
use pollux_testing::disk::{self, Behaviour, Control};
use std::{cell::RefCell, sync::Arc};

/// Size of each disk.
pub(crate) const BYTES: usize = 64 << 10;

thread_local! {
    static DISKS: RefCell<Vec<(Behaviour, Arc<BlockBackend>)>> = const { RefCell::new(Vec::new()) };
}

/// A disk that holds zeroes, and its levers. Nobody uses it any more.
pub(crate) fn empty(behaviour: Behaviour) -> (Arc<BlockBackend>, Arc<Control>) {
    let name = format!("fuzz-{behaviour:?}-{:?}", std::thread::current().id());
    let control = disk::control(&name);
    control.renew();
    let backend = DISKS.with_borrow_mut(|disks| match disks.iter().find(|(known, _)| *known == behaviour) {
        Some((_, disk)) => disk.clone(),
        None => {
            let disk = disk::open(&name, BYTES as u64, behaviour).expect("a disk");
            disks.push((behaviour, disk.clone()));
            disk
        }
    });
    (backend, control)
}
