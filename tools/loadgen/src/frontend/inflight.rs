//! The record of requests in flight that the backend keeps and we hold for it (vhost-user document, "Inflight I/O
//! tracking").
use pollux_core::ring::RingKind;
use std::{fs::File, io, os::unix::fs::FileExt};
use vhost::vhost_user::message::VhostUserInflight;

/// Where in a queue's part of the record the state of each descriptor is.
struct Layout {
    header_bytes: usize,
    state_bytes: usize,
    /// Of a state, where the buffer ID is; without one its number is the head of the chain.
    id: Option<usize>,
}

impl Layout {
    fn new(ring: RingKind) -> Self {
        match ring {
            RingKind::Split => Layout { header_bytes: 16, state_bytes: 16, id: None },
            RingKind::Packed => Layout { header_bytes: 32, state_bytes: 32, id: Some(16) },
        }
    }
}

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
    /// For each queue, the heads or buffer IDs of the chains that are marked as in flight.
    pub(super) fn heads(&self, ring: RingKind) -> io::Result<Vec<Vec<u16>>> {
        let VhostUserInflight { mmap_offset, num_queues, queue_size, .. } = self.layout;
        let stride = ring.inflight_bytes(queue_size);
        let layout = Layout::new(ring);
        let heads = |queue: u16| {
            let mut region = vec![0; stride as usize];
            self.file.read_exact_at(&mut region, mmap_offset + u64::from(queue) * stride)?;
            let states = region[layout.header_bytes..].chunks_exact(layout.state_bytes).zip(0..queue_size);
            // The first byte says whether it is in flight.
            let taken = states.filter(|(state, _)| state[0] != 0);
            Ok(taken
                .map(|(state, head)| layout.id.map_or(head, |at| u16::from_le_bytes([state[at], state[at + 1]])))
                .collect())
        };
        (0..num_queues).map(heads).collect()
    }
}
