//! Memory maps that were replaced while requests were in flight.
use super::update::Retired;
use crate::memory::Translator;
use std::sync::mpsc::SyncSender;

/// Replaced memory maps, each with its destination once the last request taken before the replacement has completed.
#[derive(Debug, Default)]
pub(super) struct Retiring {
    maps: Vec<(Retired, SyncSender<Retired>)>,
    /// Requests in flight that were taken under any of them.
    requests: u32,
}

impl Retiring {
    /// Keeps a map that was replaced just now, while this many requests taken under it or an earlier one are in flight.
    pub(super) fn keep(&mut self, map: [Translator; 2], done: SyncSender<Retired>, requests: u32) {
        self.requests = requests;
        self.maps.push((Retired(map), done));
        self.release();
    }

    /// One of those requests has completed.
    pub(super) fn request_done(&mut self) {
        self.requests -= 1;
        self.release();
    }

    fn release(&mut self) {
        if self.requests == 0 {
            for (map, done) in self.maps.drain(..) {
                // There is room for one. If the receiver is gone, it is unmapped here.
                let _ = done.try_send(map);
            }
        }
    }

    /// The guest address of a host address in one of the maps.
    pub(super) fn guest_address(&self, host: *const u8) -> Option<u64> {
        self.maps.iter().find_map(|(Retired([_, data]), _)| data.guest_address(host))
    }
}
