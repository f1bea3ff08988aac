//! The end of a task: its result, its console, its guests.

use crewboss_protocol::message::Done;
use crewboss_protocol::{Outcome, RelPath};

use super::Task;
use crate::machine::verdict::keeps_console;
use crate::runner::job::shortened;

/// The name of the console among the artifacts of a task that ended strangely.
const CONSOLE: &str = "console.log";

impl Task<'_> {
    /// Puts the result together and takes everything down.
    pub(super) fn finish(mut self, mut outcome: Outcome) -> Done {
        if outcome == Outcome::Success && self.output.has_warnings() {
            outcome = Outcome::Warning;
        }
        if keeps_console(outcome) {
            self.keep_console();
        }
        self.take_down(outcome);
        if !self.found.files.is_empty()
            && let Err(error) = self.found.write_list(&self.job.dir.join("artifacts.list"))
        {
            outcome = Outcome::Infrastructure;
            self.message =
                format!("cannot write the list of artifacts in {}: {error}", self.job.dir.display());
            self.found = Default::default();
        }
        let (log, err, lost) = self.output.end();
        if let Some(error) = lost {
            outcome = Outcome::Infrastructure;
            self.message = format!("cannot store its output in {}: {error}", self.job.dir.display());
        }
        Done {
            at: self.job.at,
            outcome,
            stages: self.stages,
            rss_kib_max: self.rss_kib,
            log,
            err,
            sizes: self.sizes,
            artifacts: self.found.count(),
            toolchain: None,
            warm: false,
            machine: self.result.map(Box::new),
            held: self.held.map(Box::new),
            message: shortened(self.message),
        }
    }

    fn keep_console(&mut self) {
        let Some(guest) = self.guests.last().filter(|guest| !guest.console.is_empty()) else { return };
        let path = self.job.dir.join(CONSOLE);
        let text = guest.console.text();
        // It is a help and no result: what is lost of it must not change the outcome.
        if std::fs::write(&path, &text).is_ok() && RelPath::try_from(CONSOLE.to_owned()).is_ok() {
            self.found.bytes += text.len() as u64;
            self.found.files.entry(CONSOLE.to_owned()).or_insert(path);
        }
    }

    /// The build machine first: it may still use what the others serve.
    fn take_down(&mut self, outcome: Outcome) {
        let mut problems = Vec::new();
        while let Some(guest) = self.guests.pop() {
            problems.extend(guest.end());
        }
        let _ = outcome;
        for problem in problems {
            self.watch.step(problem);
        }
    }
}
