//! One host in a run: connects, keeps a session going, connects again when it is lost.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crewboss_protocol::{FromWorker, ToWorker, TreeId};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::fetch::Fetcher;
use super::hosts::{News, Order, Report, Traffic};
use super::live::{Live, read_stderr};
use super::opening::Opening;
use super::push::Pusher;
use super::session_error::SessionError;
use super::site::{Common, QUIT_WITHIN, Work};
use crate::crew::Host;
use crate::scheduler::HostIndex;

/// Pause before a lost host is tried again; doubled up to the longest.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// Tries without a session before a host is given up. With the pauses above: about a minute for a
/// host that never answered, over two minutes for one that was there.
const TRIES_BEFORE_FIRST: u32 = 3;
const TRIES_AFTER: u32 = 8;

/// A session that stood so long makes up for the failures before it. A shorter one does not: a host
/// that comes up only to be lost again would be tried for ever.
const STEADY_AFTER: Duration = RETRY_LONGEST;

/// One host of a run.
#[derive(Debug)]
pub struct Supervisor {
    common: Arc<Common>,
    work: watch::Receiver<Option<Arc<Work>>>,
    index: HostIndex,
    host: Host,
    traffic: Arc<Traffic>,
    orders: mpsc::UnboundedReceiver<(u32, Order)>,
    reports: mpsc::Sender<Report>,
    /// Sessions begun so far. Orders for an earlier one are dropped.
    session: u32,
}

impl Supervisor {
    /// For a host; [`Self::run`] does the work.
    pub fn new(
        common: Arc<Common>,
        work: watch::Receiver<Option<Arc<Work>>>,
        index: HostIndex,
        host: Host,
        traffic: Arc<Traffic>,
        orders: mpsc::UnboundedReceiver<(u32, Order)>,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        Self { common, work, index, host, traffic, orders, reports, session: 0 }
    }

    /// Keeps the host in the run until it is told to quit or the host is given up.
    pub async fn run(mut self) {
        let (mut failures, mut was_ready, mut pause) = (0, false, RETRY_FIRST);
        loop {
            self.report(News::Connecting).await;
            self.session += 1;
            let error = match self.begin().await {
                Ok(live) => {
                    let since = Instant::now();
                    let error = self.live(live).await;
                    if let Some(wait) = self.own_standstill(&error) {
                        self.report(wait).await;
                        was_ready = true;
                        continue;
                    }
                    if !was_ready || since.elapsed() >= STEADY_AFTER {
                        (failures, pause) = (0, RETRY_FIRST);
                    }
                    was_ready = true;
                    error
                }
                Err(error) => error,
            };
            if error.is_quit() {
                return self.report(News::Quit).await;
            }
            if crate::lacks_resources(&error) {
                return self.report(News::Broken { reason: error.story(&self.host.name) }).await;
            }
            failures += 1;
            let tries = if was_ready { TRIES_AFTER } else { TRIES_BEFORE_FIRST };
            if error.is_lasting() || failures >= tries {
                return self.report(News::Failed { reason: error.story(&self.host.name) }).await;
            }
            let wait = pause.mul_f64(0.75 + 0.5 * fastrand::f64());
            let retry_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            let reason = error.story(&self.host.name);
            self.report(News::Lost { reason, retry_ms, ours: false }).await;
            if timeout(wait, self.until_quit()).await.is_ok() {
                return self.report(News::Quit).await;
            }
            pause = (pause * 2).min(RETRY_LONGEST);
        }
    }

    /// If a session ended since this process itself stood still, that counts for nothing, and the
    /// next one begins at once.
    fn own_standstill(&self, error: &SessionError) -> Option<News> {
        let after = self.common.awake.explains().filter(|_| !error.is_lasting() && !error.is_quit())?;
        let reason = SessionError::OwnStandstill { after }.to_string();
        Some(News::Lost { reason, retry_ms: 0, ours: true })
    }

    async fn report(&self, news: News) {
        // If nobody listens, the run is over.
        self.reports.send(Report { host: self.index, news }).await.ok();
    }

    /// Waits for the order to quit; other orders are for a session that is over.
    async fn until_quit(&mut self) {
        while let Some((_, order)) = self.orders.recv().await {
            if matches!(order, Order::Quit) {
                return;
            }
        }
    }

    async fn begin(&mut self) -> Result<Live, SessionError> {
        let (common, host) = (self.common.clone(), self.host.clone());
        let opening = Opening { common, host, index: self.index, session: self.session };
        let (mut work, traffic, reports) = (self.work.clone(), self.traffic.clone(), self.reports.clone());
        let open = async move {
            let mut greeting = opening.greet().await?;
            if greeting.shipped > 0 {
                let news = News::Shipped { bytes: greeting.shipped };
                // If nobody listens, the run is over.
                reports.send(Report { host: opening.index, news }).await.ok();
            }
            let work = async { work.wait_for(Option::is_some).await.ok().and_then(|work| work.clone()) };
            let heartbeat = opening.common.timing.heartbeat;
            let work = tokio::select! {
                work = work => work.ok_or(SessionError::Quit)?,
                never = greeting.reassure(heartbeat) => match never {},
            };
            Ok::<_, SessionError>(greeting.live(opening, traffic, work))
        };
        let (live, notices) = tokio::select! {
            live = open => live?,
            () = self.until_quit() => return Err(SessionError::Quit),
        };
        self.report(News::Ready { session: self.session, ready: live.ready.clone() }).await;
        if !notices.is_empty() {
            self.report(News::Messages(notices)).await;
        }
        Ok(live)
    }

    /// Serves the session until it ends.
    async fn live(&mut self, mut live: Live) -> SessionError {
        let mut helpers = Helpers::new(&live, self.reports.clone());
        let error = self.serve(&mut live, &mut helpers).await;
        drop(helpers);
        // Also one that is lost: what is left of it must not stay beside the next one.
        live.site.link.clone().close();
        error
    }

    async fn serve(&mut self, live: &mut Live, helpers: &mut Helpers) -> SessionError {
        let behind_ready = live.messages();
        if let Err(error) = self.tell(live, behind_ready).await {
            return error;
        }
        let mut ping = interval(self.common.timing.heartbeat);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut quitting: Option<Instant> = None;
        let mut buffer = Vec::with_capacity(64 << 10);
        let mut complaints = [0; 4096];
        loop {
            let deadline = quitting.unwrap_or_else(|| live.heard + self.common.timing.silence);
            tokio::select! {
                read = live.stdout.read_buf(&mut buffer) => {
                    match self.take(live, &mut buffer, read).await {
                        Ok(()) => {}
                        Err(_) if quitting.is_some() => return SessionError::Quit,
                        Err(error) => return error,
                    }
                }
                order = self.orders.recv(), if quitting.is_none() => {
                    match self.obey(live, helpers, order) {
                        Obeyed::GoOn => {}
                        Obeyed::Quit => {
                            live.send(&ToWorker::Quit);
                            quitting = Some(Instant::now() + QUIT_WITHIN);
                        }
                        Obeyed::End(reason) => return SessionError::Stuck { reason },
                    }
                    live.flush();
                }
                Some(pushed) = helpers.pushed.recv() => match pushed {
                    Ok(tree) => live.say(&ToWorker::SourceReady { tree }),
                    Err(error) => return error,
                },
                count = read_stderr(&mut live.guard, &mut complaints) => live.complain(&complaints[..count]),
                _ = ping.tick() => live.ping(),
                () = tokio::time::sleep_until(deadline) => {
                    if quitting.is_some() {
                        return SessionError::Quit;
                    }
                    // A boss that stood still itself must not take that for silence. The order of
                    // the branches would do as well, but then a worker that never stops talking
                    // would keep all others from their turn.
                    match timeout(Duration::ZERO, live.stdout.read_buf(&mut buffer)).await {
                        Ok(read) => if let Err(error) = self.take(live, &mut buffer, read).await {
                            return error;
                        },
                        Err(_) => return SessionError::Silent { after: self.common.timing.silence, limit: "silence" },
                    }
                }
            }
        }
    }

    /// Takes what was read from the worker.
    async fn take(
        &self,
        live: &mut Live,
        buffer: &mut Vec<u8>,
        read: io::Result<usize>,
    ) -> Result<(), SessionError> {
        let count = read.map_err(SessionError::Read)?;
        if count == 0 {
            return Err(live.ended().await);
        }
        let heard = live.hear(buffer);
        buffer.clear();
        self.tell(live, heard).await
    }

    /// Passes on what the worker said.
    async fn tell(
        &self,
        live: &mut Live,
        (messages, end): (Vec<FromWorker>, Option<SessionError>),
    ) -> Result<(), SessionError> {
        if !messages.is_empty() {
            self.report(News::Messages(messages)).await;
        }
        if let Some(micros) = live.round_trip.take() {
            self.report(News::RoundTrip { micros }).await;
        }
        end.map_or(Ok(()), Err)
    }

    /// Carries out what is ordered, as much as is there.
    fn obey(&mut self, live: &mut Live, helpers: &mut Helpers, first: Option<(u32, Order)>) -> Obeyed {
        let mut next = first;
        while let Some((session, order)) = next {
            match order {
                Order::Quit => return Obeyed::Quit,
                _ if session != self.session => {}
                Order::End { reason } => return Obeyed::End(reason),
                Order::Send(message) => live.send(&message),
                Order::Source(tree) => helpers.pusher.push(tree),
                Order::Follow { at, part } => helpers.fetcher.follow(at, part),
                Order::Fetch(fetch) => helpers.fetcher.fetch(fetch),
                Order::Abandon { at, part } => helpers.fetcher.abandon(at, &part),
            }
            next = match self.orders.try_recv() {
                Ok(order) => Some(order),
                Err(mpsc::error::TryRecvError::Empty) => return Obeyed::GoOn,
                Err(mpsc::error::TryRecvError::Disconnected) => None,
            };
        }
        // The run loop is gone.
        Obeyed::Quit
    }
}

/// What becomes of a session after its orders.
enum Obeyed {
    GoOn,
    Quit,
    End(String),
}

/// What works beside a session.
struct Helpers {
    pusher: Pusher,
    pushed: mpsc::UnboundedReceiver<Result<TreeId, SessionError>>,
    fetcher: Fetcher,
}

impl Helpers {
    fn new(live: &Live, reports: mpsc::Sender<Report>) -> Self {
        // One message for each tree that was ordered.
        let (done, pushed) = mpsc::unbounded_channel();
        let has = live.ready.facts.trees.clone();
        let pusher = Pusher::start(live.site.clone(), live.work.source.clone(), has, reports.clone(), done);
        Self { pusher, pushed, fetcher: Fetcher::new(live.site.clone(), reports) }
    }
}
