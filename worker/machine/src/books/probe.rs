//! What a host tells about its machines.

use std::path::Path;
use std::time::SystemTime;

use crewboss_protocol::limits::{MACHINES_MAX, NAME_BYTES_MAX};
use crewboss_protocol::machine::{
    CopyFacts, CopyState, HeldGuest, MachineFacts, MachineHolder, MachineRole, MachineState,
};
use crewboss_protocol::{Name, chain};

use super::lock::{self, Holding};
use super::record;
use crate::images::directory::{MachineDir, Machines, Misplaced, Standing, Toolchain};
use crate::images::manifest::Manifest;

/// All machines together in a line of the control channel, which has room for more than this. What
/// does not fit is left out from the end.
const BYTES_MAX: usize = 384 << 10;

/// Longest reason: the parser of manifests may repeat half of one.
const WHY_CHARS_MAX: usize = 1000;

/// What is said of every machine, in the order of the directory. Those that cannot be used are
/// there, too, with the reason. `memory` is what a guest can get at most, in bytes.
pub fn machines(machines: &Machines, memory: u64) -> Vec<MachineFacts> {
    let listing = match machines.list() {
        Ok(listing) => listing,
        Err(error) => {
            let misplaced = Misplaced { path: machines.root().to_owned(), why: chain(&error) };
            return unusable_at(&misplaced).into_iter().collect();
        }
    };
    let look = Look {
        memory,
        now: SystemTime::now(),
        holdings: lock::holdings(machines),
        toolchains: machines
            .toolchain_names()
            .into_iter()
            .map(|name| machines.toolchain(&name).map_err(|error| (name, chain(&error))))
            .collect(),
    };
    let usable = listing.machines.iter().map(|machine| look.machine(machine));
    let shadowed = listing.shadowed.iter().map(|shadowed| {
        let why = format!("the volume {} has a machine of this name, too, and comes first", shadowed.by);
        MachineFacts { state: MachineState::Unusable { why }, ..look.machine(&shadowed.machine) }
    });
    // Behind those that can be used: whoever looks for a name finds the right one first.
    let others = shadowed.chain(listing.misplaced.iter().filter_map(unusable_at));
    let facts = usable.chain(others).take(MACHINES_MAX).collect();
    within_bytes(facts)
}

/// The guests that are kept for a person.
pub fn held(machines: &Machines) -> Vec<HeldGuest> {
    let mut held = record::held(machines, SystemTime::now());
    held.truncate(MACHINES_MAX);
    held
}

struct Look {
    memory: u64,
    now: SystemTime,
    holdings: Vec<Holding>,
    /// All that are there; of those that cannot be used, why.
    toolchains: Vec<Result<Toolchain, (Name, String)>>,
}

impl Look {
    fn machine(&self, machine: &MachineDir) -> MachineFacts {
        let manifest = match machine.manifest() {
            Ok(manifest) => manifest,
            Err(error) => {
                let hint = error.hint().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
                let why = format!("{}{hint}", chain(&error));
                return unusable(machine.volume.clone(), machine.name.clone(), &why);
            }
        };
        let state = if self.memory < manifest.memory_min {
            MachineState::LittleMemory { needs: manifest.memory_min, has: self.memory }
        } else {
            MachineState::Usable
        };
        let copies = self.toolchains.iter().map(|toolchain| match toolchain {
            Ok(toolchain) => self.copy(machine, &manifest, toolchain),
            Err((name, why)) => without_toolchain(name, why),
        });
        MachineFacts {
            volume: machine.volume.clone(),
            name: machine.name.clone(),
            role: manifest.role,
            copies: copies.collect(),
            state,
            memory_min: manifest.memory_min,
            memory_max: manifest.memory_max,
            id: manifest.id,
            summary: manifest.summary,
        }
    }

    fn copy(&self, machine: &MachineDir, manifest: &Manifest, toolchain: &Toolchain) -> CopyFacts {
        let uses =
            |holding: &&Holding| holding.machine == machine.name && holding.toolchain == toolchain.name;
        let used: Vec<&Holding> = self.holdings.iter().filter(uses).collect();
        let (state, record) = match machine.standing(manifest, toolchain, self.now) {
            Ok(Standing::Ready(record)) => (CopyState::Ready, Some(record)),
            Ok(Standing::Newer { agent }) => (CopyState::Newer { agent }, machine.copy(&toolchain.name).ok()),
            Ok(Standing::Suspended { why, .. }) => (CopyState::Suspended { why: shortened(&why) }, None),
            Ok(Standing::Remake { why }) => (CopyState::NeedsBootstrap { why: shortened(&why) }, None),
            Err(error) => (CopyState::Suspended { why: shortened(&chain(&error)) }, None),
        };
        let bootstrapping = used.iter().any(|holding| holding.place.is_none());
        let state = match state {
            CopyState::NeedsBootstrap { .. } if bootstrapping => CopyState::Bootstrapping,
            state => state,
        };
        CopyFacts {
            toolchain: toolchain.name.clone(),
            toolchain_id: toolchain.id.clone(),
            state,
            made: record.as_ref().map_or(0, |record| record.made),
            versions: record.map(|record| record.versions).unwrap_or_default(),
            holders: Self::holders(&used),
        }
    }

    fn holders(used: &[&Holding]) -> Vec<MachineHolder> {
        let mut holders: Vec<MachineHolder> = Vec::new();
        for holder in used.iter().map(|holding| &holding.holder) {
            // Who bootstraps holds a place, too.
            if holders.iter().all(|other| (other.pid, other.task) != (holder.pid, holder.task)) {
                holders.push(holder.clone());
            }
        }
        holders
    }
}

fn without_toolchain(name: &Name, why: &str) -> CopyFacts {
    CopyFacts {
        toolchain: name.clone(),
        toolchain_id: String::new(),
        state: CopyState::NoToolchain { why: shortened(why) },
        made: 0,
        versions: Default::default(),
        holders: Vec::new(),
    }
}

fn unusable(volume: Name, name: Name, why: &str) -> MachineFacts {
    MachineFacts {
        volume,
        name,
        role: MachineRole::Build,
        id: String::new(),
        summary: String::new(),
        state: MachineState::Unusable { why: shortened(why) },
        copies: Vec::new(),
        memory_min: 0,
        memory_max: None,
    }
}

/// Something that can be no machine, under the nearest names that a machine could have.
fn unusable_at(misplaced: &Misplaced) -> Option<MachineFacts> {
    let path = &misplaced.path;
    let why = format!("{}: {}", path.display(), misplaced.why);
    Some(unusable(nearest_name(path.parent()?)?, nearest_name(path)?, &why))
}

fn nearest_name(path: &Path) -> Option<Name> {
    let text = path.file_name()?.to_string_lossy();
    let allowed =
        |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-') { c } else { '_' };
    let mut name: String = text.chars().map(allowed).take(NAME_BYTES_MAX - 1).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        name.insert(0, '_');
    }
    name.parse().ok()
}

fn shortened(text: &str) -> String {
    text.chars().take(WHY_CHARS_MAX).collect()
}

fn within_bytes(mut facts: Vec<MachineFacts>) -> Vec<MachineFacts> {
    let mut room = BYTES_MAX;
    let fits = facts.iter().take_while(|facts| {
        let bytes = serde_json::to_string(facts).map_or(usize::MAX, |text| text.len() + 1);
        let left = room.checked_sub(bytes);
        room = left.unwrap_or(0);
        left.is_some()
    });
    let fits = fits.count();
    facts.truncate(fits);
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_can_be_none_is_shown_by_the_nearest_one() {
        let near = |path: &str| nearest_name(Path::new(path)).map(|name| name.to_string());
        assert_eq!(near("/m/my volume").as_deref(), Some("my_volume"));
        assert_eq!(near("/m/-x").as_deref(), Some("_-x"));
        assert_eq!(near("/m/\u{1b}[2J").as_deref(), Some("__2J"));
        assert_eq!(
            near(&format!("/m/{}", "\u{e4}".repeat(200))).map(|name| name.len()),
            Some(NAME_BYTES_MAX - 1)
        );
        assert_eq!(near("/"), None);
    }

    #[test]
    fn all_machines_fit_into_a_line() {
        let machine = |number: u32| {
            let name = format!("m{number}").parse().unwrap();
            unusable("v".parse().unwrap(), name, &"\"".repeat(2000))
        };
        let few = within_bytes((0..10).map(machine).collect());
        assert_eq!(few.len(), 10);
        let many = within_bytes((0..1000).map(machine).collect());
        assert!(many.len() > 100 && many.len() < 1000);
        assert!(serde_json::to_string(&many).unwrap().len() <= BYTES_MAX + 2);
        assert_eq!(many[..10], few[..]);
    }
}
