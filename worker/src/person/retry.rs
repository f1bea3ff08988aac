//! `crewboss retry`, on the host: a stage of a held guest's task runs again, in that very guest.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crewboss_host::marked::MARK;
use crewboss_host::sys;
use crewboss_machine::images::directory::Machines;
use crewboss_machine::qemu::child::Ended;
use crewboss_protocol::guest::{FromGuest, TaskDocument, ToGuest};
use crewboss_protocol::{Name, StageResult};

use super::agent::{Heard, Line, end_of};
use super::bridge::{Left, take_signals};
use super::caller::Caller;
use super::enter::{drain, drain_monitor};
use super::visit::{Visit, load};
use super::{PersonError, Who, claim};

/// An agent that was stopped answers at once; a host that is short of processors may let it wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A stage that is to stop is killed by its agent after some seconds.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// Unpacking a source takes seconds.
const PREPARE_WITHIN: Duration = Duration::from_secs(600);

/// Between two questions whether what ran has stopped, and between two looks whether the person is
/// still there.
const LOOK: Duration = Duration::from_millis(200);

/// What is to be run again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Again {
    /// In which guest.
    pub guest: Name,
    /// Which stage.
    pub stage: Name,
    /// How many variables the person gives on top of those of the task.
    pub variables: usize,
    /// Unpack the source anew and empty the output first.
    pub wipe: bool,
}

/// How that went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retried {
    /// The stage has ended.
    Ended(StageResult),
    /// The person, or the end of the link, stopped it.
    Interrupted,
}

/// Runs the stage and shows its output. The guest is held again afterwards.
///
/// # Errors
/// If the stage cannot be run.
pub fn retry(
    machines: &Machines,
    again: &Again,
    who: &Who,
    caller: &mut Caller,
) -> Result<Retried, PersonError> {
    sys::forget_variable(MARK);
    let variables = caller.variables(again.variables)?;
    let claimed = claim(machines, &again.guest, who)?;
    if claimed.record.held.is_none() {
        return Err(PersonError::NotHeld { guest: again.guest.clone() });
    }
    let kept = load(machines, &claimed.record)?;
    if !kept.config.agent {
        return Err(no_agent(&again.guest));
    }
    if !kept.memory && !again.wipe {
        return Err(PersonError::NoMemory { guest: again.guest.clone() });
    }
    // Before it is woken, which takes a while.
    let known = TaskDocument::parse(&kept.document).map_or_else(|_| Vec::new(), |task| task.stages);
    if !known.iter().any(|stage| stage.name == again.stage) {
        let stages = known.into_iter().map(|stage| stage.name.to_string()).collect();
        return Err(PersonError::NoStage { guest: again.guest.clone(), stage: again.stage.clone(), stages });
    }
    let mut visit = Visit::begin(machines, claimed, caller)?;
    let retried = Talk::begin(&mut visit, who, caller).and_then(|mut talk| talk.run(again, variables));
    match retried {
        Err(Stopped::Terminated) => {
            visit.abandon();
            caller.say("ended from outside; what was done since it was entered is lost");
            Ok(Retried::Interrupted)
        }
        retried => {
            visit.end(caller, who)?;
            match retried {
                Ok(result) => Ok(Retried::Ended(result)),
                Err(Stopped::Error(error)) => Err(error),
                Err(Stopped::Person | Stopped::Terminated) => Ok(Retried::Interrupted),
            }
        }
    }
}

fn no_agent(guest: &Name) -> PersonError {
    let hint = ", so no stage of it can be run by itself".to_owned();
    PersonError::NoWay { guest: guest.clone(), what: "agent of ours", hint }
}

/// Why there is no result.
enum Stopped {
    Person,
    Terminated,
    Error(PersonError),
}

impl From<PersonError> for Stopped {
    fn from(error: PersonError) -> Self {
        Stopped::Error(error)
    }
}

struct Talk<'a, 'b> {
    visit: &'a mut Visit<'b>,
    who: &'a Who,
    caller: &'a mut Caller,
    line: Line,
    /// Whether it was noticed that nobody is there any more.
    is_alone: bool,
    /// What was heard and not used.
    heard: std::collections::VecDeque<Heard>,
    /// How QEMU ended, if it has.
    ended: Option<Ended>,
}

impl<'a, 'b> Talk<'a, 'b> {
    fn begin(visit: &'a mut Visit<'b>, who: &'a Who, caller: &'a mut Caller) -> Result<Self, Stopped> {
        let port = visit.revived.qemu.agent.as_ref().ok_or_else(|| no_agent(visit.guest()))?;
        let port = rustix::io::fcntl_dupfd_cloexec(port, 3)
            .map_err(|error| PersonError::system("use the agent's port")(error.into()))?;
        let line = if visit.goes_on { Line::resumed(port) } else { Line::fresh(port) };
        Ok(Self {
            visit,
            who,
            caller,
            line,
            is_alone: false,
            heard: std::collections::VecDeque::new(),
            ended: None,
        })
    }

    fn guest(&self) -> Name {
        self.visit.guest().clone()
    }

    fn run(&mut self, again: &Again, variables: BTreeMap<String, String>) -> Result<StageResult, Stopped> {
        if self.visit.goes_on {
            self.quiet_down()?;
        } else {
            self.come_up()?;
        }
        if !self.visit.revived.kept.prepared {
            self.prepare()?;
        }
        self.caller.say(&format!("runs stage {} again", again.stage));
        let Again { stage, wipe, .. } = again.clone();
        self.tell(&ToGuest::Stage { name: stage, variables, wipe })?;
        self.stage_end()
    }

    /// Until the agent has answered and nothing of the task runs.
    fn quiet_down(&mut self) -> Result<(), Stopped> {
        let mut told = false;
        let mut end = end_of(ANSWER_WITHIN);
        let mut what = "answer";
        loop {
            match self.next(end)? {
                None => return Err(self.silent(what, if told { STOP_WITHIN } else { ANSWER_WITHIN })),
                Some(Heard::Said(FromGuest::Alive { busy: false, .. })) => return Ok(()),
                Some(Heard::Said(FromGuest::Alive { busy: true, .. })) => {
                    if !std::mem::replace(&mut told, true) {
                        self.caller.say("stops what still runs in it");
                        self.tell(&ToGuest::Cancel)?;
                        (end, what) = (end_of(STOP_WITHIN), "stop what runs");
                    }
                    self.pause();
                    self.line.ask();
                }
                Some(_) => {}
            }
        }
    }

    /// A guest that boots.
    fn come_up(&mut self) -> Result<(), Stopped> {
        let startup = Duration::from_millis(self.visit.revived.kept.startup_ms);
        let end = end_of(startup);
        loop {
            match self.next(end)? {
                None => return Err(self.silent("come up", startup)),
                Some(Heard::Said(FromGuest::Ready { .. })) => return Ok(()),
                Some(_) => {}
            }
        }
    }

    /// An agent that has forgotten its task is given it again.
    fn prepare(&mut self) -> Result<(), Stopped> {
        let document = self.visit.revived.kept.document.clone();
        self.tell(&ToGuest::Task { document })?;
        let end = end_of(PREPARE_WITHIN);
        loop {
            match self.next(end)? {
                None => return Err(self.silent("unpack the source", PREPARE_WITHIN)),
                Some(Heard::Said(FromGuest::Prepared)) => {
                    self.visit.revived.kept.prepared = true;
                    return Ok(());
                }
                Some(Heard::Said(FromGuest::Failed { text, .. })) => return Err(self.unable(text)),
                Some(_) => {}
            }
        }
    }

    fn stage_end(&mut self) -> Result<StageResult, Stopped> {
        // A person who wants to may stop it; there is no other limit.
        let mut end = None;
        loop {
            let look = end.unwrap_or_else(|| end_of(Duration::from_secs(3600)));
            let heard = match self.next(look) {
                Err(Stopped::Person) if end.is_none() => {
                    self.caller.say("stops the stage");
                    self.tell(&ToGuest::Cancel)?;
                    end = Some(end_of(STOP_WITHIN));
                    continue;
                }
                heard => heard?,
            };
            match heard {
                None if end.is_some() => return Err(Stopped::Person),
                Some(Heard::Output(stream, bytes)) => self.caller.show(stream, &bytes),
                Some(Heard::Said(FromGuest::Ended { stopped: true, .. } | FromGuest::Failed { .. }))
                    if end.is_some() =>
                {
                    return Err(Stopped::Person);
                }
                Some(Heard::Said(FromGuest::Ended { result, .. })) => return Ok(result),
                Some(Heard::Said(FromGuest::Failed { text, .. })) => return Err(self.unable(text)),
                _ => {}
            }
        }
    }

    fn tell(&mut self, message: &ToGuest) -> Result<(), PersonError> {
        self.line.tell(message).map_err(PersonError::system("speak to the agent"))
    }

    fn silent(&self, what: &'static str, limit: Duration) -> Stopped {
        let (guest, host) = (self.guest(), self.who.host.clone());
        PersonError::Silent { guest, host, what, seconds: limit.as_secs() }.into()
    }

    fn unable(&self, why: String) -> Stopped {
        PersonError::Unable { guest: self.guest(), why }.into()
    }

    /// A moment, so that questions do not come in a flood.
    fn pause(&self) {
        std::thread::sleep(LOOK);
    }

    /// The next thing that is heard before `end`.
    fn next(&mut self, end: Instant) -> Result<Option<Heard>, Stopped> {
        loop {
            match self.heard.pop_front() {
                Some(Heard::Nonsense(why)) => return Err(self.unable(why)),
                Some(heard) => return Ok(Some(heard)),
                None => {}
            }
            if let Some(ended) = self.ended {
                let how = format!(", QEMU left with {ended}");
                return Err(PersonError::Ended { guest: self.guest(), how }.into());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wait(left.min(LOOK))?;
            // What it said last may be the end of the stage.
            if self.ended.is_some() {
                self.heard.extend(self.line.rest());
            } else if !self.caller.is_full() {
                self.heard.extend(self.line.look());
            }
        }
    }

    fn wait(&mut self, within: Duration) -> Result<(), Stopped> {
        let qemu = &mut self.visit.revived.qemu;
        if self.caller.is_full() {
            // The guest waits for the person.
            let mut fds = self.caller.fds();
            sys::poll(&mut fds, Some(within)).map_err(PersonError::system("wait"))?;
        }
        let mut others: Vec<BorrowedFd<'_>> = vec![qemu.child.fd(), qemu.qmp.fd()];
        others.push(std::os::fd::AsFd::as_fd(&qemu.console));
        others.push(std::os::fd::AsFd::as_fd(self.caller.signals_fd()));
        others.extend(qemu.child.words_fd());
        self.line.wait(&others, within).map_err(PersonError::system("wait"))?;
        drop(others);
        qemu.child.hear();
        drain_monitor(qemu);
        drain(std::os::fd::AsFd::as_fd(&qemu.console));
        self.ended = qemu.child.try_ended();
        if self.ended.is_some() { Ok(()) } else { self.look_at_person() }
    }

    fn look_at_person(&mut self) -> Result<(), Stopped> {
        self.caller.look();
        let alone = self.caller.gone().is_some();
        let mut wanted = alone && !std::mem::replace(&mut self.is_alone, alone);
        match take_signals(self.caller) {
            Some(Left::Terminated) => return Err(Stopped::Terminated),
            Some(_) => wanted = true,
            None => {}
        }
        if wanted { Err(Stopped::Person) } else { Ok(()) }
    }
}
