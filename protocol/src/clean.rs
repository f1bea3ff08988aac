//! What `clean` reports: one line on its standard output.

use serde::{Deserialize, Serialize};

use crate::id::{RunId, SessionId};
use crate::limits::{MACHINES_MAX, TEXT_BYTES_MAX};
use crate::machine::HeldGuest;
use crate::message::{Invalid, Validate};

/// Sessions in one report, of each kind; a host never has nearly as many.
const SESSIONS_MAX: usize = 4096;

/// What was found and done on a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanReport {
    /// Sessions whose worker lived and was ended.
    #[serde(default)]
    pub ended: Vec<SessionId>,
    /// Sessions whose worker was dead already and whose leftovers were removed.
    #[serde(default)]
    pub removed: Vec<SessionId>,
    /// Sessions that were not touched.
    #[serde(default)]
    pub left: Vec<LeftAlone>,
    /// Processes that were killed, workers not counted that ended in order.
    #[serde(default)]
    pub processes: u32,
    /// Directories of sessions that were removed.
    #[serde(default)]
    pub directories: u32,
    /// Guests that were removed, of dead sessions and held ones.
    #[serde(default)]
    pub guests: u32,
    /// Guests that were held for a person, and were ended.
    #[serde(default)]
    pub held_ended: Vec<HeldGuest>,
    /// Guests that are held on: somebody is in them, or their session lives.
    #[serde(default)]
    pub held_left: Vec<HeldGuest>,
    /// btrfs subvolumes among what was removed.
    #[serde(default)]
    pub subvolumes: u32,
    /// Lock files of the dead that were removed.
    #[serde(default)]
    pub locks: u32,
    /// What could not be done, each a sentence.
    #[serde(default)]
    pub errors: Vec<String>,
    /// The work directory, if all of it that was made by us was removed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub purged: String,
    /// What is still in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
}

/// A session that was not touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftAlone {
    /// The session.
    pub session: SessionId,
    /// Who started its boss, as `user@computer`.
    pub boss: String,
    /// Its run.
    pub run: RunId,
    /// Why it was left alone.
    pub why: WhyLeft,
}

/// Why a session was left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyLeft {
    /// Its boss was heard a moment ago.
    BossAlive,
    /// It belongs to another user, and this one may not end it.
    OtherUser,
}

impl Validate for CleanReport {
    fn validate(&self) -> Result<(), Invalid> {
        let fits = |field: &'static str, len: usize, max: usize| {
            let why = || format!("{len} is over the limit of {max}");
            if len <= max { Ok(()) } else { Err(Invalid { field, why: why() }) }
        };
        fits("ended", self.ended.len(), SESSIONS_MAX)?;
        fits("removed", self.removed.len(), SESSIONS_MAX)?;
        fits("left", self.left.len(), SESSIONS_MAX)?;
        fits("errors", self.errors.len(), SESSIONS_MAX)?;
        fits("held_ended", self.held_ended.len(), MACHINES_MAX)?;
        fits("held_left", self.held_left.len(), MACHINES_MAX)?;
        fits("kept", self.kept.len(), SESSIONS_MAX)?;
        fits("purged", self.purged.len(), TEXT_BYTES_MAX)?;
        let long = self.errors.iter().chain(&self.kept).any(|text| text.len() > TEXT_BYTES_MAX);
        let why = || format!("one is longer than {TEXT_BYTES_MAX} bytes");
        if long { Err(Invalid { field: "errors", why: why() }) } else { Ok(()) }
    }
}
