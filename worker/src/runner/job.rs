//! One attempt from its first stage to its result.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crewboss_host::artifacts::{Found, Wanted, find};
use crewboss_host::process::kill_all_descendants;
use crewboss_host::program::command::{NOT_FOUND, command, is_of_the_host, look_up, not_started};
use crewboss_host::program::run::{Ended, Stopped, Stream, program as start, run};
use crewboss_host::short::lead;
use crewboss_host::text::{millis, shortened};
use crewboss_machine::guest::Listener;
use crewboss_protocol::limits::TEXT_BYTES_MAX;
use crewboss_protocol::message::{Cause, Done};
use crewboss_protocol::target::Stage;
use crewboss_protocol::{FromWorker, Millis, Outcome, Phase, PhaseClock, StageExit, StageResult};

use super::link::Link;
use super::message::{Job, Spec};
use super::output::{Output, is_too_long};
use super::uploads;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// `size` reads headers only; what takes longer hangs.
const SIZE_WITHIN: Duration = Duration::from_secs(60);

/// What a runner keeps from job to job.
#[derive(Debug, Default)]
pub struct Kept {
    /// Read buffer.
    pub buffer: Vec<u8>,
    /// Where programs were found on `PATH`.
    pub programs: BTreeMap<String, PathBuf>,
}

struct Attempt<'a> {
    job: &'a Job,
    spec: &'a Spec,
    output: Output,
    stages: Vec<StageResult>,
    clock: PhaseClock,
    rss_kib: u64,
    message: String,
    /// The directory of the attempt, by a short way if there is one.
    place: &'a Path,
    /// By the clock that files get their times from.
    begun: Timespec,
}

/// Runs a job. When this returns, nothing of it runs any more; its directory still holds logs and
/// artifacts.
pub fn run_job(job: &Job, spec: &Spec, link: &mut Link, kept: &mut Kept) -> Done {
    let output = Output::new(job.at, &job.dir, spec.limits);
    let begun = clock_gettime(ClockId::RealtimeCoarse);
    let (stages, message) = (Vec::new(), String::new());
    let clock = PhaseClock::after(job.phases.clone());
    // Without it a build works that makes no socket in a deep place.
    let way = job.way.as_deref().filter(|way| lead(way, &job.dir).is_ok());
    let place = way.unwrap_or(&job.dir);
    let mut attempt = Attempt { job, spec, output, stages, clock, rss_kib: 0, message, place, begun };
    let mut outcome = attempt.run_stages(link, kept);
    link.flush(job.at, Instant::now(), true);
    let (mut artifacts, mut sizes) = (Found::default(), String::new());
    if matches!(outcome, Outcome::Success | Outcome::Failure) {
        attempt.begin_collecting(link);
        artifacts = attempt.collect(&mut outcome);
        if outcome == Outcome::Success && !spec.target.sizes.is_empty() {
            link.promise(Instant::now() + SIZE_WITHIN);
            sizes = attempt.sizes(link, kept);
        }
        if outcome == Outcome::Success && attempt.output.has_warnings() {
            outcome = Outcome::Warning;
        }
    }
    // The directory must not be in use when it is removed.
    let _stays = std::env::set_current_dir("/");
    attempt.finish(outcome, &artifacts, sizes)
}

impl Attempt<'_> {
    fn run_stages(&mut self, link: &mut Link, kept: &mut Kept) -> Outcome {
        if let Err(error) = std::env::set_current_dir(&self.job.cwd) {
            self.message = format!("cannot enter {}: {error}", self.job.cwd.display());
            return Outcome::Infrastructure;
        }
        let deadline = Instant::now() + Duration::from_millis(self.spec.target.timeout_ms);
        for (index, stage) in self.spec.target.stages.iter().enumerate() {
            let phase = Phase::Stage(stage.name.clone());
            self.clock.begin(phase.clone(), Millis::now());
            link.doing.note(&phase);
            // The first one has been announced when it got its slot.
            if index > 0 {
                link.forward(&FromWorker::Phase { at: self.job.at, phase, text: String::new() });
            }
            if let Some(outcome) = self.run_stage(stage, deadline, link, kept) {
                return outcome;
            }
        }
        Outcome::Success
    }

    /// Runs one stage. Returns how the attempt ends, if it ends here.
    fn run_stage(
        &mut self,
        stage: &Stage,
        deadline: Instant,
        link: &mut Link,
        kept: &mut Kept,
    ) -> Option<Outcome> {
        let started = match command(&stage.command, &mut kept.programs, &self.spec.variables) {
            Ok(mut command) => {
                self.environment(&mut command);
                let output = &mut self.output;
                let mut sink = |link: &mut Link, stream, bytes: &[u8]| output.take(link, stream, bytes);
                run(command, self.job.at, deadline, link, &mut kept.buffer, &mut sink)
                    .map_err(|error| (not_started(&stage.command, &error), error))
            }
            Err(program) => {
                Err((format!("{program} is not on the PATH"), io::Error::from(io::ErrorKind::NotFound)))
            }
        };
        match started {
            Ok(ended) => self.after(stage, ended),
            Err((why, error)) => {
                kill_all_descendants(|_| ());
                let text = format!("stage {} cannot be started: {why}", stage.name);
                self.output.say(link, &text);
                self.message = text;
                self.stages.push(StageResult {
                    name: stage.name.clone(),
                    exit: NOT_FOUND,
                    wall_ms: 0,
                    cpu_ms: 0,
                });
                Some(if is_of_the_host(&error) { Outcome::Infrastructure } else { Outcome::Failure })
            }
        }
    }

    fn after(&mut self, stage: &Stage, ended: Ended) -> Option<Outcome> {
        self.rss_kib = self.rss_kib.max(ended.rss_kib);
        self.stages.push(StageResult {
            name: stage.name.clone(),
            exit: match ended.stopped {
                None => ended.exit,
                Some(Stopped::Timeout) => StageExit::Timeout,
                Some(Stopped::Cancelled | Stopped::Output(_)) => StageExit::Stopped,
            },
            wall_ms: millis(ended.wall),
            cpu_ms: millis(ended.cpu),
        });
        if ended.unkillable {
            self.message = "some of its processes live on after SIGKILL".to_owned();
            return Some(Outcome::Infrastructure);
        }
        match ended.stopped {
            None if ended.exit.is_success() => None,
            None => Some(Outcome::Failure),
            Some(Stopped::Timeout) => {
                self.message =
                    format!("stopped in stage {} after {} ms", stage.name, self.spec.target.timeout_ms);
                Some(Outcome::Timeout)
            }
            Some(Stopped::Cancelled) => Some(Outcome::Cancelled),
            Some(Stopped::Output(error)) if is_too_long(&error) => {
                self.message = error.to_string();
                Some(Outcome::Failure)
            }
            Some(Stopped::Output(error)) => {
                self.message = format!("cannot store its output in {}: {error}", self.job.dir.display());
                Some(Outcome::Infrastructure)
            }
        }
    }

    fn environment(&self, command: &mut Command) {
        let job = self.job;
        command.env_clear();
        command.envs(self.spec.variables.iter().map(|(name, value)| (name, value)));
        command.env("HOME", self.place.join("home")).env("TMPDIR", self.place.join("tmp"));
        command.env("CREWBOSS_SRC", &job.src).env("CREWBOSS_OUT", &job.out);
        command.env("CREWBOSS_COMMIT", job.commit.to_string()).env("CREWBOSS_TASK", job.at.to_string());
    }

    /// That there is nothing to collect is the ordinary case, and not worth a word.
    fn begin_collecting(&mut self, link: &mut Link) {
        self.clock.begin(Phase::Collecting, Millis::now());
        link.doing.note(&Phase::Collecting);
        if !self.spec.target.artifacts.is_empty() || uploads::are_in(&self.job.out) {
            // That can take far longer than building it.
            link.promise(Instant::now());
            let (at, phase) = (self.job.at, Phase::Collecting);
            link.forward(&FromWorker::Phase { at, phase, text: String::new() });
        }
    }

    fn collect(&mut self, outcome: &mut Outcome) -> Found {
        // What lies there from the last good build is not what a commit that failed has made.
        let since = (*outcome == Outcome::Failure && self.job.warm).then_some(self.begun);
        let wanted = Wanted { limits: self.spec.limits, since };
        let mut found = match find(&self.spec.target.artifacts, &[&self.job.out, &self.job.src], wanted) {
            Ok(found) => found,
            Err(error) => {
                *outcome = Outcome::Infrastructure;
                self.message = format!("the host fails at looking for artifacts: {error}");
                return Found::default();
            }
        };
        if *outcome == Outcome::Success
            && let Err(error) = uploads::add(&self.job.out, &self.job.dir, &mut found)
        {
            *outcome = Outcome::Infrastructure;
            self.message =
                format!("cannot make the archives of uploads in {}: {error}", self.job.dir.display());
        }
        found.settle();
        if let Some(why) = self.spec.limits.refuse(found.count()) {
            found = Found::default();
            found.problem(why);
        }
        if *outcome == Outcome::Success && !found.problems.is_empty() {
            *outcome = Outcome::Failure;
            self.message = found.problems.join("; ");
        }
        if !found.files.is_empty()
            && let Err(error) = found.write_list(&self.job.dir.join("artifacts.list"))
        {
            *outcome = Outcome::Infrastructure;
            self.message =
                format!("cannot write the list of artifacts in {}: {error}", self.job.dir.display());
            found = Found::default();
        }
        found
    }

    /// What `size` says of the files that the target names; empty, with a message, if it cannot say
    /// anything.
    fn sizes(&mut self, link: &mut Link, kept: &mut Kept) -> String {
        let wanted = Wanted { limits: self.spec.limits, since: None };
        let found = find(&self.spec.target.sizes, &[&self.job.out, &self.job.src], wanted);
        let found = found.unwrap_or_default();
        let mut text = Vec::new();
        let Some(mut command) = size_command(self.spec, kept).filter(|_| !found.files.is_empty()) else {
            self.message = "no sizes: the files or the program `size` are not there".to_owned();
            return String::new();
        };
        self.environment(&mut command);
        let root = self.job.out.canonicalize().unwrap_or_default();
        let _stays = std::env::set_current_dir(&root);
        for file in found.files.values() {
            command.arg(file.strip_prefix(&root).map_or(file.clone(), |short| Path::new(".").join(short)));
        }
        let mut sink = |_: &mut Link, stream, bytes: &[u8]| {
            if stream == Stream::Out && text.len() + bytes.len() <= TEXT_BYTES_MAX {
                text.extend_from_slice(bytes);
            }
            Ok(())
        };
        let deadline = Instant::now() + SIZE_WITHIN;
        if let Err(error) = run(command, self.job.at, deadline, link, &mut kept.buffer, &mut sink) {
            kill_all_descendants(|_| ());
            self.message = format!("no sizes: {error}");
        }
        let text = String::from_utf8(text).unwrap_or_default();
        // What lies in the source is named by its place there, not by where this attempt happened
        // to be.
        match self.job.src.canonicalize() {
            Ok(src) => text.replace(&format!("{}/", src.display()), "./"),
            Err(_) => text,
        }
    }

    fn finish(mut self, mut outcome: Outcome, artifacts: &Found, sizes: String) -> Done {
        let (log, err, lost) = self.output.end();
        if let Some(error) = lost {
            outcome = Outcome::Infrastructure;
            self.message = format!("cannot store its output in {}: {error}", self.job.dir.display());
        }
        Done {
            at: self.job.at,
            outcome,
            stages: self.stages,
            phases: self.clock.end(Millis::now()),
            rss_kib_max: self.rss_kib,
            log,
            err,
            sizes,
            artifacts: artifacts.count(),
            toolchain: self.spec.toolchain.as_ref().map(|toolchain| toolchain.version.clone()),
            warm: self.job.warm,
            machine: None,
            held: None,
            cause: Cause::default(),
            message: shortened(self.message),
        }
    }
}

fn size_command(spec: &Spec, kept: &mut Kept) -> Option<Command> {
    let prefix = spec.toolchain.as_ref().map_or("", |toolchain| toolchain.prefix.as_str());
    let name = format!("{prefix}size");
    let beside = spec.toolchain.as_ref().and_then(|toolchain| {
        let file = Path::new(&toolchain.compiler).parent()?.join(&name);
        file.is_file().then_some(file)
    });
    let program = beside.or_else(|| look_up(&name, &mut kept.programs, &spec.variables))?;
    Some(start(program))
}
