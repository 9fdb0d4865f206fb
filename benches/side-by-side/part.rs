//! What there is to measure.
use super::work::Work;

/// A part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Servers in turn.
    Work(Work),
    /// A piece of ours alone.
    Micro(Micro),
}

impl Part {
    /// All, in the order of the table.
    pub(crate) fn all() -> Vec<Part> {
        Work::ALL.into_iter().map(Part::Work).chain(Micro::ALL.into_iter().map(Part::Micro)).collect()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Part::Work(work) => work.name(),
            Part::Micro(micro) => micro.name(),
        }
    }
}

/// A piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Micro {
    /// The way into a plugin.
    Crossing,
    /// Idle queues.
    Queues,
    /// CPU time of a read.
    Cpu,
}

impl Micro {
    pub(crate) const ALL: [Micro; 3] = [Micro::Crossing, Micro::Queues, Micro::Cpu];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Micro::Crossing => "crossing",
            Micro::Queues => "queues",
            Micro::Cpu => "cpu",
        }
    }
}
