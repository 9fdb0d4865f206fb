//! What a driver for tests remembers of its chains whose device keeps their order.
use super::{layout::Buffer, order::Order};

/// The chains that the device has, in their order, and the run of them that the last used element stands for.
#[derive(Clone, Debug)]
pub struct InOrder {
    chains: Order,
    /// By name: the bytes that the device may write.
    writable: Box<[u32]>,
    /// The last chain of the run that is being popped, and the bytes written to it.
    last: Option<(u16, u32)>,
    elements: u64,
}

impl InOrder {
    /// Of a ring that has so many names for chains.
    pub(super) fn new(names: u16) -> Self {
        InOrder { chains: Order::new(names), writable: vec![0; names.into()].into(), last: None, elements: 0 }
    }

    /// A chain that is made available next.
    pub(super) fn add(&mut self, chain: u16, buffers: &[Buffer]) {
        let writable = buffers.iter().filter(|buffer| buffer.writable).map(|buffer| buffer.length).sum();
        self.writable[usize::from(chain)] = writable;
        self.chains.add(chain);
    }

    /// Whether the next chain needs no used element of its own.
    pub(super) fn is_within_run(&self) -> bool {
        self.chains.is_within_run()
    }

    /// Takes up a used element: all chains up to `last` have been used, which may be `most`.
    pub(super) fn begin_run(&mut self, last: u16, written: u32, most: u16) {
        assert!(!self.is_within_run(), "one run ends before the next one begins");
        let length = self.length_to(last);
        let is_short = self.chains.begin_run(last, most).is_ok();
        assert!(is_short, "chain {last} ends a run of {length}, of which there can be {most}");
        self.last = Some((last, written));
        self.elements += 1;
    }

    /// Chains of the run that are still to be popped.
    pub(super) fn run_length(&self) -> u16 {
        self.chains.run_length()
    }

    /// Chains of a run that ends with `last`.
    pub(super) fn length_to(&self, last: u16) -> u16 {
        let length = self.chains.length_to(last);
        length.unwrap_or_else(|| panic!("chain {last} is given back, which is not on its way"))
    }

    /// The names of the chains, the oldest first.
    pub(super) fn chains(&self) -> impl Iterator<Item = u16> {
        self.chains.chains()
    }

    /// The next chain of the run, and the bytes written to it: all that could be, but for the last one.
    pub(super) fn pop(&mut self) -> (u16, u32) {
        let chain = self.chains.pop();
        let last = self.last.filter(|&(last, _)| last == chain);
        if last.is_some() {
            self.last = None;
        }
        last.unwrap_or((chain, self.writable[usize::from(chain)]))
    }

    /// Used elements that the device has written for the chains popped so far.
    pub fn elements(&self) -> u64 {
        self.elements
    }
}
