//! Which guest a person means.

use crewboss_boss::report::Answer;
use crewboss_protocol::overview::Overview;
use crewboss_protocol::{HostName, Name, TreeId};

/// Why it is not clear.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// Nothing of that name.
    #[error("there is no guest for you that is called {wanted}, nor one of a target of that name{away}")]
    None {
        /// What was asked for.
        wanted: String,
        /// Hosts that did not answer.
        away: String,
    },
    /// Several guests of a target.
    #[error("{wanted} could be any of {}", candidates.join(", "))]
    Several {
        /// What was asked for.
        wanted: String,
        /// What it could be.
        candidates: Vec<String>,
    },
}

impl FindError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            FindError::None { .. } => Some("`crewboss enter` without a name lists what there is"),
            FindError::Several { .. } => None,
        }
    }
}

/// A guest of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The host.
    pub host: HostName,
    /// What the guest is called there.
    pub guest: Name,
}

/// The host and the rest of `HOST/GUEST`.
pub fn parts(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((host, guest)) => (Some(host), guest),
        None => (None, text),
    }
}

/// Finds the guest that is held, or whose task waits, by its name, by its target, or by
/// `TARGET@COMMIT`.
///
/// # Errors
/// If there is none, or several.
pub fn find(wanted: &str, hosts: &[Answer<Overview>]) -> Result<Found, FindError> {
    let all = candidates(hosts);
    let by_name = all.iter().find(|candidate| candidate.found.guest.as_str() == wanted);
    if let Some(candidate) = by_name {
        return Ok(candidate.found.clone());
    }
    let (target, commit) = wanted.split_once('@').unwrap_or((wanted, ""));
    let fits = |candidate: &&Candidate<'_>| {
        candidate.target.as_str() == target && candidate.commit.to_string().starts_with(commit)
    };
    let mut fitting = all.iter().filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(only), None) => Ok(only.found.clone()),
        (None, _) => Err(FindError::None { wanted: wanted.to_owned(), away: away(hosts) }),
        (Some(_), Some(_)) => Err(FindError::Several {
            wanted: wanted.to_owned(),
            candidates: all.iter().filter(fits).map(Candidate::shown).collect(),
        }),
    }
}

struct Candidate<'a> {
    found: Found,
    target: &'a Name,
    commit: TreeId,
}

impl Candidate<'_> {
    fn shown(&self) -> String {
        format!("{}/{} ({}@{:.8})", self.found.host, self.found.guest, self.target, self.commit)
    }
}

fn candidates(hosts: &[Answer<Overview>]) -> Vec<Candidate<'_>> {
    let mut all = Vec::new();
    for (host, overview) in hosts {
        let Ok(overview) = overview else { continue };
        let found = |guest: &Name| Found { host: host.clone(), guest: guest.clone() };
        all.extend(overview.held.iter().map(|held| Candidate {
            found: found(&held.id),
            target: &held.target,
            commit: held.commit,
        }));
        all.extend(overview.guests.iter().filter_map(|guest| {
            let waiting = guest.waiting.as_ref()?;
            Some(Candidate { found: found(&guest.id), target: &waiting.target, commit: waiting.commit })
        }));
    }
    all
}

fn away(hosts: &[Answer<Overview>]) -> String {
    let away: Vec<&str> =
        hosts.iter().filter(|(_, answer)| answer.is_err()).map(|(host, _)| host.as_str()).collect();
    if away.is_empty() { String::new() } else { format!(" (not asked, since away: {})", away.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::samples::{held_guest, host, overview};

    fn hosts() -> Vec<Answer<Overview>> {
        let mut second = overview();
        second.held.clear();
        second.guests[0].id = "debian12-gcc12-zzzzzz".parse().unwrap();
        second.guests[0].waiting.as_mut().unwrap().commit = TreeId([0x2b; 20]);
        vec![
            (host("lab1"), Ok(overview())),
            (host("lab2"), Ok(second)),
            (host("lab3"), Err("connection refused".to_owned())),
        ]
    }

    #[test]
    fn a_guest_is_found_by_its_name_and_by_its_target() {
        let hosts = hosts();
        let held = held_guest();
        let lab1 = |guest: &Name| Found { host: host("lab1"), guest: guest.clone() };
        assert_eq!(find(held.id.as_str(), &hosts), Ok(lab1(&held.id)));
        assert_eq!(find(held.target.as_str(), &hosts), Ok(lab1(&held.id)));
        let second = find("x86@2b2b", &hosts).unwrap();
        assert_eq!((second.host, second.guest.as_str()), (host("lab2"), "debian12-gcc12-zzzzzz"));
        let Err(FindError::Several { candidates, .. }) = find("x86", &hosts) else { panic!() };
        assert_eq!(candidates.len(), 2);
        let told = find("mips", &hosts).unwrap_err().to_string();
        assert!(told.contains("mips") && told.contains("lab3"), "{told}");
        assert!(matches!(find("x86@ff", &hosts), Err(FindError::None { .. })));
        assert_eq!(parts("lab1/x86"), (Some("lab1"), "x86"));
        assert_eq!(parts("x86"), (None, "x86"));
    }
}
