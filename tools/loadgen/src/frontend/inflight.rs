//! The record of requests in flight that the backend keeps and we hold for it (vhost-user document, "Inflight I/O tracking").
use pollux_core::ring::RingKind;
use std::{fs::File, io, os::unix::fs::FileExt};
use vhost::vhost_user::message::VhostUserInflight;

/// Bytes of a queue's header.
const HEADER_BYTES: usize = 16;
/// Bytes of the state of each descriptor, of which the first says whether it is in flight.
const STATE_BYTES: usize = 16;

/// The record, as it came from the backend.
pub(super) struct Inflight {
    pub(super) layout: VhostUserInflight,
    pub(super) file: File,
}

impl std::fmt::Debug for Inflight {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Inflight").field("bytes", &{ self.layout.mmap_size }).finish_non_exhaustive()
    }
}

impl Inflight {
    /// For each queue, the heads of the chains that are marked as in flight. Split rings only.
    pub(super) fn heads(&self) -> io::Result<Vec<Vec<u16>>> {
        let VhostUserInflight { mmap_offset, num_queues, queue_size, .. } = self.layout;
        let stride = RingKind::Split.inflight_bytes(queue_size);
        let heads = |queue: u16| {
            let mut region = vec![0; stride as usize];
            self.file.read_exact_at(&mut region, mmap_offset + u64::from(queue) * stride)?;
            let states = region[HEADER_BYTES..].chunks_exact(STATE_BYTES).zip(0..queue_size);
            Ok(states.filter(|(state, _)| state[0] != 0).map(|(_, head)| head).collect())
        };
        (0..num_queues).map(heads).collect()
    }
}
