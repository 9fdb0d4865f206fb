//! The order of arming, looking and sleeping, in which no wake-up is lost.
//!
//! This file stands alone, so that the model in `tests/sleep_protocol.rs` runs the very code that workers run.

/// Somebody about to sleep. Others make work for it at any time: they store it first, then look whether they were asked
/// for a sign, and give one.
pub(crate) trait Sleeper {
    /// Asks all for a sign with the next work that they make, and looks once more, in this order for each of them.
    /// Returns `true` if there is work already, or if somebody cannot give a sign.
    fn arm(&mut self) -> bool;
    /// Whether a command is in the mailbox. Its sender stores it first, then rings the bell, in any case.
    fn has_commands(&self) -> bool;
    /// Returns when there is a sign, of a bell or of anybody who was asked: signs stay until they are taken.
    fn wait(&mut self);
    /// Takes the signs of the bell. Commands are looked for after it.
    fn clear_bell(&mut self);
    /// Asks for no more signs, and takes those that there are. Work is looked for after it.
    fn disarm(&mut self);
}

/// Sleeps, unless there is work. Returns whether it has. To be followed by a look at commands and work.
pub(crate) fn sleep(sleeper: &mut impl Sleeper) -> bool {
    // All are asked before any sleep: whatever comes after the look at it gives a sign, and whatever came before is
    // seen.
    let sleeps = !sleeper.arm() && !sleeper.has_commands();
    if sleeps {
        sleeper.wait();
        sleeper.clear_bell();
    }
    sleeper.disarm();
    sleeps
}
