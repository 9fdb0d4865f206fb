//! The chains of a device that keeps their order (IN_ORDER; virtio 1.3, 2.7.9 and 2.8.8): it gives a run of them back
//! by one used element, that of the last one.

/// The chains that the device has, the oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// By number, around the end: their names.
    names: Box<[u16]>,
    /// By name: the number of its chain.
    numbers: Box<[u16]>,
    /// Number of the next chain that is added, and of the next that is popped.
    added: u16,
    popped: u16,
    /// Number of the first chain behind the run that is being popped.
    run_end: u16,
}

impl Order {
    /// Of a ring that has so many names for chains, from 0 on.
    pub(crate) fn new(names: u16) -> Self {
        let room = usize::from(names).next_power_of_two();
        let numbers = vec![0; names.into()].into();
        Order { names: vec![0; room].into(), numbers, added: 0, popped: 0, run_end: 0 }
    }

    #[inline(always)]
    fn place(&self, number: u16) -> usize {
        usize::from(number) & (self.names.len() - 1)
    }

    /// A chain that is made next.
    #[inline]
    pub(crate) fn add(&mut self, name: u16) {
        self.numbers[usize::from(name)] = self.added;
        self.names[self.place(self.added)] = name;
        self.added = self.added.wrapping_add(1);
    }

    /// Whether the next chain needs no used element of its own.
    #[inline]
    pub(crate) fn is_within_run(&self) -> bool {
        self.popped != self.run_end
    }

    /// Takes up the used element of a chain that the device has: this one and all before it have been used, which may
    /// be `most`.
    ///
    /// # Errors
    /// They are more: so many.
    #[inline]
    pub(crate) fn begin_run(&mut self, last: u16, most: u16) -> Result<(), u16> {
        let end = self.numbers[usize::from(last)].wrapping_add(1);
        let length = end.wrapping_sub(self.popped);
        if length > most {
            return Err(length);
        }
        self.run_end = end;
        Ok(())
    }

    /// The name of the oldest chain, which is within the run.
    #[inline]
    pub(crate) fn pop(&mut self) -> u16 {
        debug_assert!(self.is_within_run());
        let name = self.names[self.place(self.popped)];
        self.popped = self.popped.wrapping_add(1);
        name
    }

    /// Chains of the run that are still to be popped.
    pub(crate) fn run_length(&self) -> u16 {
        self.run_end.wrapping_sub(self.popped)
    }

    /// Chains of a run that ends with `last`, whatever that is. `None`: the device does not have it.
    pub(crate) fn length_to(&self, last: u16) -> Option<u16> {
        self.chains().position(|name| name == last).map(|position| position as u16 + 1)
    }

    /// The names of the chains, the oldest first.
    pub(crate) fn chains(&self) -> impl Iterator<Item = u16> {
        (0..self.added.wrapping_sub(self.popped)).map(|index| self.names[self.place(self.popped.wrapping_add(index))])
    }
}
