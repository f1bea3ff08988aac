//! A task in a guest, from the lock to the end of the snapshot.
//!
//! It reads in the order in which it happens: [`claim`] finds the machines, has them bootstrapped
//! and takes their locks; [`boot`] starts guests and tries again when one does not come up;
//! [`by_agent`] and [`by_tftp`] are the two ways in which a guest then does the task; [`pause`]
//! lets a person in between; [`finish`] collects what came out, keeps the guest for a person if
//! that was asked for, and takes everything else down. [`ahead`] makes a machine ready before any
//! task needs it.

pub(crate) mod ahead;
mod auxiliary;
mod boot;
mod by_agent;
mod by_tftp;
mod claim;
mod finish;
mod pause;

use std::io;
use std::time::Instant;

use crewboss_host::artifacts::Found;
use crewboss_host::text::millis;
use crewboss_machine::books::lock::Place;
use crewboss_machine::books::room::{RESERVE, Room};
use crewboss_machine::guest::running::{Guest, GuestEvent};
use crewboss_machine::guest::verdict::Stop;
use crewboss_machine::guest::watch::{Seen, Watch};
use crewboss_machine::images::files::result_disk;
use crewboss_machine::images::manifest::Exchange;
use crewboss_machine::life::job::MachineJob;
use crewboss_protocol::guest::Served;
use crewboss_protocol::machine::{HeldGuest, MachineResult};
use crewboss_protocol::message::{Cause, Done};
use crewboss_protocol::{Millis, Outcome, StageExit, StageResult};

use crate::runner::link::Link;
use crate::runner::message::{Job, Spec};
use crate::runner::output::{Output, is_too_long};

/// Runs a job in a guest. When this returns, nothing of it runs any more, and of the guest nothing
/// is left unless it is held.
pub(crate) fn run_in_guest(job: &Job, machine: &MachineJob, spec: &Spec, link: &mut Link) -> Done {
    let mut task = Task {
        job,
        machine,
        spec,
        watch: Watch::new(link, job.at, job.phases.clone()),
        guests: Vec::new(),
        places: Vec::new(),
        output: Output::new(job.at, &job.dir, spec.limits),
        stages: Vec::new(),
        processors: machine.processors,
        rss_kib: 0,
        sizes: String::new(),
        found: Found::default(),
        message: String::new(),
        cause: Cause::default(),
        result: None,
        held: None,
        served: Vec::new(),
        room: None,
    };
    let outcome = task.run().unwrap_or_else(|stop| {
        task.cut_off_stage(&stop);
        task.message = stop.to_string();
        task.cause = stop.cause();
        stop.outcome()
    });
    task.finish(outcome)
}

struct Task<'a> {
    job: &'a Job,
    machine: &'a MachineJob,
    spec: &'a Spec,
    watch: Watch<'a>,
    /// Auxiliary machines in their order, then the build machine.
    guests: Vec<Guest>,
    /// The locks of their machines, held until all of them are gone.
    places: Vec<Place>,
    output: Output,
    stages: Vec<StageResult>,
    /// Those of the build machine's guest.
    processors: u32,
    rss_kib: u64,
    sizes: String,
    found: Found,
    message: String,
    /// What it is due to if it could not be run.
    cause: Cause,
    result: Option<MachineResult>,
    held: Option<HeldGuest>,
    /// What the auxiliary machines have said of themselves.
    served: Vec<Served>,
    /// What it may take of the disk, as soon as all guests are there.
    room: Option<Room>,
}

impl Task<'_> {
    fn run(&mut self) -> Result<Outcome, Stop> {
        let mut claims = self.claim()?;
        self.processors = claims.build.manifest.processors(self.machine.processors);
        self.check_pause(claims.build.manifest.exchange)?;
        self.start_auxiliaries(&mut claims)?;
        self.boot_build_machine(&mut claims)?;
        self.room = Some(self.room());
        match claims.build.manifest.exchange {
            Exchange::Agent => self.run_by_agent(),
            Exchange::Tftp => self.run_by_tftp(),
        }
    }

    /// For what comes out of the guest: its logs, and the disk with what it made. Its own disk has
    /// a size of its own.
    fn room(&self) -> Room {
        let result = result_disk(self.guests[self.build()].directory());
        Room::new([self.job.dir.clone(), result], RESERVE)
    }

    /// The place of the build machine's guest; it is the last one that was started.
    fn build(&self) -> usize {
        self.guests.len() - 1
    }

    /// The next thing that the build machine's guest does before `until`. What befalls any other
    /// guest ends the task.
    fn next(&mut self, until: Instant) -> Result<Option<GuestEvent>, Stop> {
        loop {
            let build = self.build();
            let look = self.look_at_room()?.map_or(until, |due| due.min(until));
            match self.watch.next(&mut self.guests, look) {
                Seen::TimeUp if look < until => {}
                Seen::Cancelled => return Err(Stop::Cancelled),
                Seen::Stop(stop) => return Err(stop),
                Seen::TimeUp => return Ok(None),
                Seen::Guest(index, event) if index != build => self.guests[index].as_auxiliary(event)?,
                Seen::Guest(_, GuestEvent::Ended(how)) => return Err(self.ended(how)),
                Seen::Guest(_, GuestEvent::Silent(silence)) => {
                    let machine = self.machine.machines.name.clone();
                    let load = self.guests[build].load;
                    return Err(Stop::Silent { machine, phase: self.watch.phase(), silence, load });
                }
                Seen::Guest(_, GuestEvent::Nonsense(why)) => return Err(self.unreadable(why)),
                Seen::Guest(_, GuestEvent::Refused(what)) => {
                    let text = format!("refused to the guest: {what}");
                    self.output.say(self.watch.link, &text);
                }
                Seen::Guest(_, event) => return Ok(Some(event)),
            }
        }
    }

    /// Stops a task that takes the last of the disk. Says when to look again.
    fn look_at_room(&mut self) -> Result<Option<Instant>, Stop> {
        let Some(room) = &mut self.room else { return Ok(None) };
        match room.look(Instant::now()) {
            Ok(()) => Ok(Some(room.due())),
            Err(full) => Err(self.too_much(full.to_string())),
        }
    }

    /// Output of the guest that could not be stored.
    fn not_stored(&self, error: &io::Error) -> Stop {
        if is_too_long(error) {
            return self.too_much(error.to_string());
        }
        Stop::Host(format!("cannot store its output in {}: {error}", self.job.dir.display()))
    }

    fn too_much(&self, why: String) -> Stop {
        Stop::Full { machine: self.machine.machines.name.clone(), phase: self.watch.phase(), why }
    }

    fn ended(&self, how: String) -> Stop {
        Stop::Ended {
            machine: self.machine.machines.name.clone(),
            phase: self.watch.phase(),
            how,
            last_words: self.guests[self.build()].console.last_words(3),
        }
    }

    /// A stage that has begun is part of the result, also when nobody can say any more how it ended
    /// by itself.
    fn cut_off_stage(&mut self, stop: &Stop) {
        self.end_stage(stop.stage_exit());
    }

    /// Notes how the stage has ended that runs by what is known here, unless that is noted already.
    fn end_stage(&mut self, exit: StageExit) {
        let phase = self.watch.phase();
        let running = phase.stage().filter(|name| self.stages.iter().all(|ended| ended.name != **name));
        let Some(name) = running.cloned() else { return };
        let wall_ms = millis(self.watch.clock.elapsed(Millis::now()));
        self.stages.push(StageResult { name, exit, wall_ms, cpu_ms: 0 });
    }

    fn unreadable(&self, why: String) -> Stop {
        Stop::Unreadable { machine: self.machine.machines.name.clone(), why }
    }
}
