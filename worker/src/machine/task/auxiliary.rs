//! Machines that serve the build machine: started before it, in the order given, and watched while it runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crewboss_protocol::guest::{Ending, FromGuest, ToGuest};
use crewboss_protocol::machine::variable_prefix;
use crewboss_protocol::{Name, chain};

use super::Task;
use super::boot::start;
use super::claim::Claims;
use crate::machine::boot::{Patience, boot};
use crate::machine::guest::GuestEvent;
use crate::machine::plan::{ENVIRONMENT, Purpose};
use crate::machine::verdict::Stop;

/// A service starts within the time that its machine has for a bootstrap; that is the limit it documents for slow work.
fn service_within(claim: &super::claim::Claim) -> Duration {
    claim.manifest.limits.bootstrap
}

impl Task<'_> {
    /// Starts all of them. Returns the variables that they give to the task, each with the prefix of its machine.
    pub(super) fn start_auxiliaries(
        &mut self,
        claims: &mut Claims,
    ) -> Result<BTreeMap<String, String>, Stop> {
        let mut variables = BTreeMap::new();
        let Claims { machines, owners, auxiliary, .. } = claims;
        for (name, claim) in auxiliary {
            let limits = claim.manifest.limits;
            let patience = Patience { startup: limits.startup, again: limits.misboots };
            let machine = claim.directory.name.clone();
            let within = service_within(claim);
            let job = self.machine;
            let mut start = || {
                let purpose = Purpose::Serve { document: format!("{name}\n") };
                start(machines, owners, job, claim, purpose, false).map(|(guest, _)| guest)
            };
            let missing = |why: String| Stop::Auxiliary { name: name.clone(), why };
            match boot(&mut self.watch, &mut self.guests, &machine, patience, &mut start) {
                Err(stop @ (Stop::Cancelled | Stop::Auxiliary { .. })) => return Err(stop),
                Err(stop) => return Err(missing(stop.to_string())),
                Ok(_) => {}
            }
            let last = self.guests.len() - 1;
            self.guests[last].auxiliary = Some(name.clone());
            self.guests[last].tell(&ToGuest::Serve { name: name.clone() })?;
            let served = self.environment(name, within)?;
            self.watch.step(format!("{name} serves ({machine})"));
            let prefix = variable_prefix(name);
            variables.extend(served.into_iter().map(|(name, value)| (format!("{prefix}_{name}"), value)));
        }
        Ok(variables)
    }

    /// What the machine that was started last says of its service.
    fn environment(&mut self, name: &Name, within: Duration) -> Result<BTreeMap<String, String>, Stop> {
        let until = Instant::now() + within;
        let missing = |why: String| Stop::Auxiliary { name: name.clone(), why };
        loop {
            // The one that is just starting stands where the build machine will.
            match self.next(until) {
                Err(Stop::Ended { how, last_words, .. }) => {
                    return Err(missing(format!("it {how}; its console ended with: {last_words}")));
                }
                Err(stop @ (Stop::Cancelled | Stop::Auxiliary { .. })) => return Err(stop),
                Err(stop) => return Err(missing(stop.to_string())),
                Ok(None) => {
                    return Err(missing(format!("its service is not up after {} s", within.as_secs())));
                }
                Ok(Some(GuestEvent::Said(FromGuest::Environment { variables }))) => return Ok(variables),
                Ok(Some(GuestEvent::Said(FromGuest::Failed { text }))) => return Err(missing(text)),
                Ok(Some(GuestEvent::Put(file))) if file == ENVIRONMENT => {
                    let path = self.guests[self.build()].put_file(ENVIRONMENT);
                    let text = std::fs::read_to_string(path).map_err(|error| missing(error.to_string()))?;
                    return Ending::Environment.parse(&text).map_err(|error| missing(chain(&error)));
                }
                Ok(Some(_)) => {}
            }
        }
    }
}
