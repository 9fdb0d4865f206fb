//! The order of arming, looking and sleeping, in which no wake-up is lost.
//!
//! This file stands alone, so that the model in `tests/sleep_protocol.rs` runs the very code that workers run.

/// A thread about to sleep. Others make work for it at any time: they store the work first, then check whether they
/// were asked for a sign, and give one.
pub(crate) trait Sleeper {
    /// Asks all for a sign with the next work that they make, then looks for work once more, in this order for each of
    /// them. Returns `true` if there is work already, or if one of them cannot give a sign.
    fn arm(&mut self) -> bool;
    /// Whether a command is in the mailbox. Its sender stores it first, then rings the bell, in any case.
    fn has_commands(&self) -> bool;
    /// Returns when there is a sign, from a bell or from anyone who was asked: signs stay until they are taken.
    fn wait(&mut self);
    /// Takes the signs of the bell. Check for commands afterwards.
    fn clear_bell(&mut self);
    /// Asks for no more signs, and takes the existing ones. Check for work afterwards.
    fn disarm(&mut self);
}

/// Sleeps, unless there is work. Returns whether it has slept. Check for commands and work afterwards.
pub(crate) fn sleep(sleeper: &mut impl Sleeper) -> bool {
    // All are asked before any sleep: work that comes after the check gives a sign, and work that came before is seen.
    let sleeps = !sleeper.arm() && !sleeper.has_commands();
    if sleeps {
        sleeper.wait();
        sleeper.clear_bell();
    }
    sleeper.disarm();
    sleeps
}
