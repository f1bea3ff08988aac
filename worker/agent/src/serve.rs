//! The agent itself: one loop over the port, the job and a person's shell.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crewboss_host::process::{descendants, kill_orphans, reap_ended};
use crewboss_host::sys::{self, Signals};
use crewboss_protocol::guest::{FromGuest, ResultDocument, TaskDocument, ToGuest};
use crewboss_protocol::limits::KILL_GRACE;
use crewboss_protocol::{Name, StageResult};
use rustix::event::{PollFd, PollFlags};

use super::error::AgentError;
use super::job::{self, Job, News};
use super::place::Place;
use super::port::{Port, State};
use super::shell::{Shell, Start};
use super::stage::Order;
use super::{bootstrap, collect, health, identity, network, power, service, source, stage, variables};

/// Packets of output that are taken before the port is looked at again.
const PACKETS_AT_ONCE: usize = 64;

/// How long the host has to take what is left when the agent ends.
const FINISH_WITHIN: Duration = Duration::from_secs(2);

/// What one poll can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signal,
    Port,
    Job,
    ShellPort,
    Terminal,
}

/// Why the agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The host has asked to switch the guest off.
    PowerOff,
    /// The host is gone for ever, or somebody in the guest has asked the agent to end.
    End,
}

/// The task, once its source is in place.
struct Task {
    document: TaskDocument,
    stages: Vec<StageResult>,
    rss_kib_max: u64,
}

/// The agent.
pub(super) struct Agent<'a> {
    place: &'a Place,
    port: Port,
    shell: Option<Shell>,
    signals: &'a Signals,
    job: Option<Job>,
    /// What the running job will make the task, if it succeeds.
    coming: Option<TaskDocument>,
    task: Option<Task>,
    /// What was there before the agent, when it took the place of a loader.
    elders: BTreeSet<u32>,
    over: Option<Over>,
}

impl<'a> Agent<'a> {
    pub(super) fn new(place: &'a Place, port: Port, shell: Option<Shell>, signals: &'a Signals) -> Self {
        let elders = descendants(std::process::id(), &BTreeSet::new()).into_iter().collect();
        Self { place, port, shell, signals, job: None, coming: None, task: None, elders, over: None }
    }

    /// Serves until the host switches off, or is gone for ever.
    pub(super) fn serve(mut self) -> Result<(), AgentError> {
        let mut buffer = Vec::new();
        while self.over.is_none() {
            let look = self.port.look();
            let due = self.job.as_ref().and_then(|job| job.kill_if_due(Instant::now()));
            let shell = self.shell.as_ref().and_then(Shell::look_in);
            let wait = [look, due, shell].into_iter().flatten().min();
            for (source, ready) in self.poll(wait)? {
                self.attend(source, ready, &mut buffer);
            }
        }
        if let Some(job) = &mut self.job {
            job.cancel();
        }
        self.wait_for_job(&mut buffer);
        self.port.finish(FINISH_WITHIN);
        if self.over == Some(Over::PowerOff) {
            power::off(self.place);
        }
        Ok(())
    }

    fn poll(&self, wait: Option<Duration>) -> Result<Vec<(Source, PollFlags)>, AgentError> {
        let mut sources = vec![Source::Signal];
        let mut fds = vec![PollFd::new(self.signals.fd(), PollFlags::IN)];
        let mut add = |source, fd: Option<_>| {
            if let Some(fd) = fd {
                sources.push(source);
                fds.push(fd);
            }
        };
        add(Source::Port, self.port.poll_fd());
        // Output that the host does not take stays with the stage.
        add(Source::Job, self.job.as_ref().filter(|_| !self.port.is_full()).map(Job::poll_fd));
        if let Some(shell) = &self.shell {
            let [port, terminal] = shell.poll_fds();
            add(Source::ShellPort, port);
            add(Source::Terminal, terminal);
        }
        sys::poll(&mut fds, wait).map_err(|source| AgentError::System { what: "poll", source })?;
        let ready = fds.iter().map(PollFd::revents);
        Ok(sources.into_iter().zip(ready).filter(|(_, ready)| !ready.is_empty()).collect())
    }

    fn attend(&mut self, source: Source, ready: PollFlags, buffer: &mut Vec<u8>) {
        match source {
            Source::Signal => self.take_signals(),
            Source::Port => self.attend_port(ready),
            Source::Job => self.attend_job(buffer),
            Source::ShellPort => {
                let (place, task) = (self.place, self.task.as_ref());
                let start = || Start {
                    directory: place.src(),
                    variables: match task {
                        Some(task) => variables::of_task(place, &task.document, &BTreeMap::new()),
                        None => variables::common(place),
                    },
                    login: task.is_none(),
                };
                if let Some(shell) = &mut self.shell {
                    shell.serve_port(ready, start);
                }
            }
            Source::Terminal => {
                if let Some(shell) = &mut self.shell {
                    shell.serve_terminal(ready);
                }
            }
        }
    }

    fn take_signals(&mut self) {
        while let Some(signal) = self.signals.take() {
            let ends = matches!(signal, libc::SIGTERM | libc::SIGINT | libc::SIGHUP);
            // The first process of a guest is ended by the host alone.
            if ends && std::process::id() != 1 {
                self.over = Some(Over::End);
            }
        }
        let shell = self.shell.as_ref().and_then(Shell::pid).map(|pid| pid.as_raw_nonzero().get());
        let mut shell_ended = false;
        reap_ended(|reaped| shell_ended |= Some(reaped.pid) == shell);
        if let Some(shell) = self.shell.as_mut().filter(|_| shell_ended) {
            shell.ended();
        }
    }

    fn attend_port(&mut self, ready: PollFlags) {
        let mut state = State::Open;
        if ready.contains(PollFlags::OUT) {
            state = self.port.flush();
        }
        if state == State::Open && ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            state = self.port.fill();
        }
        while let Some(message) = self.port.next() {
            match message {
                Ok(message) => self.obey(message),
                Err(error) => self.port.say(&AgentError::Line(error).told()),
            }
        }
        if state == State::Closed {
            self.over.get_or_insert(Over::End);
        }
        if state != State::Open
            && let Some(job) = &mut self.job
        {
            // What it would say is lost, and who comes next knows nothing of it.
            job.cancel();
        }
    }

    fn obey(&mut self, message: ToGuest) {
        match message {
            ToGuest::Ping { number } => self.port.say(&health::alive(self.place, number, self.job.is_some())),
            ToGuest::Cancel => {
                if let Some(job) = &mut self.job {
                    job.cancel();
                }
            }
            ToGuest::Renew(identity) => {
                let renewed = identity::renew(self.place, &identity);
                self.port.say(&renewed.map_or_else(|error| error.told(), FromGuest::Renewed));
            }
            ToGuest::Network { mac, address } => {
                let set = network::set(self.place, &mac, address);
                self.port.say(&set.map_or_else(|error| error.told(), |()| FromGuest::Networked));
            }
            ToGuest::PowerOff => self.over = Some(Over::PowerOff),
            work => {
                if let Err(error) = self.start(work) {
                    self.port.say(&error.told());
                }
            }
        }
    }

    /// Starts what takes longer.
    fn start(&mut self, work: ToGuest) -> Result<(), AgentError> {
        if let Some(job) = &self.job {
            return Err(AgentError::Busy { what: job.what });
        }
        let place = self.place;
        let job = match work {
            ToGuest::Bootstrap { toolchain } => {
                job::start("bootstrap", |reporter| bootstrap::run(reporter, place, &toolchain))
            }
            ToGuest::Serve { name } => {
                job::start("run the service", |reporter| service::run(reporter, place, &name))
            }
            ToGuest::Task { document } => {
                self.task = None;
                self.coming = Some(TaskDocument::parse(&document).map_err(AgentError::Document)?);
                job::start("unpack the source", |_| source::prepare(place).map(|()| FromGuest::Prepared))
                    .map(Job::alone)
            }
            ToGuest::Stage { name, variables, wipe } => {
                let task = &self.task.as_ref().ok_or(AgentError::NoTask)?.document;
                let order = Order { stage: find(task, &name)?, variables, wipe };
                job::start("run a stage", |reporter| stage::run(reporter, place, task, &order))
            }
            ToGuest::Collect => {
                let task = self.task.as_ref().ok_or(AgentError::NoTask)?;
                let result = task.result();
                job::start("collect artifacts", |reporter| {
                    collect::run(reporter, place, &task.document, result)
                })
            }
            ToGuest::Cancel
            | ToGuest::Network { .. }
            | ToGuest::Renew(_)
            | ToGuest::Ping { .. }
            | ToGuest::PowerOff => return Ok(()),
        };
        self.job = Some(job?);
        Ok(())
    }

    fn attend_job(&mut self, buffer: &mut Vec<u8>) {
        for _ in 0..PACKETS_AT_ONCE {
            if self.port.is_full() && self.over.is_none() {
                return;
            }
            let Some(job) = &mut self.job else { return };
            match job.receive(buffer) {
                None => return,
                Some(News::Output(stream, bytes)) => self.port.log(stream, bytes),
                Some(News::Say(message)) => self.port.say(&message),
                Some(News::End(message)) => self.job_ended(&message),
                Some(News::Died) => self.job_died(),
            }
        }
    }

    fn job_ended(&mut self, message: &FromGuest) {
        self.job = None;
        let coming = self.coming.take();
        match message {
            FromGuest::Prepared => {
                self.task = coming.map(|document| Task { document, stages: Vec::new(), rss_kib_max: 0 });
            }
            FromGuest::Ended { result, rss_kib_max, .. } => {
                if let Some(task) = &mut self.task {
                    task.note(result, *rss_kib_max);
                }
            }
            _ => {}
        }
        self.port.say(message);
    }

    /// A job that was killed, by a stage or for want of memory, could not end its processes: they
    /// have come to us.
    fn job_died(&mut self) {
        let Some(job) = self.job.take() else { return };
        self.coming = None;
        let _gone = rustix::process::kill_process(job.pid(), rustix::process::Signal::KILL);
        let shell = self.shell.as_ref().and_then(Shell::pid);
        let mut spared = self.elders.clone();
        spared.extend(shell.and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok()));
        let error = if !kill_orphans(&spared) {
            AgentError::Unkillable { what: format!("what was to {}", job.what) }
        } else if job.is_cancelled() {
            AgentError::Stopped { what: job.what }
        } else {
            AgentError::Died { what: job.what }
        };
        self.port.say(&error.told());
    }

    /// Gives a job that was stopped the time to end its processes.
    fn wait_for_job(&mut self, buffer: &mut Vec<u8>) {
        let end = Instant::now() + 4 * KILL_GRACE;
        while let Some(job) = &self.job {
            let rest = end.saturating_duration_since(Instant::now());
            let mut fds = [job.poll_fd()];
            if rest.is_zero() || sys::poll(&mut fds, Some(rest)).is_err() {
                return self.job_died();
            }
            self.attend_job(buffer);
        }
    }
}

impl Task {
    /// A stage that ran again counts once, as it ended last.
    fn note(&mut self, result: &StageResult, rss_kib_max: u64) {
        self.rss_kib_max = self.rss_kib_max.max(rss_kib_max);
        match self.stages.iter_mut().find(|known| known.name == result.name) {
            Some(known) => *known = result.clone(),
            None => self.stages.push(result.clone()),
        }
    }

    fn result(&self) -> ResultDocument {
        let (stages, rss_kib_max) = (self.stages.clone(), self.rss_kib_max);
        ResultDocument { stages, rss_kib_max, ..ResultDocument::default() }
    }
}

fn find(task: &TaskDocument, name: &Name) -> Result<crewboss_protocol::target::Stage, AgentError> {
    let stage = task.stages.iter().find(|stage| stage.name == *name);
    stage.cloned().ok_or_else(|| AgentError::NoStage { name: name.clone() })
}
