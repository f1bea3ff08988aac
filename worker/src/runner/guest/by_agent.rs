//! A task that the agent in the guest runs, stage by stage, as it is told over its port.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crewboss_host::artifacts::is_of_host;
use crewboss_host::program::run::Stream;
use crewboss_machine::books::record::Step;
use crewboss_machine::books::room;
use crewboss_machine::exchange::{self, ArchiveError, ArchiveLimits};
use crewboss_machine::guest::running::GuestEvent;
use crewboss_machine::guest::verdict::Stop;
use crewboss_machine::images::files::result_disk;
use crewboss_protocol::guest::{FromGuest, GuestStream, ResultDocument, ToGuest};
use crewboss_protocol::target::Stage;
use crewboss_protocol::{Outcome, Phase, StageResult, chain};

use super::Task;
use crate::runner::uploads;

/// Unpacking a source takes seconds; a guest that needs longer than this hangs.
const PREPARE_WITHIN: Duration = Duration::from_secs(600);

/// Packing the artifacts takes seconds, too.
const COLLECT_WITHIN: Duration = Duration::from_secs(600);

/// What was taken out of the guest's archive, in the attempt's directory.
const UNPACKED: &str = "unpacked";

/// How one stage went.
struct StageEnd {
    result: StageResult,
    stopped: bool,
}

impl Task<'_> {
    /// Runs all stages, then brings out what they made.
    pub(super) fn run_by_agent(&mut self) -> Result<Outcome, Stop> {
        let build = self.build();
        self.watch.begin(Phase::Preparing);
        self.guests[build].advance(Step::Preparing)?;
        if self.guests[build].tell_address()? {
            self.answer(Instant::now() + PREPARE_WITHIN, |said| {
                matches!(said, FromGuest::Networked).then_some(())
            })?;
        }
        let document = self.document().to_text();
        self.tell(&ToGuest::Task { document })?;
        self.answer(Instant::now() + PREPARE_WITHIN, |said| {
            matches!(said, FromGuest::Prepared).then_some(())
        })?;
        self.guests[build].is_prepared();
        self.guests[build].advance(Step::Running)?;
        let limit = Duration::from_millis(self.spec.target.timeout_ms);
        let mut deadline = Instant::now() + limit;
        let mut outcome = Outcome::Success;
        let spec = self.spec;
        for (index, stage) in spec.target.stages.iter().enumerate() {
            if self.pauses_before(index, stage) {
                // What a person takes is not the task's time.
                deadline += self.wait_for_person(&stage.name)?;
            }
            self.watch.begin(Phase::Stage(stage.name.clone()));
            if !self.run_stage(stage, deadline)? {
                outcome = Outcome::Failure;
                break;
            }
        }
        if outcome == Outcome::Failure && self.pauses_on_failure() {
            self.wait_for_failure()?;
        }
        self.watch.begin(Phase::Collecting);
        self.collect_from_agent(&mut outcome)?;
        Ok(outcome)
    }

    /// Runs one stage; says whether the next one may start.
    fn run_stage(&mut self, stage: &Stage, deadline: Instant) -> Result<bool, Stop> {
        self.tell(&ToGuest::Stage { name: stage.name.clone(), variables: BTreeMap::new(), wipe: false })?;
        let end = self.stage_end(deadline)?;
        if end.stopped || end.result.name != stage.name {
            return Err(self.unreadable(format!("it says that stage {} has ended", end.result.name)));
        }
        let success = end.result.exit.is_success();
        self.stages.push(end.result);
        Ok(success)
    }

    fn stage_end(&mut self, deadline: Instant) -> Result<StageEnd, Stop> {
        let limit = Duration::from_millis(self.spec.target.timeout_ms);
        loop {
            let Some(event) = self.next(deadline)? else {
                let load = self.guests[self.build()].load;
                return Err(Stop::Timeout { phase: self.watch.phase(), limit, load });
            };
            match event {
                GuestEvent::Output(stream, bytes) => self.take(stream, &bytes)?,
                GuestEvent::Said(FromGuest::Ended { result, rss_kib_max, stopped }) => {
                    self.rss_kib = self.rss_kib.max(rss_kib_max);
                    return Ok(StageEnd { result, stopped });
                }
                GuestEvent::Said(FromGuest::Failed { text, .. }) => {
                    let machine = self.machine.machines.name.clone();
                    return Err(Stop::Failed { machine, phase: self.watch.phase(), why: text });
                }
                GuestEvent::Said(other) => return Err(self.unexpected(&other)),
                _ => {}
            }
        }
    }

    fn take(&mut self, stream: GuestStream, bytes: &[u8]) -> Result<(), Stop> {
        let stream = match stream {
            GuestStream::Out => Stream::Out,
            GuestStream::Err => Stream::Err,
        };
        let stored = self.output.take(self.watch.link, stream, bytes);
        stored.map_err(|error| self.not_stored(&error))
    }

    /// Waits for the one message that answers what was asked last.
    fn answer<T>(
        &mut self,
        until: Instant,
        mut is_it: impl FnMut(&FromGuest) -> Option<T>,
    ) -> Result<T, Stop> {
        let machine = self.machine.machines.name.clone();
        let begun = Instant::now();
        loop {
            match self.next(until)? {
                None => {
                    let silence = begun.elapsed();
                    let load = self.guests[self.build()].load;
                    return Err(Stop::Silent { machine, phase: self.watch.phase(), silence, load });
                }
                Some(GuestEvent::Output(stream, bytes)) => self.take(stream, &bytes)?,
                Some(GuestEvent::Said(said)) => match (is_it(&said), said) {
                    (Some(answer), _) => return Ok(answer),
                    (None, FromGuest::Failed { text, .. }) => {
                        return Err(Stop::Unable { machine, why: text });
                    }
                    (None, said) => return Err(self.unexpected(&said)),
                },
                Some(_) => {}
            }
        }
    }

    fn collect_from_agent(&mut self, outcome: &mut Outcome) -> Result<(), Stop> {
        let build = self.build();
        self.guests[build].advance(Step::Collecting)?;
        self.tell(&ToGuest::Collect)?;
        let collected = self.answer(Instant::now() + COLLECT_WITHIN, |said| match said {
            FromGuest::Collected { document, bytes } => Some(Ok((document.clone(), *bytes))),
            // What the task made does not fit where it has to go: that is the task's doing.
            FromGuest::Failed { text, full: true } => Some(Err(text.clone())),
            _ => None,
        });
        let (document, bytes) = match collected? {
            Ok(collected) => collected,
            Err(why) => {
                self.message = why;
                *outcome = Outcome::Failure;
                return Ok(());
            }
        };
        let result = ResultDocument::parse(&document).map_err(|error| self.unreadable(chain(&error)))?;
        (self.sizes, self.message) = (result.sizes, result.message);
        let archive = result_disk(self.guests[self.build()].directory());
        self.unpack(&archive, bytes, result.problems, outcome)
    }

    /// Takes what the task promised out of the archive that a guest wrote.
    /// `problems` are what the guest has against it itself.
    #[expect(clippy::disallowed_methods, reason = "that a guest has put nothing is the null device")]
    pub(super) fn unpack(
        &mut self,
        archive: &Path,
        bytes: u64,
        problems: Vec<String>,
        outcome: &mut Outcome,
    ) -> Result<(), Stop> {
        let target = &self.spec.target;
        // A guest that has put nothing has still promised what its target names.
        let archive = if bytes == 0 { Path::new("/dev/null") } else { archive };
        let file = File::open(archive)
            .map_err(|error| Stop::Host(format!("cannot open {}: {error}", archive.display())))?;
        let into = self.job.dir.join(UNPACKED);
        let limits = ArchiveLimits::within(room::left(&self.job.dir));
        let unpacked = exchange::unpack(&file, bytes, &into, &target.artifacts, limits);
        let unpacked = unpacked.map_err(|error| match error {
            ArchiveError::Write { .. } => Stop::host(&error),
            ArchiveError::TooBig { .. } => self.too_much(chain(&error)),
            error => self.unreadable(chain(&error)),
        })?;
        self.found = unpacked.found;
        problems.into_iter().for_each(|problem| self.found.problem(problem));
        if *outcome == Outcome::Success {
            self.add_uploads(&unpacked.uploads)?;
        }
        self.found.settle();
        if *outcome == Outcome::Success && !self.found.problems.is_empty() {
            *outcome = Outcome::Failure;
            self.message = self.found.problems.join("; ");
        }
        Ok(())
    }

    /// Uploads lie under numbers after unpacking; they get back the names that [`uploads`] looks
    /// for.
    fn add_uploads(&mut self, files: &BTreeMap<String, PathBuf>) -> Result<(), Stop> {
        let out = self.job.dir.join("uploaded");
        let added = match uploads::place(&out, files) {
            Ok(()) => uploads::add(&out, &self.job.dir, &mut self.found),
            // A guest chooses the names: what they make impossible must not look like a failure of
            // this host.
            Err((name, error)) if !is_of_host(&error) => {
                self.found.problem(format!("the upload {name:?} cannot be archived: {error}"));
                Ok(())
            }
            Err((_, error)) => Err(error),
        };
        added.map_err(|error| {
            Stop::Host(format!("cannot make the archives of uploads in {}: {error}", out.display()))
        })
    }

    fn tell(&mut self, message: &ToGuest) -> Result<(), Stop> {
        let build = self.build();
        self.guests[build].tell(message)
    }

    pub(super) fn unexpected(&self, said: &FromGuest) -> Stop {
        let text = format!("{said:?}");
        self.unreadable(format!("it said {:.120} unasked", text))
    }
}
