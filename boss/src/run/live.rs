//! A session that stands: what is said and heard on its control channel.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crewboss_protocol::codec::{DecodeError, Line, LineDecoder, encode, parse};
use crewboss_protocol::message::{Ending, Ready};
use crewboss_protocol::{FromWorker, ToWorker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::flood::Flood;
use super::host_log::HostLog;
use super::session_error::SessionError;
use super::site::{Site, Work};
use crate::link::{ChannelGuard, ChannelReader};

/// A session that stands.
pub(super) struct Live {
    pub(super) site: Arc<Site>,
    pub(super) work: Arc<Work>,
    pub(super) ready: Box<Ready>,
    writer: mpsc::UnboundedSender<Vec<u8>>,
    outgoing: Vec<u8>,
    pub(super) stdout: ChannelReader,
    pub(super) guard: ChannelGuard,
    decoder: LineDecoder,
    pub(super) log: HostLog,
    pub(super) heard: Instant,
    pings: u64,
    pinged: Option<(u64, Instant)>,
    pub(super) round_trip: Option<u64>,
    /// The end of what came over standard error.
    complaints: String,
    /// Targets that the worker knows.
    configured: HashSet<u32>,
    /// Why the worker ends, if it has said so.
    ending: Option<Ending>,
    flood: Flood,
}

impl Live {
    /// A session whose worker has answered.
    pub(super) fn new(
        site: Site,
        ready: Box<Ready>,
        (stdin, stdout, guard): (pipe::Sender, ChannelReader, ChannelGuard),
        decoder: LineDecoder,
        log: HostLog,
        work: Arc<Work>,
    ) -> Self {
        let flood = Flood::new(site.common.limits.messages, std::time::Instant::now());
        Self {
            site: Arc::new(site),
            work,
            ready,
            writer: write_task(stdin),
            outgoing: Vec::new(),
            stdout,
            guard,
            decoder,
            log,
            heard: Instant::now(),
            pings: 0,
            pinged: None,
            round_trip: None,
            complaints: String::new(),
            configured: HashSet::new(),
            ending: None,
            flood,
        }
    }

    /// Adds a message to those that [`Self::flush`] hands over together.
    ///
    /// A target is defined before the first task that names it: most hosts of a large crew never
    /// see most targets.
    pub(super) fn send(&mut self, message: &ToWorker) {
        if let ToWorker::Task(order) = message
            && self.configured.insert(order.target)
            && let Some(plan) = self.work.plan.targets().get(order.target as usize)
        {
            let configure = ToWorker::Configure { first: order.target, targets: vec![plan.target.clone()] };
            encode(&configure, &mut self.outgoing);
        }
        encode(message, &mut self.outgoing);
    }

    pub(super) fn say(&mut self, message: &ToWorker) {
        self.send(message);
        self.flush();
    }

    pub(super) fn flush(&mut self) {
        if !self.outgoing.is_empty() {
            self.log.sent(&self.outgoing);
            self.site.traffic.add_sent(self.outgoing.len() as u64);
            // If the writer is gone, the reading side says why.
            self.writer.send(std::mem::take(&mut self.outgoing)).ok();
        }
    }

    pub(super) fn ping(&mut self) {
        self.pings += 1;
        self.pinged.get_or_insert((self.pings, Instant::now()));
        self.say(&ToWorker::Ping { number: self.pings });
    }

    /// Takes what was read: all messages in it, and the error or farewell behind them.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> (Vec<FromWorker>, Option<SessionError>) {
        self.heard = Instant::now();
        self.site.traffic.add_received(bytes.len() as u64);
        self.decoder.push(bytes);
        self.messages()
    }

    /// Takes what has been read and not been heard: behind `ready` there may be more in the same
    /// read, and no further read would tell of it.
    pub(super) fn messages(&mut self) -> (Vec<FromWorker>, Option<SessionError>) {
        let mut messages = Vec::new();
        let now = std::time::Instant::now();
        while let Some(line) = self.decoder.next_line() {
            if self.flood.is_one_with_this(now) {
                return (messages, Some(SessionError::Flood { limit: self.site.common.limits.messages }));
            }
            let text = match line {
                Line::Ours(text) => text,
                Line::Stray(text) => {
                    self.log.stray(text);
                    continue;
                }
                Line::TooLong => return (messages, Some(SessionError::Decode(DecodeError::TooLong))),
            };
            self.log.received(text);
            match parse(text) {
                Ok(FromWorker::Error { kind, text }) => {
                    return (messages, Some(SessionError::Worker { kind, text }));
                }
                Ok(FromWorker::Finished) => {
                    let unexpected = SessionError::Ended { stderr: String::new() };
                    return (
                        messages,
                        Some(self.ending.take().map_or(unexpected, |why| SessionError::Ending { why })),
                    );
                }
                Ok(message) => {
                    if let FromWorker::Alive { number, .. } = message {
                        self.round_trip = self.round_trip.take().or(answered(&mut self.pinged, number));
                    }
                    if let FromWorker::Ending { why } = &message {
                        self.ending = Some(why.clone());
                    }
                    messages.push(message);
                }
                Err(error) => return (messages, Some(SessionError::Decode(error))),
            }
        }
        (messages, None)
    }

    pub(super) fn complain(&mut self, text: &[u8]) {
        const COMPLAINTS_MAX: usize = 1000;
        self.log.stray(text);
        self.complaints.push_str(&String::from_utf8_lossy(text));
        let mut cut = self.complaints.len().saturating_sub(COMPLAINTS_MAX);
        while !self.complaints.is_char_boundary(cut) {
            cut += 1;
        }
        self.complaints.drain(..cut);
    }

    /// The worker's output has ended: what did it say last?
    pub(super) async fn ended(&mut self) -> SessionError {
        // A link is cut anywhere, also in the middle of a line.
        let _torn = self.decoder.finish();
        if let Some(why) = self.ending.take() {
            return SessionError::Ending { why };
        }
        let words = last_words(&mut self.guard).await;
        self.complain(&words);
        SessionError::Ended { stderr: one_line(&self.complaints) }
    }
}

/// What is still to be read of standard error.
pub(super) async fn last_words(guard: &mut ChannelGuard) -> Vec<u8> {
    const WITHIN: Duration = Duration::from_millis(200);
    const BYTES_MAX: usize = 4096;
    let mut buffer = [0; BYTES_MAX];
    let mut words = Vec::new();
    while words.len() < BYTES_MAX
        && let Ok(count) = timeout(WITHIN, read_stderr(guard, &mut buffer)).await
    {
        words.extend_from_slice(&buffer[..count]);
    }
    words
}

pub(super) fn one_line(words: &str) -> String {
    words.trim().replace('\n', "; ")
}

/// The time since the ping that this answers.
fn answered(pinged: &mut Option<(u64, Instant)>, number: u64) -> Option<u64> {
    let (_, since) = pinged.take_if(|(asked, _)| *asked <= number)?;
    u64::try_from(since.elapsed().as_micros()).ok()
}

/// Reads standard error as long as there is any; for ever waiting once it has ended.
pub(super) async fn read_stderr(guard: &mut ChannelGuard, buffer: &mut [u8]) -> usize {
    if let Some(stderr) = &mut guard.stderr {
        match stderr.read(buffer).await {
            Ok(count) if count > 0 => return count,
            _ => guard.stderr = None,
        }
    }
    std::future::pending().await
}

/// Writes what it is given, as much at once as is there. Ends when the session drops its end, and
/// closes the worker's input with that.
fn write_task(mut stdin: pipe::Sender) -> mpsc::UnboundedSender<Vec<u8>> {
    // No limit of its own: the scheduler limits what is on its way to a host.
    let (writer, mut lines) = mpsc::unbounded_channel::<Vec<u8>>();
    tokio::spawn(async move {
        while let Some(mut bytes) = lines.recv().await {
            while let Ok(more) = lines.try_recv() {
                bytes.extend_from_slice(&more);
            }
            // The reading side finds out why, and says it.
            if stdin.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
    writer
}
