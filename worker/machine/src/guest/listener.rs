//! Who hears of guests while they run.

use std::fmt::Debug;
use std::time::Instant;

use crewboss_host::program::Control;
use crewboss_protocol::{FromWorker, Phase};

/// What watching guests needs of whoever asked for them: somebody who can cancel it all, and hears
/// how it goes.
pub trait Listener: Control + Debug {
    /// We go on until then at most, and after it do one thing that nobody hears of.
    fn promise(&mut self, until: Instant);

    /// The attempt comes to this phase now.
    fn note(&mut self, phase: &Phase);

    /// A message that must reach the boss.
    fn forward(&mut self, message: &FromWorker);

    /// Output for the live view; it goes out at the next [`Control::flush_live`] whose time has
    /// come.
    fn live(&mut self, bytes: &[u8]);
}
