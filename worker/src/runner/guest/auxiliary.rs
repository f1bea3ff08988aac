//! Machines that serve the build machine: started before it, in the order given, and watched while
//! it runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crewboss_machine::books::record::Step;
use crewboss_machine::guest::boot::{Patience, boot};
use crewboss_machine::guest::plan::Purpose;
use crewboss_machine::guest::running::GuestEvent;
use crewboss_machine::guest::verdict::Stop;
use crewboss_machine::guest::watch::Watch;
use crewboss_machine::images::files::ENVIRONMENT;
use crewboss_protocol::guest::{Ending, FromGuest, Served, ToGuest};
use crewboss_protocol::machine::variable_prefix;
use crewboss_protocol::{Name, Phase, chain};

use super::Task;
use super::boot::{start, wire};
use super::claim::{Claim, Claims};

/// The variable with a machine's address in the private network, behind its prefix.
const ADDRESS: &str = "ADDRESS";

impl Task<'_> {
    /// Starts all of them, one after the other, and keeps what they say of themselves for the task.
    pub(super) fn start_auxiliaries(&mut self, claims: &mut Claims) -> Result<(), Stop> {
        if !claims.auxiliary.is_empty() {
            self.watch.begin(Phase::Booting);
        }
        for place in 0..claims.auxiliary.len() {
            self.boot_auxiliary(claims, place)?;
            let (name, claim) = &claims.auxiliary[place];
            let own = self.serve(name, claim)?;
            let prefix = variable_prefix(name);
            let mine = |variable: &str| format!("{prefix}_{variable}");
            let address = self.guests.last().and_then(|guest| guest.private.clone());
            let mut variables: BTreeMap<String, String> =
                address.into_iter().map(|(_, address)| (mine(ADDRESS), address.to_string())).collect();
            // What it says itself wins.
            variables.extend(own.into_iter().map(|(variable, value)| (mine(&variable), value)));
            self.served.push(Served { name: name.clone(), variables: variables.into_iter().collect() });
            self.watch.step(format!("{name} serves ({})", claim.directory.name));
        }
        Ok(())
    }

    fn boot_auxiliary(&mut self, claims: &mut Claims, place: usize) -> Result<(), Stop> {
        let Claims { machines, owners, auxiliary, .. } = claims;
        let (name, claim) = &mut auxiliary[place];
        let limits = claim.manifest.limits;
        let patience = Patience { startup: limits.startup, again: limits.misboots };
        let machine = claim.directory.name.clone();
        let job = self.machine;
        let mut start = |watch: &mut Watch<'_>| {
            let purpose = Purpose::Serve { document: format!("{name}\n") };
            let wire = wire(watch, place)?;
            let (guest, copy) = start(machines, owners, job, claim, purpose, Some(wire), false)?;
            claim.used = Some(copy.record);
            Ok(guest)
        };
        match boot(&mut self.watch, &mut self.guests, &machine, patience, &mut start) {
            Err(stop @ (Stop::Cancelled | Stop::Killed { .. } | Stop::Auxiliary { .. })) => return Err(stop),
            Err(Stop::Lasting(why)) => {
                return Err(Stop::Lasting(format!("the auxiliary machine {name} is missing: {why}")));
            }
            Err(stop) => return Err(Stop::Auxiliary { name: name.clone(), why: stop.to_string() }),
            Ok(_) => {}
        }
        let last = self.build();
        self.guests[last].auxiliary = Some(name.clone());
        Ok(())
    }

    /// Has the machine that was started last serve. Returns what it says of its service.
    fn serve(&mut self, name: &Name, claim: &Claim) -> Result<BTreeMap<String, String>, Stop> {
        let last = self.build();
        self.guests[last].advance(Step::Preparing)?;
        // It does one after the other, and says if it cannot.
        self.guests[last].tell_address()?;
        self.guests[last].tell(&ToGuest::Serve { name: name.clone() })?;
        // A service starts within the time that its machine has for a bootstrap: that is the limit
        // for slow work.
        let variables = self.environment(name, claim.manifest.limits.bootstrap)?;
        self.guests[last].advance(Step::Running)?;
        Ok(variables)
    }

    /// What the machine that was started last says of its service.
    fn environment(&mut self, name: &Name, within: Duration) -> Result<BTreeMap<String, String>, Stop> {
        let until = Instant::now() + within;
        let last = self.build();
        loop {
            // The one that is just starting stands where the build machine will.
            let next = self.next(until);
            let guest = &self.guests[last];
            let missing = |why| Stop::Auxiliary { name: name.clone(), why: guest.explained(why) };
            match next {
                Err(Stop::Ended { how, last_words, .. }) => {
                    return Err(missing(format!("it {how}; its console ended with: {last_words}")));
                }
                Err(stop @ (Stop::Cancelled | Stop::Killed { .. } | Stop::Auxiliary { .. })) => {
                    return Err(stop);
                }
                Err(stop) => return Err(missing(stop.to_string())),
                Ok(None) => {
                    return Err(missing(format!("its service is not up after {} s", within.as_secs())));
                }
                Ok(Some(GuestEvent::Said(FromGuest::Environment { variables }))) => return Ok(variables),
                Ok(Some(GuestEvent::Said(FromGuest::Failed { text, .. }))) => return Err(missing(text)),
                Ok(Some(GuestEvent::Put(file))) if file == ENVIRONMENT => {
                    let text = guest.put_text(ENVIRONMENT).map_err(|error| missing(error.to_string()))?;
                    return Ending::Environment.parse(&text).map_err(|error| missing(chain(&error)));
                }
                Ok(Some(_)) => {}
            }
        }
    }
}
