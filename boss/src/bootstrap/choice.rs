//! Which machines of a host are to be bootstrapped, by what the host says of them: pure.

use crewboss_protocol::machine::{CopyState, DEFAULT_TOOLCHAIN, MachineFacts, MachineRole, MachineState};
use crewboss_protocol::message::BootstrapEnd;
use crewboss_protocol::{HostFacts, Name};

use super::Verdict;

/// What a person wants.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// These machines; if there are none, all that need it.
    pub machines: Vec<Name>,
    /// With this toolchain in place of the default one. Auxiliary machines always have the default
    /// one.
    pub toolchain: Option<Name>,
    /// Also those that are ready.
    pub force: bool,
}

/// A machine of a host, with what is to be done or why nothing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    pub machine: Name,
    pub toolchain: Name,
    /// `None`: bootstrap it.
    pub verdict: Option<Verdict>,
}

impl Wanted {
    /// A name among those wanted that none of these hosts has, and what it would be the name of.
    pub(super) fn unknown<'a>(
        &self,
        hosts: impl Iterator<Item = &'a HostFacts> + Clone,
    ) -> Option<(&'static str, &Name)> {
        let machines = || hosts.clone().flat_map(|host| &host.machines);
        let machine = self.machines.iter().find(|name| machines().all(|machine| machine.name != **name));
        let has =
            |name: &Name| machines().any(|machine| machine.copies.iter().any(|copy| copy.toolchain == *name));
        let toolchain = self.toolchain.iter().find(|name| name.as_str() != DEFAULT_TOOLCHAIN && !has(name));
        machine.map(|name| ("machine", name)).or_else(|| toolchain.map(|name| ("usable toolchain", name)))
    }

    /// What is to be done on a host, in its order of machines.
    pub(super) fn choose(&self, host: &HostFacts) -> Vec<Chosen> {
        let mut chosen: Vec<Chosen> = Vec::new();
        for machine in &host.machines {
            // Of two machines of one name the first counts.
            let twice = chosen.iter().any(|other| other.machine == machine.name);
            let named = self.machines.contains(&machine.name);
            if twice || !(named || self.machines.is_empty()) {
                continue;
            }
            let Some(toolchain) = self.toolchain_of(machine) else { continue };
            let verdict = if host.emulator.is_none() {
                Some(failed(&format!("this host has no QEMU that can be used: {}", host.no_emulator)))
            } else {
                self.verdict(machine, &toolchain, named)
            };
            chosen.push(Chosen { machine: machine.name.clone(), toolchain, verdict });
        }
        chosen
    }

    fn toolchain_of(&self, machine: &MachineFacts) -> Option<Name> {
        let given = self.toolchain.clone().filter(|_| machine.role == MachineRole::Build);
        given.or_else(|| DEFAULT_TOOLCHAIN.parse().ok())
    }

    fn verdict(&self, machine: &MachineFacts, toolchain: &Name, named: bool) -> Option<Verdict> {
        match &machine.state {
            MachineState::Unusable { why } => return Some(failed(why)),
            MachineState::LittleMemory { needs, has } => {
                let why = format!(
                    "it needs {} MiB of memory, and a slot of this host has {}; give the host fewer slots",
                    needs >> 20,
                    has >> 20
                );
                return Some(if named { failed(&why) } else { Verdict::Skipped { why } });
            }
            MachineState::Usable => {}
        }
        let copy = machine.copies.iter().find(|copy| copy.toolchain == *toolchain);
        match copy.map(|copy| (&copy.state, &copy.versions)) {
            Some((CopyState::Ready, versions)) if !self.force => {
                Some(Verdict::Ended(BootstrapEnd::Ready { versions: versions.clone() }))
            }
            Some((CopyState::Newer { agent }, _)) => Some(failed(&format!(
                "a newer crewboss made its copy (its agent has version {agent}), which is left alone"
            ))),
            None if toolchain.as_str() != DEFAULT_TOOLCHAIN => {
                Some(failed(&format!("this host has no toolchain {toolchain} that can be used")))
            }
            _ => None,
        }
    }
}

fn failed(why: &str) -> Verdict {
    Verdict::Ended(BootstrapEnd::Failed { why: why.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crewboss_protocol::Load;
    use crewboss_protocol::host::SpeedSource;
    use crewboss_protocol::machine::{Accelerator, CopyFacts, Emulator};

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn machine(
        text: &str,
        role: MachineRole,
        state: MachineState,
        copies: &[(&str, CopyState)],
    ) -> MachineFacts {
        let copy = |(toolchain, state): &(&str, CopyState)| CopyFacts {
            toolchain: name(toolchain),
            toolchain_id: String::new(),
            state: state.clone(),
            made: 0,
            versions: BTreeMap::new(),
            holders: Vec::new(),
        };
        MachineFacts {
            volume: name("v"),
            name: name(text),
            role,
            id: "1".to_owned(),
            summary: String::new(),
            state,
            copies: copies.iter().map(copy).collect(),
            memory_min: 1,
            memory_max: None,
        }
    }

    fn host(machines: Vec<MachineFacts>) -> HostFacts {
        let load = Load {
            load_percent: 0,
            memory_available: 0,
            disk_free: 0,
            cpu_pressure: None,
            temperature: None,
        };
        HostFacts {
            kernel: String::new(),
            architecture: String::new(),
            threads: 1,
            memory: 1,
            disk_free: 1,
            work: String::new(),
            slots: 1,
            speed: 1000,
            speed_source: SpeedSource::Measured,
            toolchains: Vec::new(),
            broken_toolchains: Vec::new(),
            features: Default::default(),
            load,
            holders: Vec::new(),
            trees: Vec::new(),
            emulator: Some(Emulator {
                version: "7.2".to_owned(),
                accelerator: Accelerator::Tcg,
                why: String::new(),
            }),
            no_emulator: String::new(),
            guest_memory: 1 << 30,
            machines,
            held: Vec::new(),
        }
    }

    fn all() -> HostFacts {
        let why = || "why".to_owned();
        host(vec![
            machine(
                "ready",
                MachineRole::Build,
                MachineState::Usable,
                &[("default", CopyState::Ready), ("gcc", CopyState::NeedsBootstrap { why: why() })],
            ),
            machine(
                "stale",
                MachineRole::Build,
                MachineState::Usable,
                &[("default", CopyState::Suspended { why: why() }), ("gcc", CopyState::Ready)],
            ),
            machine("serves", MachineRole::Auxiliary, MachineState::Usable, &[]),
            machine(
                "newer",
                MachineRole::Build,
                MachineState::Usable,
                &[("default", CopyState::Newer { agent: 9 }), ("gcc", CopyState::Newer { agent: 9 })],
            ),
            machine("large", MachineRole::Build, MachineState::LittleMemory { needs: 2, has: 1 }, &[]),
            machine("broken", MachineRole::Build, MachineState::Unusable { why: why() }, &[]),
            machine("ready", MachineRole::Build, MachineState::Unusable { why: why() }, &[]),
        ])
    }

    /// A letter for each machine: bootstrapped, ready, failed, skipped.
    fn chosen(wanted: &Wanted, host: &HostFacts) -> Vec<String> {
        let letter = |one: &Chosen| match &one.verdict {
            None => 'b',
            Some(Verdict::Ended(BootstrapEnd::Ready { .. })) => 'r',
            Some(Verdict::Ended(_)) => 'f',
            Some(Verdict::Skipped { .. }) => 's',
        };
        let shown = |one: Chosen| format!("{}-{} {}", one.machine, one.toolchain, letter(&one));
        wanted.choose(host).into_iter().map(shown).collect()
    }

    #[test]
    fn what_needs_it_is_bootstrapped_and_the_rest_is_said() {
        let usual = ["ready-default r", "stale-default b", "serves-default b", "newer-default f"];
        let rest = ["large-default s", "broken-default f"];
        assert_eq!(chosen(&Wanted::default(), &all()), [usual.as_slice(), &rest].concat());
        let gcc = Wanted { toolchain: Some(name("gcc")), ..Wanted::default() };
        assert_eq!(
            chosen(&gcc, &all())[..4],
            ["ready-gcc b", "stale-gcc r", "serves-default b", "newer-gcc f"]
        );
        let named = Wanted { machines: vec![name("large"), name("ready")], force: true, ..Wanted::default() };
        assert_eq!(chosen(&named, &all()), ["ready-default b", "large-default f"]);
        let none = HostFacts { emulator: None, ..all() };
        assert!(chosen(&Wanted::default(), &none).iter().all(|one| one.ends_with('f')));
    }

    #[test]
    fn a_name_that_no_host_has_is_told() {
        let (one, two) = (all(), host(vec![]));
        let unknown = |wanted: Wanted, hosts: &[&HostFacts]| {
            wanted.unknown(hosts.iter().copied()).map(|(what, name)| format!("{what} {name}"))
        };
        let machines = |text| Wanted { machines: vec![name(text)], ..Wanted::default() };
        let toolchain = |text| Wanted { toolchain: Some(name(text)), ..Wanted::default() };
        assert_eq!(unknown(machines("stale"), &[&two, &one]), None);
        assert_eq!(unknown(machines("stale"), &[&two]).as_deref(), Some("machine stale"));
        assert_eq!(unknown(toolchain("gcc"), &[&one]), None);
        assert_eq!(unknown(toolchain("default"), &[&two]), None);
        assert_eq!(unknown(toolchain("vax"), &[&one]).as_deref(), Some("usable toolchain vax"));
        assert_eq!(unknown(Wanted::default(), &[]), None);
    }
}
