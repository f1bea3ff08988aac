//! The end of a task: its result, its console, its guests.

use std::time::{Duration, Instant, SystemTime};

use crewboss_ground::Replace;
use crewboss_host::text::shortened;
use crewboss_machine::books::record::Step;
use crewboss_machine::guest::verdict::{is_held, keeps_console};
use crewboss_machine::life::hold;
use crewboss_protocol::machine::HeldGuest;
use crewboss_protocol::message::{Cause, Done};
use crewboss_protocol::{Millis, Name, Outcome, Phase, chain};

use super::Task;

/// Consoles among the artifacts of a task that ended strangely: of its guest, and of one that
/// served it. Beside the latter lies what its service has printed.
fn console_name(auxiliary: Option<&Name>) -> String {
    auxiliary.map_or_else(|| "console.log".to_owned(), |name| format!("console-{name}.log"))
}

impl Task<'_> {
    /// Puts the result together and takes everything down.
    pub(super) fn finish(mut self, mut outcome: Outcome) -> Done {
        self.watch.link.promise(Instant::now());
        if outcome == Outcome::Success && self.output.has_warnings() {
            outcome = Outcome::Warning;
        }
        self.watch.begin(Phase::Collecting);
        if keeps_console(outcome) {
            self.keep_consoles();
        }
        self.take_down(outcome);
        if let Some(why) = self.spec.limits.refuse(self.found.count()) {
            if outcome.is_good() {
                outcome = Outcome::Failure;
            }
            self.message = why;
            self.found = Default::default();
        }
        if !self.found.files.is_empty()
            && let Err(error) = self.found.write_list(&self.job.dir.join("artifacts.list"))
        {
            outcome = Outcome::Infrastructure;
            self.cause = Cause::Host;
            self.message =
                format!("cannot write the list of artifacts in {}: {error}", self.job.dir.display());
            self.found = Default::default();
        }
        let (log, err, lost) = self.output.end();
        if let Some(error) = lost {
            outcome = Outcome::Infrastructure;
            self.cause = Cause::Host;
            self.message = format!("cannot store its output in {}: {error}", self.job.dir.display());
        }
        Done {
            at: self.job.at,
            outcome,
            stages: self.stages,
            phases: self.watch.clock.end(Millis::now()),
            rss_kib_max: self.rss_kib,
            log,
            err,
            sizes: self.sizes,
            artifacts: self.found.count(),
            toolchain: None,
            warm: false,
            machine: self.result.map(Box::new),
            held: self.held.map(Box::new),
            cause: if outcome == Outcome::Infrastructure { self.cause } else { Cause::default() },
            message: shortened(self.message),
        }
    }

    fn keep_consoles(&mut self) {
        let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
        for guest in &self.guests {
            kept.push((console_name(guest.auxiliary.as_ref()), guest.console.text()));
            // What the build machine printed is the task's log.
            let service = guest.auxiliary.as_ref().map(|name| format!("service-{name}.log"));
            kept.extend(service.map(|name| (name, guest.printed.text())));
        }
        if kept.is_empty() {
            // None of its own was started: it is the bootstrap that went wrong.
            kept.extend(self.watch.console.take().map(|text| (console_name(None), text)));
        }
        for (name, text) in kept.into_iter().filter(|(_, text)| !text.is_empty()) {
            let path = self.job.dir.join(&name);
            // It is a help and no result: what is lost of it must not change the outcome, nor what
            // the task has made.
            if self.found.has_room_for(&name) && Replace::with_mode(0o600).path(&path, &text).is_ok() {
                self.found.bytes += text.len() as u64;
                self.found.files.insert(name, path);
            }
        }
    }

    /// Keeps the build machine's guest for a person. Why it is not kept stands in the message of
    /// the task.
    fn hold(&mut self, outcome: Outcome) {
        // A guest that never asked for its task is of no use to anybody.
        if self.result.is_none() || self.watch.is_cancelled() {
            return;
        }
        let Some(mut guest) = self.guests.pop() else { return };
        self.watch.begin(Phase::Holding);
        self.watch.step(format!("holds the guest {}", guest.record.id));
        let held = self.held_guest(outcome, &guest.record.id);
        let watch = &mut self.watch;
        let (problems, why) = match hold::keep(&mut guest, held, &mut || !watch.is_cancelled()) {
            Ok((held, without)) => {
                self.held = Some(held);
                let why = without.map(|why| format!("its guest is kept with its disk alone, since {why}"));
                (guest.leave(), why)
            }
            Err(hold::HoldError::GivenUp) => (guest.end(), None),
            Err(error) => (guest.end(), Some(format!("its guest is not kept: {}", chain(&error)))),
        };
        for problem in problems {
            self.watch.step(problem);
        }
        if let Some(why) = why {
            let between = if self.message.is_empty() { "" } else { "; " };
            self.message = format!("{}{between}{why}", self.message);
        }
    }

    fn held_guest(&self, outcome: Outcome, id: &Name) -> HeldGuest {
        let now = SystemTime::now();
        let seconds =
            |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        HeldGuest {
            id: id.clone(),
            machine: self.machine.machines.name.clone(),
            target: self.spec.target.name.clone(),
            commit: self.job.commit,
            at: self.job.at,
            stage: self.stages.last().map(|stage| stage.name.clone()),
            outcome,
            boss: self.machine.boss.clone(),
            run: self.machine.run.clone(),
            since: seconds(now),
            until: seconds(now + Duration::from_millis(self.machine.hold.for_ms)),
            memory: true,
            entered: None,
        }
    }

    /// The build machine first: it may still use what the others serve.
    fn take_down(&mut self, outcome: Outcome) {
        if is_held(outcome, self.machine.hold) {
            self.hold(outcome);
        }
        let mut problems = Vec::new();
        while let Some(mut guest) = self.guests.pop() {
            // Only for whoever looks at it now.
            let _unwritten = guest.advance(Step::Stopping);
            problems.extend(guest.end());
        }
        for problem in problems {
            self.watch.step(problem);
        }
    }
}
