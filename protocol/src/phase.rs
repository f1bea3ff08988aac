//! What an attempt is at, and for how long: one closed list for hosts and guests, in messages,
//! events and results.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::id::Name;
use crate::limits::{NUMBER_MAX, STAGES_MAX};

/// What an attempt is at. Whoever reads results of many runs rests on these names: they may become
/// more, but none changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It waits for its turn: for a host, a slot, or the warm directory of its target.
    Waiting,
    /// Its source is on the way to the host.
    Source,
    /// Its directories are made, or its source is unpacked in its guest.
    Preparing,
    /// It has a slot and waits for a place in its machine, or until others have bootstrapped that.
    Machine,
    /// Its machine is bootstrapped, or a guest of it is saved for others to start from.
    Bootstrapping,
    /// Its guest boots, or those that serve it.
    Booting,
    /// This stage runs.
    Stage(Name),
    /// Its stages run, and only its guest knows which.
    Stages,
    /// It waits for a person in its guest.
    Person,
    /// What it made is found, packed and brought to the boss.
    Collecting,
    /// Its guest is saved for a person.
    Holding,
    /// Its result is written down.
    Storing,
}

impl Phase {
    /// All but stages, which have names: as many phases as there can be of one attempt besides
    /// those.
    const OTHERS: usize = 11;

    /// The stage, if it is one.
    pub fn stage(&self) -> Option<&Name> {
        if let Self::Stage(name) = self { Some(name) } else { None }
    }

    /// When something happened, for the middle of a sentence.
    pub fn during(&self) -> String {
        match self {
            Self::Stage(_) => format!("in {self}"),
            Self::Stages => "in its stages".to_owned(),
            other => format!("while {other}"),
        }
    }

    /// Whether this is the attempt's own time, and not that of others for whom it waits or who
    /// write it down.
    fn is_own(&self) -> bool {
        !matches!(self, Self::Waiting | Self::Source | Self::Person | Self::Storing)
    }
}

/// As people see it.
impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Source => "waiting for its source",
            Self::Preparing => "preparing",
            Self::Machine => "waiting for its machine",
            Self::Bootstrapping => "bootstrapping",
            Self::Booting => "booting",
            Self::Stage(name) => return write!(f, "stage {name}"),
            Self::Stages => "stages",
            Self::Person => "waiting for a person",
            Self::Collecting => "collecting",
            Self::Holding => "keeping its guest",
            Self::Storing => "storing",
        })
    }
}

/// One phase and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// All of its time together, in milliseconds.
    pub wall_ms: u64,
}

/// Where the time of an attempt went: each phase once, in the order in which they began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Phases(Vec<PhaseTime>);

impl Phases {
    /// More of one attempt make no sense. One stage is the boss's own: it hands over what is
    /// uploaded.
    pub const MAX: usize = STAGES_MAX + 1 + Phase::OTHERS;

    /// Adds the time of a phase to what it has taken before.
    pub fn add(&mut self, phase: Phase, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(NUMBER_MAX).min(NUMBER_MAX);
        match self.0.iter_mut().find(|known| known.phase == phase) {
            Some(known) => known.wall_ms = known.wall_ms.saturating_add(ms),
            None => self.0.push(PhaseTime { phase, wall_ms: ms }),
        }
    }

    /// Adds the time for which it waited before anything else.
    pub fn add_waiting(&mut self, time: Duration) {
        self.add(Phase::Waiting, time);
        if let Some(place) = self.0.iter().position(|known| known.phase == Phase::Waiting) {
            self.0[..=place].rotate_right(1);
        }
    }

    /// Of what one phase has taken, so much was another one, or as much of it as there is.
    pub fn concede(&mut self, from: &Phase, to: Phase, wall_ms: u64) {
        let Some(known) = self.0.iter_mut().find(|known| known.phase == *from) else { return };
        let part = wall_ms.min(known.wall_ms);
        known.wall_ms -= part;
        self.add(to, Duration::from_millis(part));
    }

    /// The phases in their order.
    pub fn iter(&self) -> std::slice::Iter<'_, PhaseTime> {
        self.0.iter()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them together, in milliseconds.
    pub fn total_ms(&self) -> u64 {
        self.0.iter().fold(0, |sum, one| sum.saturating_add(one.wall_ms))
    }

    /// What the attempt has taken itself: all but what it waited for its turn, its source and a
    /// person, and but the time that writing it down takes. In milliseconds.
    pub fn own_ms(&self) -> u64 {
        let own = self.0.iter().filter(|one| one.phase.is_own());
        own.fold(0, |sum, one| sum.saturating_add(one.wall_ms))
    }
}

/// Measures phases as they follow each other.
#[derive(Debug, Clone, Default)]
pub struct PhaseClock {
    ended: Phases,
    current: Option<(Phase, Millis)>,
}

impl PhaseClock {
    /// Goes on after what others have measured.
    pub fn after(ended: Phases) -> Self {
        Self { ended, current: None }
    }

    /// A phase begins, and the one before it has ended.
    pub fn begin(&mut self, phase: Phase, now: Millis) {
        self.stop(now);
        self.current = Some((phase, now));
    }

    /// The phase that has not ended.
    pub fn current(&self) -> Option<&Phase> {
        self.current.as_ref().map(|(phase, _)| phase)
    }

    /// For how long it has been going on.
    pub fn elapsed(&self, now: Millis) -> Duration {
        self.current.as_ref().map_or(Duration::ZERO, |(_, since)| now.since(*since))
    }

    /// Those that have ended.
    pub fn ended(&mut self) -> &mut Phases {
        &mut self.ended
    }

    /// All of them. The last one has ended.
    pub fn end(mut self, now: Millis) -> Phases {
        self.stop(now);
        self.ended
    }

    fn stop(&mut self, now: Millis) {
        if let Some((phase, since)) = self.current.take() {
            self.ended.add(phase, now.since(since));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &str) -> Phase {
        Phase::Stage(name.parse().unwrap())
    }

    fn shown(phases: &Phases) -> Vec<(String, u64)> {
        phases.iter().map(|one| (one.phase.to_string(), one.wall_ms)).collect()
    }

    /// Results of many years are compared by these words.
    #[test]
    fn the_names_of_phases_stay() {
        let all = [
            Phase::Waiting,
            Phase::Source,
            Phase::Preparing,
            Phase::Machine,
            Phase::Bootstrapping,
            Phase::Booting,
            Phase::Stages,
            Phase::Person,
            Phase::Collecting,
            Phase::Holding,
            Phase::Storing,
        ];
        assert_eq!(all.len(), Phase::OTHERS);
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(
            text,
            r#"["waiting","source","preparing","machine","bootstrapping","booting","stages","person","collecting","holding","storing"]"#
        );
        assert_eq!(serde_json::from_str::<Vec<Phase>>(&text).unwrap(), all);
        assert_eq!(serde_json::to_string(&stage("build")).unwrap(), r#"{"stage":"build"}"#);
        assert_eq!(stage("build").during(), "in stage build");
        assert_eq!(Phase::Booting.during(), "while booting");
    }

    #[test]
    fn the_parts_of_a_phase_are_added_up_and_nothing_is_lost() {
        let at = Millis;
        let mut clock = PhaseClock::default();
        for (phase, ms) in [
            (Phase::Waiting, 0),
            (Phase::Preparing, 10),
            (Phase::Waiting, 30),
            (Phase::Booting, 60),
            (stage("a"), 100),
            (Phase::Person, 200),
        ] {
            clock.begin(phase, at(ms));
        }
        assert_eq!(clock.elapsed(at(250)), Duration::from_millis(50));
        let ended = clock.end(at(300));
        let mut clock = PhaseClock::after(ended);
        clock.begin(Phase::Stages, at(300));
        clock.begin(Phase::Collecting, at(400));
        for name in ["b", "c"] {
            clock.ended().concede(&Phase::Stages, stage(name), 60);
        }
        let mut phases = clock.end(at(410));
        assert_eq!(
            shown(&phases),
            [
                ("waiting", 40),
                ("preparing", 20),
                ("booting", 40),
                ("stage a", 100),
                ("waiting for a person", 100),
                ("stages", 0),
                ("stage b", 60),
                ("stage c", 40),
                ("collecting", 10)
            ]
            .map(|(phase, ms)| (phase.to_owned(), ms))
        );
        assert_eq!((phases.total_ms(), phases.own_ms()), (410, 270));
        phases.add_waiting(Duration::from_millis(5));
        assert_eq!(shown(&phases)[..2], [("waiting".to_owned(), 45), ("preparing".to_owned(), 20)]);
        let mut phases = Phases::default();
        phases.add(Phase::Source, Duration::from_millis(7));
        phases.add_waiting(Duration::from_millis(5));
        let expected = [("waiting".to_owned(), 5), ("waiting for its source".to_owned(), 7)];
        assert_eq!(shown(&phases), expected);
    }
}
