//! Names for the requests passed to a plugin: each is used only once, so that a plugin cannot complete a request twice,
//! or one that never existed.
use crate::fallible;
use std::collections::TryReserveError;

/// The token of a free slot.
const NO_TOKEN: u64 = u64::MAX;
const SLOT_BITS: u32 = 32;

/// The state of a slot.
#[derive(Clone, Copy, Debug)]
struct Entry<T> {
    /// [`NO_TOKEN`]: its request has completed.
    token: u64,
    /// Remains after its request has completed.
    note: T,
}

/// The tokens of one queue: a slot, a number below the depth, and a generation. With each goes a note.
#[derive(Debug)]
pub(super) struct Tokens<T> {
    slots: Box<[Entry<T>]>,
    generation: u32,
}

impl<T: Copy> Tokens<T> {
    /// Tokens for `depth` slots. `note` is the note of slots that were never used.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn new(depth: usize, note: T) -> Result<Self, TryReserveError> {
        Ok(Tokens { slots: fallible::filled(Entry { token: NO_TOKEN, note }, depth)?, generation: 0 })
    }

    /// From now on, tokens differ from all earlier ones.
    #[inline(always)]
    pub(super) fn begin_batch(&mut self) {
        // Below 2^31, so that no token is `NO_TOKEN`.
        self.generation = self.generation.wrapping_add(1) & 0x7fff_ffff;
    }

    /// A token for a free slot.
    #[inline(always)]
    pub(super) fn issue(&mut self, slot: u32, note: T) -> u64 {
        let token = u64::from(slot) | u64::from(self.generation) << SLOT_BITS;
        let entry = &mut self.slots[slot as usize];
        assert!(entry.token == NO_TOKEN, "a slot was submitted twice");
        *entry = Entry { token, note };
        token
    }

    /// Takes back a token that was not used. Returns its slot.
    #[inline(always)]
    pub(super) fn withdraw(&mut self, token: u64) -> u32 {
        let slot = token as u32;
        self.slots[slot as usize].token = NO_TOKEN;
        slot
    }

    /// Completes the request with this token. Returns whether there is one.
    #[inline(always)]
    pub(super) fn redeem(&mut self, token: u64) -> bool {
        match self.slots.get_mut(Self::slot(token) as usize) {
            Some(entry) if entry.token == token && token != NO_TOKEN => {
                entry.token = NO_TOKEN;
                true
            }
            _ => false,
        }
    }

    /// The slot of a token.
    #[inline(always)]
    pub(super) fn slot(token: u64) -> u32 {
        token as u32
    }

    /// The last note of a slot, even after its request has completed.
    pub(super) fn note(&self, slot: u32) -> T {
        self.slots[slot as usize].note
    }

    /// Number of slots.
    pub(super) fn depth(&self) -> usize {
        self.slots.len()
    }

    /// Completes all requests. Returns the slots that were in use.
    pub(super) fn take_all(&mut self) -> Vec<u32> {
        let was_in_use = |entry: &mut Entry<T>| std::mem::replace(&mut entry.token, NO_TOKEN) != NO_TOKEN;
        let slots = self.slots.iter_mut().enumerate();
        slots.filter_map(|(slot, entry)| was_in_use(entry).then_some(slot as u32)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_and_no_other_is_good_for_its_slot() {
        let mut tokens = Tokens::new(2, 0u64).expect("memory");
        tokens.begin_batch();
        let first = tokens.issue(1, 512);
        assert!(!tokens.redeem(u64::MAX) && !tokens.redeem(first ^ 1) && !tokens.redeem(2), "nothing has these");
        assert!(tokens.redeem(first));
        assert!(!tokens.redeem(first), "it has ended");
        assert_eq!(tokens.note(1), 512, "what is remembered of it stays");
        tokens.begin_batch();
        let second = tokens.issue(1, 1024);
        assert_ne!(second, first);
        assert!(!tokens.redeem(first), "an earlier one of the same slot");
        assert_eq!(tokens.withdraw(second), 1);
        assert!(!tokens.redeem(second), "it was never used");
    }

    #[test]
    fn what_is_in_use_is_known() {
        let mut tokens = Tokens::new(4, ()).expect("memory");
        tokens.begin_batch();
        let issued: Vec<u64> = [3, 0, 2].map(|slot| tokens.issue(slot, ())).into();
        assert!(tokens.redeem(issued[1]));
        assert_eq!(tokens.take_all(), [2, 3]);
        assert!(tokens.take_all().is_empty() && !tokens.redeem(issued[0]));
    }
}
