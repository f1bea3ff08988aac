//! A task that waits for a person in its guest.

use std::time::{Duration, Instant, SystemTime};

use crewboss_machine::books::record::Step;
use crewboss_machine::guest::running::GuestEvent;
use crewboss_machine::guest::verdict::Stop;
use crewboss_machine::images::manifest::Exchange;
use crewboss_protocol::overview::Waiting;
use crewboss_protocol::target::Stage;
use crewboss_protocol::{FromWorker, Name, Phase};

use super::Task;

impl Task<'_> {
    /// Whether the task can wait at all, for a machine that speaks so.
    ///
    /// # Errors
    /// If it is to wait and cannot: who speaks TFTP runs all stages without asking.
    pub(super) fn check_pause(&self, exchange: Exchange) -> Result<(), Stop> {
        if self.machine.pause.is_none() || exchange == Exchange::Agent {
            return Ok(());
        }
        Err(Stop::Lasting(format!(
            "{} runs its stages without our agent (`exchange = \"tftp\"`), so nobody can be let in between; \
             `--hold` keeps its guest after a failure",
            self.machine.machines.name
        )))
    }

    /// Whether a person is to be let in before this stage.
    pub(super) fn pauses_before(&self, index: usize, stage: &Stage) -> bool {
        match &self.machine.pause {
            Some(pause) if !pause.on_failure => match &pause.before {
                Some(name) => *name == stage.name,
                None => index == 0,
            },
            _ => false,
        }
    }

    /// Whether a person is to be let in when a stage has failed.
    pub(super) fn pauses_on_failure(&self) -> bool {
        self.machine.pause.as_ref().is_some_and(|pause| pause.on_failure)
    }

    /// Waits for the person after the stage that failed.
    pub(super) fn wait_for_failure(&mut self) -> Result<(), Stop> {
        let Some(stage) = self.watch.phase().stage().cloned() else { return Ok(()) };
        self.wait_for_person(&stage).map(drop)
    }

    /// Waits until a person lets the task go on, or the time for that is over: then it goes on by
    /// itself, as it would have done. Returns how long that took.
    pub(super) fn wait_for_person(&mut self, stage: &Name) -> Result<Duration, Stop> {
        let begun = Instant::now();
        let limit = self.machine.pause.as_ref().map_or(0, |pause| pause.limit_ms);
        let limit = Duration::from_millis(limit);
        let build = self.build();
        let before = self.guests[build].record.step;
        self.open_door(stage, limit)?;
        let ended = self.until_released(begun + limit);
        self.guests[build].close_door();
        let how = if ended? { "was released" } else { "waited in vain" };
        self.guests[build].advance(before)?;
        self.watch.step(format!("{how}, goes on"));
        Ok(begun.elapsed())
    }

    fn open_door(&mut self, stage: &Name, limit: Duration) -> Result<(), Stop> {
        let until = (SystemTime::now() + limit).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let waiting = Waiting {
            target: self.spec.target.name.clone(),
            commit: self.job.commit,
            at: self.job.at,
            stage: Some(stage.clone()),
            until: until.as_secs(),
            entered: None,
        };
        let build = self.build();
        let guest = &mut self.guests[build];
        guest.open_door().map_err(|error| {
            Stop::Host(format!("cannot let anybody into {}: {error}", guest.directory().display()))
        })?;
        let machines = guest.machines().clone();
        guest.record.wait(&machines, waiting).map_err(|error| Stop::host(&error))?;
        crewboss_machine::halt::at(Step::Waiting);
        self.watch.begin(Phase::Person);
        let (at, guest) = (self.job.at, guest.record.id.clone());
        let (stage, until) = (Some(stage.clone()), until.as_secs());
        self.watch.link.forward(&FromWorker::Waiting { at, guest, stage, until });
        Ok(())
    }

    /// Says whether it was released.
    fn until_released(&mut self, until: Instant) -> Result<bool, Stop> {
        loop {
            match self.next(until)? {
                None => return Ok(false),
                Some(GuestEvent::Released) => return Ok(true),
                Some(GuestEvent::Said(said)) => return Err(self.unexpected(&said)),
                Some(_) => {}
            }
        }
    }
}
