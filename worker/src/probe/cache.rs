//! `probe.json`: what was found out once and is slow to find out again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use crewboss_ground::{Replace, read_record};
use crewboss_protocol::Feature;
use crewboss_protocol::host::SpeedSource;
use serde::{Deserialize, Serialize};

use super::speed::{self, Measurement};
use super::trial::{Identity, Trial};

/// A file larger than this is not ours.
const CACHE_BYTES_MAX: u64 = 4 << 20;

/// Compilers remembered; beyond it all are tried again.
const TRIALS_MAX: usize = 2048;

/// Disturbed measurements of the speed before the best of them is taken for good.
const DISTURBED_MAX: u32 = 5;

/// What earlier probes found out. Anything unreadable counts as not known.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Cache {
    #[serde(default)]
    speed: Option<Speed>,
    /// By the compiler's path.
    #[serde(default)]
    trials: BTreeMap<String, (Identity, Trial)>,
    #[serde(default)]
    features: Option<(String, BTreeSet<Feature>)>,
    #[serde(skip)]
    changed: bool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Speed {
    key: speed::Key,
    speed: u32,
    source: SpeedSource,
    /// How often it was measured while something else disturbed it; `None` once it was not.
    disturbed: Option<u32>,
}

impl Cache {
    pub(super) fn load(path: &Path) -> Self {
        let cache = read_record(path, CACHE_BYTES_MAX).ok().flatten();
        cache.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Writes what is new, whole or not at all.
    pub(super) fn store(&self, path: &Path) -> io::Result<()> {
        if !self.changed {
            return Ok(());
        }
        Ok(Replace::with_mode(0o600).path(path, &serde_json::to_vec(self)?)?)
    }

    /// The best of what was measured. A disturbed measurement is tried again by the next probes, so
    /// that every probe takes about as long as one measurement at the most.
    pub(super) fn speed(
        &mut self,
        key: &speed::Key,
        measure: impl FnOnce() -> Measurement,
    ) -> (u32, SpeedSource) {
        let known = self.speed.take().filter(|known| known.key == *key);
        let (best, tries) = match known {
            Some(known) if known.disturbed.is_none_or(|tries| tries >= DISTURBED_MAX) => {
                let answer = (known.speed, known.source);
                self.speed = Some(known);
                return answer;
            }
            Some(known) => (known.speed, known.disturbed.unwrap_or(0)),
            None => (0, 0),
        };
        let Measurement { speed, source, settled } = measure();
        let speed = speed.max(best);
        let disturbed = (!settled).then_some(tries + 1);
        self.speed = Some(Speed { key: key.clone(), speed, source, disturbed });
        self.changed = true;
        (speed, source)
    }

    pub(super) fn trial(&self, path: &str, identity: &Identity) -> Option<&Trial> {
        self.trials.get(path).filter(|(known, _)| known == identity).map(|(_, trial)| trial)
    }

    pub(super) fn note_trial(&mut self, path: String, identity: Identity, trial: Trial) {
        if self.trials.len() >= TRIALS_MAX {
            self.trials.clear();
        }
        self.trials.insert(path, (identity, trial));
        self.changed = true;
    }

    /// The features under a key that changes with the boot and the file system.
    pub(super) fn features(
        &mut self,
        key: String,
        find: impl FnOnce() -> io::Result<BTreeSet<Feature>>,
    ) -> io::Result<BTreeSet<Feature>> {
        if let Some((_, known)) = self.features.as_ref().filter(|(known, _)| *known == key) {
            return Ok(known.clone());
        }
        let found = find()?;
        self.features = Some((key, found.clone()));
        self.changed = true;
        Ok(found)
    }
}
