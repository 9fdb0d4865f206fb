//! What all sides do, and what their figures should be.
use pollux_benches::row::Goal;
use pollux_core::ring::RingKind;
use pollux_loadgen::{Indirect, ideal};

/// Depths that are measured.
pub(crate) const DEPTHS: [u16; 4] = [1, 8, 32, 128];

/// What stands behind the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Nothing: every request completes at once.
    Null,
    /// The same on a packed ring, and on our own split ring; through indirect tables, as Linux.
    Packed,
    /// The same with the chains in the rings themselves.
    PackedDirect,
    /// Memory, a file on tmpfs: ours is mapped by the `mem` plugin.
    Memory,
    /// The same file as a file, by the `uring` plugin.
    Tmpfs,
    /// A block device in memory, past the page cache.
    Zram,
    /// A file on a disk, past the page cache.
    File,
}

/// A way in which qemu-storage-daemon reaches a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aio {
    Native,
    Threads,
    IoUring,
}

impl Aio {
    const ALL: [Aio; 3] = [Aio::Native, Aio::Threads, Aio::IoUring];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Aio::Native => "native",
            Aio::Threads => "threads",
            Aio::IoUring => "io_uring",
        }
    }
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// `pollux serve`, with the driver's kind of ring.
    Pollux(RingKind),
    /// qemu-storage-daemon; `None`: nothing is reached.
    Qemu(Option<Aio>),
    /// The loop of the load generator, which shares its process.
    Ideal(ideal::Kind, RingKind),
}

impl Who {
    pub(crate) fn ring(self) -> RingKind {
        match self {
            Who::Pollux(kind) | Who::Ideal(_, kind) => kind,
            Who::Qemu(_) => RingKind::Split,
        }
    }

    pub(crate) fn name(self) -> String {
        match self {
            Who::Pollux(RingKind::Split) => "Pollux".into(),
            Who::Pollux(RingKind::Packed) => "Pollux, packed".into(),
            Who::Qemu(None) => "qemu".into(),
            Who::Qemu(Some(aio)) => format!("qemu, {}", aio.name()),
            Who::Ideal(_, RingKind::Split) => "ideal".into(),
            Who::Ideal(_, RingKind::Packed) => "ideal, packed".into(),
        }
    }
}

/// Against whom the first side is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Against {
    Qemu,
    Ideal,
    OwnSplitRing,
}

impl Against {
    pub(crate) const ALL: [Against; 3] = [Against::Qemu, Against::Ideal, Against::OwnSplitRing];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Against::Qemu => "qemu-storage-daemon",
            Against::Ideal => "ideal",
            Against::OwnSplitRing => "own split ring",
        }
    }

    /// Whether a side other than the first is one of these.
    pub(crate) fn is(self, who: Who) -> bool {
        match self {
            Against::Qemu => matches!(who, Who::Qemu(_)),
            Against::Ideal => matches!(who, Who::Ideal(..)),
            Against::OwnSplitRing => who == Who::Pollux(RingKind::Split),
        }
    }
}

impl Work {
    pub(crate) const ALL: [Work; 7] =
        [Work::Null, Work::Packed, Work::PackedDirect, Work::Memory, Work::Tmpfs, Work::Zram, Work::File];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Work::Null => "null",
            Work::Packed => "packed",
            Work::PackedDirect => "packed-direct",
            Work::Memory => "memory",
            Work::Tmpfs => "tmpfs",
            Work::Zram => "zram",
            Work::File => "file",
        }
    }

    /// Whether the driver has tables of its own for the chains.
    pub(crate) fn indirect(self) -> Indirect {
        if self == Work::PackedDirect { Indirect::Never } else { Indirect::Auto }
    }

    /// Who takes turns. The first is the one to be compared.
    pub(crate) fn sides(self) -> Vec<Who> {
        let (split, packed) = (RingKind::Split, RingKind::Packed);
        let every_aio = Aio::ALL.map(|aio| Who::Qemu(Some(aio)));
        match self {
            Work::Null => vec![Who::Pollux(split), Who::Qemu(None), Who::Ideal(ideal::Kind::Null, split)],
            Work::Packed | Work::PackedDirect => {
                vec![Who::Pollux(packed), Who::Pollux(split), Who::Ideal(ideal::Kind::Null, packed)]
            }
            // Native AIO is their fastest way to tmpfs; the others are measured in `tmpfs`.
            Work::Memory => {
                let qemu = Who::Qemu(Some(Aio::Native));
                vec![Who::Pollux(split), qemu, Who::Ideal(ideal::Kind::Memory, split)]
            }
            Work::Tmpfs | Work::Zram | Work::File => [Who::Pollux(split)].into_iter().chain(every_aio).collect(),
        }
    }

    /// What the ratio should be at the depth with this index in [`DEPTHS`]. That of latencies at depth 1, where the
    /// rate is its inverse, should be 1.25 at most, which is 0.8 here.
    pub(crate) fn goal(self, against: Against, depth: usize) -> Option<Goal> {
        let goals: [f64; 4] = match (self, against) {
            (Work::Null, Against::Qemu) => [6.0, 7.0, 10.0, 8.0],
            (Work::Null, Against::Ideal) => [0.8; 4],
            (Work::Memory, Against::Ideal) => [0.9; 4],
            (Work::Tmpfs, Against::Qemu) => [2.3, 1.9, 1.9, 1.9],
            (Work::Zram, Against::Qemu) => [2.4, 1.8, 2.1, 1.7],
            (Work::Packed | Work::PackedDirect, Against::OwnSplitRing) if DEPTHS[depth] == 32 => [1.3; 4],
            _ => return None,
        };
        Some(Goal::AtLeast(goals[depth]))
    }
}
