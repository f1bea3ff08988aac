//! The beginning of a session: connect, start the worker, say hello, hear what the host is.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use crewboss_protocol::codec::{DecodeError, Line, LineDecoder, encode, parse};
use crewboss_protocol::message::{Hello, Ready};
use crewboss_protocol::{FromWorker, PROTOCOL_VERSION, SessionId, ToWorker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::host_log::HostLog;
use super::hosts::Traffic;
use super::live::{Live, last_words, one_line};
use super::session_error::SessionError;
use super::site::{Common, Site, Work};
use super::talk::Talk;
use crate::crew::Host;
use crate::link::{ChannelGuard, ChannelReader, Link, OwnBinary, Role, Running, start};
use crate::scheduler::HostIndex;

/// Stray lines that are kept until the host's log is open.
const EARLY_LINES_MAX: usize = 1000;

/// Notices before `ready`. A worker that has more to say is none.
const NOTICES_MAX: usize = 1000;

/// A session on its way.
pub(crate) struct Opening {
    pub(crate) common: Arc<Common>,
    pub(crate) host: Host,
    pub(crate) index: HostIndex,
    /// Counts the sessions with this host in this run.
    pub(crate) session: u32,
}

/// A worker that has answered.
pub(crate) struct Greeting {
    pub(crate) link: Link,
    pub(crate) session: SessionId,
    /// Bytes of the binary, if it had to be sent.
    pub(super) shipped: u64,
    pub(crate) ready: Box<Ready>,
    stdin: pipe::Sender,
    stdout: ChannelReader,
    guard: ChannelGuard,
    decoder: LineDecoder,
    /// What was said to it.
    hello: Vec<u8>,
    /// What was printed before it answered.
    early: Vec<Vec<u8>>,
    /// What it has to say besides: that something could not be cleaned up, for instance.
    notices: Vec<FromWorker>,
}

impl Opening {
    /// Connects, starts the worker and waits for its answer.
    pub(crate) async fn greet(&self) -> Result<Greeting, SessionError> {
        let (link, binary) = tokio::join!(self.common.connector.connect(&self.host), self.common.binary());
        let (link, binary) = (link?, binary?);
        let session = self.session_id();
        let mut hello = Vec::new();
        encode(&ToWorker::Hello(self.hello(&session, binary)), &mut hello);
        let role = Role::new(&["worker"], self.host.work.as_deref());
        let Running { channel, shipped } = start(&link, binary, role, &hello).await?;
        let (stdin, mut stdout, mut guard) = channel.into_parts();
        let mut decoder = LineDecoder::new();
        let (mut early, mut notices) = (Vec::new(), Vec::new());
        let message = async {
            loop {
                match first_message(&mut stdout, &mut decoder, &mut early).await {
                    Ok(notice @ FromWorker::Notice { .. }) if notices.len() < NOTICES_MAX => {
                        notices.push(notice)
                    }
                    message => return message,
                }
            }
        };
        let after = self.common.timing.ready;
        let message = timeout(after, message).await;
        let ready = match message.unwrap_or(Err(SessionError::Silent { after, limit: "ready" })) {
            Ok(message) => check(message, binary)?,
            Err(SessionError::Ended { .. }) => {
                let words = last_words(&mut guard).await;
                return Err(SessionError::Ended { stderr: one_line(&String::from_utf8_lossy(&words)) });
            }
            Err(error) => return Err(error),
        };
        let shipped = if shipped { binary.bytes() } else { 0 };
        Ok(Greeting { link, session, shipped, ready, stdin, stdout, guard, decoder, hello, early, notices })
    }

    fn session_id(&self) -> SessionId {
        let text = format!("{}.{}.{}", self.common.run, self.index.0, self.session);
        // A run's id and two numbers are far below the limit of a name.
        text.parse().unwrap_or_else(|_| unreachable!("{text:?} is made of a valid name and numbers"))
    }

    fn hello(&self, session: &SessionId, binary: &OwnBinary) -> Hello {
        let (common, host) = (&self.common, &self.host);
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Hello {
            protocol: PROTOCOL_VERSION,
            build: binary.sha256().to_owned(),
            boss: common.boss.clone(),
            run: common.run.clone(),
            session: session.clone(),
            host: host.name.clone(),
            priority: common.priority,
            heartbeat_ms: ms(common.timing.heartbeat),
            silence_ms: ms(common.timing.silence),
            standstill_ms: ms(common.timing.standstill),
            limits: common.limits.task,
            slots: host.slots,
            toolchains: host.toolchains.clone(),
            machines: host.machines.clone(),
            accel: host.accel,
            probe_only: common.probe_only,
            refresh: common.refresh,
        }
    }
}

/// The answer to `hello`, if it is one.
fn check(message: FromWorker, binary: &OwnBinary) -> Result<Box<Ready>, SessionError> {
    let ours = binary.sha256();
    match message {
        FromWorker::Ready(ready) if ready.protocol == PROTOCOL_VERSION && ready.build == ours => Ok(ready),
        FromWorker::Ready(ready) => Err(SessionError::Build {
            theirs: format!("{}, protocol {}", ready.build, ready.protocol),
            ours: format!("{ours}, protocol {PROTOCOL_VERSION}"),
        }),
        FromWorker::Error { kind, text } => Err(SessionError::Worker { kind, text }),
        other => Err(SessionError::NotReady { got: format!("{other:?}").chars().take(100).collect() }),
    }
}

impl Greeting {
    /// Lets the worker know that the boss is there while that still plans; a worker whose boss is
    /// silent ends. Never comes to an end itself.
    pub(super) async fn reassure(&mut self, every: Duration) -> Infallible {
        let mut ping = Vec::new();
        encode(&ToWorker::Ping { number: 0 }, &mut ping);
        loop {
            tokio::time::sleep(every).await;
            if self.stdin.write_all(&ping).await.is_err() {
                // Whoever reads from it finds out why.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Ends the session in order, when nothing but the answer was wanted.
    pub(crate) async fn part(self) {
        self.talk().part().await;
    }

    /// Goes on without plan and store.
    pub(crate) fn talk(self) -> Talk {
        Talk::new(self.link, (self.stdin, self.stdout, self.guard), self.decoder)
    }

    /// The session, and what there is to say of its beginning.
    pub(super) fn live(
        self,
        opening: Opening,
        traffic: Arc<Traffic>,
        work: Arc<Work>,
    ) -> (Live, Vec<FromWorker>) {
        let mut log = HostLog::open(&work.root, &opening.host.name, opening.common.limits.host_log);
        log.sent(&self.hello);
        self.early.iter().for_each(|line| log.stray(line));
        let site = Site {
            index: opening.index,
            traffic,
            common: opening.common,
            work_dir: opening.host.work,
            session: self.session,
            link: self.link,
        };
        let streams = (self.stdin, self.stdout, self.guard);
        (Live::new(site, self.ready, streams, self.decoder, log, work), self.notices)
    }
}

/// The first message, and the stray lines before it.
async fn first_message(
    stdout: &mut ChannelReader,
    decoder: &mut LineDecoder,
    early: &mut Vec<Vec<u8>>,
) -> Result<FromWorker, SessionError> {
    let mut buffer = Vec::with_capacity(16 << 10);
    loop {
        while let Some(line) = decoder.next_line() {
            match line {
                Line::Ours(text) => return parse(text).map_err(SessionError::Decode),
                Line::Stray(text) if early.len() < EARLY_LINES_MAX => early.push(text.to_vec()),
                Line::Stray(_) => {}
                Line::TooLong => return Err(SessionError::Decode(DecodeError::TooLong)),
            }
        }
        buffer.clear();
        if stdout.read_buf(&mut buffer).await.map_err(SessionError::Read)? == 0 {
            return Err(SessionError::Ended { stderr: String::new() });
        }
        decoder.push(&buffer);
    }
}
