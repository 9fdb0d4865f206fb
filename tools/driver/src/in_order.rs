//! What a driver remembers of its chains whose device keeps their order (virtio 1.3, 2.7.9 and 2.8.8).
use super::layout::Buffer;
use std::collections::VecDeque;

/// The chains that the device has, in their order, and the run of them that the last used element stands for.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// Their names, and the bytes that the device may write.
    chains: VecDeque<(u16, u32)>,
    /// The last chain of the run that is being popped, and the bytes written to it.
    last: Option<(u16, u32)>,
    elements: u64,
}

impl Order {
    /// A chain that is made available next.
    pub(super) fn add(&mut self, chain: u16, buffers: &[Buffer]) {
        let writable = buffers.iter().filter(|buffer| buffer.writable).map(|buffer| buffer.length).sum();
        self.chains.push_back((chain, writable));
    }

    /// Whether the next chain needs no used element of its own.
    pub(super) fn is_within_run(&self) -> bool {
        self.last.is_some()
    }

    /// Takes up a used element: all chains up to `last` have been used.
    pub(super) fn begin_run(&mut self, last: u16, written: u32) {
        assert!(self.last.is_none(), "one run ends before the next one begins");
        self.last = Some((last, written));
        self.elements += 1;
    }

    /// Chains of the run that are still to be popped.
    pub(super) fn run_length(&self) -> usize {
        self.last.map_or(0, |(last, _)| self.length_to(last))
    }

    /// Chains of a run that ends with `last`.
    pub(super) fn length_to(&self, last: u16) -> usize {
        let at = self.chains.iter().position(|&(chain, _)| chain == last);
        1 + at.unwrap_or_else(|| panic!("chain {last} is given back, which is not on its way"))
    }

    /// The names of the chains, the oldest first.
    pub(super) fn chains(&self) -> impl Iterator<Item = u16> {
        self.chains.iter().map(|&(chain, _)| chain)
    }

    /// The next chain of the run, and the bytes written to it: all that could be, but for the last one.
    pub(super) fn pop(&mut self) -> Option<(u16, u32)> {
        let (chain, writable) = self.chains.pop_front()?;
        let last = self.last.filter(|&(last, _)| last == chain);
        if last.is_some() {
            self.last = None;
        }
        Some(last.unwrap_or((chain, writable)))
    }

    /// Used elements that the device has written for the chains popped so far.
    pub fn elements(&self) -> u64 {
        self.elements
    }
}
