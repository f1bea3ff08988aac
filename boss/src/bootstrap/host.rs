//! One host: asked what it has, then told what to bootstrap, and listened to until all of it has
//! ended.

use std::collections::BTreeMap;

use crewboss_protocol::message::{BootstrapEnd, BootstrapOrder};
use crewboss_protocol::{Attempt, FromWorker, HostFacts, HostName, TaskId, TaskRef, ToWorker};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, interval};

use super::choice::Chosen;
use super::{Line, Progress, Verdict};
use crate::run::{Opening, SessionError, Talk};

/// What a host is to do.
pub(super) struct Orders {
    pub(super) chosen: Vec<Chosen>,
    /// Also what is ready.
    pub(super) force: bool,
}

/// What of it has come to an end.
struct Book {
    host: HostName,
    orders: BTreeMap<TaskRef, BootstrapOrder>,
    ends: BTreeMap<TaskRef, BootstrapEnd>,
    tell: mpsc::UnboundedSender<Progress>,
}

/// Keeps the session with a host until everything that is ordered has ended, or `stop`. If no
/// orders come, nothing is done.
pub(super) async fn keep_host(
    opening: Opening,
    facts: oneshot::Sender<HostFacts>,
    orders: oneshot::Receiver<Orders>,
    mut stop: watch::Receiver<bool>,
    tell: mpsc::UnboundedSender<Progress>,
) -> Result<Vec<Line>, String> {
    let host = opening.host.name.clone();
    let greeting = tokio::select! {
        greeting = opening.greet() => greeting.map_err(|error| error.story(&host))?,
        () = until(&mut stop) => return Err("interrupted before it answered".to_owned()),
    };
    // Nobody waits for it if another name is unknown.
    facts.send(greeting.ready.facts.clone()).ok();
    let mut talk = greeting.talk();
    let mut session = Session { opening: &opening, talk: &mut talk, pings: 0, stop };
    let Ok(Ok(Orders { chosen, force })) = session.waiting(orders).await else {
        talk.part().await;
        return Err("the session ended before anything was ordered".to_owned());
    };
    let mut book = Book::new(host.clone(), &chosen, force, tell);
    let ended = session.work(&mut book).await;
    match ended {
        Ok(()) => talk.part().await,
        Err(error) => book.lose(&error.story(&host)),
    }
    Ok(book.lines(chosen))
}

async fn until(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        // Whoever could ask for it is gone.
        std::future::pending::<()>().await;
    }
}

struct Session<'a> {
    opening: &'a Opening,
    talk: &'a mut Talk,
    pings: u64,
    stop: watch::Receiver<bool>,
}

impl Session<'_> {
    /// Says that the boss is there until something else is ready.
    async fn waiting<T>(&mut self, what: impl Future<Output = T>) -> Result<T, SessionError> {
        tokio::pin!(what);
        let mut heartbeat = interval(self.opening.common.timing.heartbeat);
        loop {
            tokio::select! {
                ready = &mut what => return Ok(ready),
                message = self.talk.next() => drop(message?),
                due = heartbeat.tick() => self.ping(due).await?,
            }
        }
    }

    async fn ping(&mut self, due: Instant) -> Result<(), SessionError> {
        self.talk.beat(due, &self.opening.common.timing);
        let after = self.opening.common.timing.silence;
        if self.talk.silence() >= after {
            return Err(SessionError::Silent { after, limit: "silence" });
        }
        self.pings += 1;
        self.talk.say(&ToWorker::Ping { number: self.pings }).await;
        Ok(())
    }

    async fn work(&mut self, book: &mut Book) -> Result<(), SessionError> {
        for order in book.orders.values() {
            self.talk.say(&ToWorker::Bootstrap(order.clone())).await;
        }
        let mut heartbeat = interval(self.opening.common.timing.heartbeat);
        let mut stop = self.stop.clone();
        let mut stopping = false;
        while !book.is_complete() {
            tokio::select! {
                message = self.talk.next() => book.take(message?)?,
                due = heartbeat.tick() => self.ping(due).await?,
                () = until(&mut stop), if !stopping => {
                    stopping = true;
                    for at in book.open() {
                        self.talk.say(&ToWorker::Cancel { at }).await;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Book {
    fn new(host: HostName, chosen: &[Chosen], force: bool, tell: mpsc::UnboundedSender<Progress>) -> Self {
        let open = (0..).zip(chosen).filter(|(_, one)| one.verdict.is_none());
        let order = |(number, one): (u32, &Chosen)| {
            let (machine, toolchain) = (one.machine.clone(), one.toolchain.clone());
            (name(number), BootstrapOrder { at: name(number), machine, toolchain, force })
        };
        Self { host, orders: open.map(order).collect(), ends: BTreeMap::new(), tell }
    }

    fn is_complete(&self) -> bool {
        self.open().next().is_none()
    }

    fn open(&self) -> impl Iterator<Item = TaskRef> {
        self.orders.keys().copied().filter(|at| !self.ends.contains_key(at))
    }

    fn take(&mut self, message: FromWorker) -> Result<(), SessionError> {
        match message {
            FromWorker::Phase { at, text, .. } if !text.is_empty() => self.say(at, text, false),
            FromWorker::Log { at, text, .. } => self.say(at, text, true),
            FromWorker::Bootstrapped { at, end } => self.end(at, end),
            FromWorker::Refused { at, text, .. } => self.end(at, BootstrapEnd::Failed { why: text }),
            FromWorker::Notice { text } => self.tell(Progress::Notice { host: self.host.clone(), text }),
            FromWorker::Finished => return Err(SessionError::Ended { stderr: String::new() }),
            _ => {}
        }
        Ok(())
    }

    fn say(&self, at: TaskRef, text: String, output: bool) {
        let Some(order) = self.orders.get(&at) else { return };
        let (host, machine) = (self.host.clone(), order.machine.clone());
        self.tell(if output {
            Progress::Output { host, machine, text }
        } else {
            Progress::Step { host, machine, text }
        });
    }

    fn tell(&self, progress: Progress) {
        // If nobody listens, nobody wants to know.
        self.tell.send(progress).ok();
    }

    fn end(&mut self, at: TaskRef, end: BootstrapEnd) {
        if self.orders.contains_key(&at) {
            self.ends.entry(at).or_insert(end);
        }
    }

    /// The session is lost, and whatever had not ended with it.
    fn lose(&mut self, why: &str) {
        for at in self.open().collect::<Vec<_>>() {
            self.end(at, BootstrapEnd::Failed { why: why.to_owned() });
        }
    }

    fn lines(mut self, chosen: Vec<Chosen>) -> Vec<Line> {
        let line = |(number, one): (u32, Chosen)| {
            let end = self.ends.remove(&name(number)).unwrap_or(BootstrapEnd::Cancelled);
            let verdict = one.verdict.unwrap_or(Verdict::Ended(end));
            Line { machine: one.machine, toolchain: one.toolchain, verdict }
        };
        (0..).zip(chosen).map(line).collect()
    }
}

/// What the bootstrap of the machine with this place in the list is called.
fn name(number: u32) -> TaskRef {
    TaskRef { task: TaskId(number), attempt: Attempt(1) }
}
