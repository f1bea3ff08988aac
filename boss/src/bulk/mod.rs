//! The boss's end of a bulk channel: git objects to a host, logs and artifacts from it.
//!
//! Each channel has a thread that reads and writes its pipes directly: bulk data never passes
//! through the runtime, and writing files never holds it up. [`Bulk`] is the handle to that thread;
//! it takes one request after the other.

mod artifacts;
mod error;
mod patience;
mod wire;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};

use crewboss_protocol::bulk::{BulkAnswer, BulkRequest, LogStream};
use crewboss_protocol::codec;
use crewboss_protocol::{HostName, SessionId, TaskRef, TreeId};
use tokio::sync::oneshot;

use crate::crew::Timing;
use crate::link::{Channel, ChannelGuard, Link, OwnBinary, Role, ShipError, start};

pub use artifacts::ArtifactLimits;
pub use error::BulkError;
use patience::Patience;
use wire::{FrameWriter, Wire};

/// The writing end, which the thread shares with [`Bulk::log`].
type Output = Arc<Mutex<Box<dyn Write + Send>>>;

type Job = Box<dyn FnOnce(&mut Wire) + Send>;

/// A bulk channel. Dropping it ends the channel, also in the middle of a request. Giving up a
/// request's future does not end the request: drop the channel then.
#[derive(Debug)]
pub struct Bulk {
    host: HostName,
    jobs: mpsc::Sender<Job>,
    output: SharedOutput,
    patience: Patience,
    log_max: u64,
    /// Keeps the process on the host; `None` in tests.
    _guard: Option<ChannelGuard>,
}

struct SharedOutput(Output);

impl std::fmt::Debug for SharedOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedOutput")
    }
}

/// When a log that is being sent ends.
#[derive(Debug)]
pub enum LogEnd {
    /// It has this length in bytes.
    Known(u64),
    /// Its length will be told. If the sender is dropped, the request fails.
    Later(oneshot::Receiver<u64>),
}

impl Bulk {
    /// Opens a bulk channel for a session of this boss.
    ///
    /// # Errors
    /// See [`start`].
    pub async fn open(
        link: &Link,
        binary: &OwnBinary,
        session: &SessionId,
        work: Option<&str>,
        timing: &Timing,
    ) -> Result<Self, ShipError> {
        let words = ["bulk", "--session", session.as_str()];
        let role = Role { session: Some(session.as_str()), ..Role::new(&words, work) };
        let channel = start(link, binary, role, b"").await?.channel;
        Self::over(link.host().clone(), channel, timing)
            .map_err(|source| ShipError::Io { host: link.host().clone(), source })
    }

    /// Speaks over a channel that is open already.
    ///
    /// # Errors
    /// If the pipes or the thread cannot be made.
    pub fn over(host: HostName, channel: Channel, timing: &Timing) -> io::Result<Self> {
        let mut raw = channel.into_raw()?;
        if let Some(mut stderr) = raw.guard.stderr.take() {
            // Failures come as answers; what else is printed must only not fill the pipe.
            tokio::spawn(async move { tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await });
        }
        let input = io::Cursor::new(raw.unread).chain(File::from(raw.stdout));
        Self::spawn(host, input, File::from(raw.stdin), Some(raw.guard), timing)
    }

    fn spawn(
        host: HostName,
        input: impl Read + Send + 'static,
        output: impl Write + Send + 'static,
        guard: Option<ChannelGuard>,
        timing: &Timing,
    ) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let patience = Patience::new(timing.stall);
        let output: Output = Arc::new(Mutex::new(Box::new(patience.writer(output))));
        let input = Box::new(patience.reader(input));
        let mut wire = Wire::new(host.clone(), input, output.clone(), timing.standstill, patience.meter());
        std::thread::Builder::new().name(format!("bulk {host}")).spawn(move || {
            for job in queue {
                job(&mut wire);
            }
        })?;
        Ok(Self { host, jobs, output: SharedOutput(output), patience, log_max: u64::MAX, _guard: guard })
    }

    /// No log may be longer.
    pub fn limit_logs(&mut self, bytes: u64) {
        self.log_max = bytes;
    }

    fn send<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Wire) -> Result<T, BulkError> + Send + 'static,
    ) -> oneshot::Receiver<Result<T, BulkError>> {
        let (done, result) = oneshot::channel();
        let job = Box::new(move |wire: &mut Wire| {
            let result = wire.guarded(work);
            // Whoever asked may have given up.
            let _given_up = done.send(result);
        });
        // If the thread is gone, `done` goes with the job and the receiver tells.
        let _gone = self.jobs.send(job);
        result
    }

    async fn call<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Wire) -> Result<T, BulkError> + Send + 'static,
    ) -> Result<T, BulkError> {
        let result = self.send(work);
        self.watched(result).await
    }

    /// The result of a request whose end the host is to bring about.
    async fn watched<T>(
        &mut self,
        result: impl Future<Output = Result<Result<T, BulkError>, oneshot::error::RecvError>>,
    ) -> Result<T, BulkError> {
        match self.patience.wait(result).await {
            Ok(result) => result.unwrap_or_else(|_| Err(self.lost())),
            Err(after) => Err(BulkError::Stalled { host: self.host.clone(), after, limit: "stall" }),
        }
    }

    fn lost(&self) -> BulkError {
        BulkError::Lost { host: self.host.clone() }
    }

    /// Which of these trees the host has or can check out. At most 1024 are asked for at once; more
    /// are asked for in turns.
    ///
    /// # Errors
    /// See [`BulkError`].
    pub async fn have(&mut self, trees: Vec<TreeId>) -> Result<BTreeSet<TreeId>, BulkError> {
        const AT_ONCE: usize = 1024;
        self.call(move |wire| {
            let mut found = BTreeSet::new();
            for part in trees.chunks(AT_ONCE) {
                wire.request(&BulkRequest::Have { trees: part.to_vec() })?;
                match wire.answer()? {
                    BulkAnswer::Has { trees } => {
                        found.extend(trees.iter().filter(|tree| part.contains(tree)))
                    }
                    other => return Err(wire.unexpected(&other)),
                }
            }
            Ok(found)
        })
        .await
    }

    /// Sends a git pack, which `produce` writes on the channel's thread. Gives back what `produce`
    /// returns, once the host has stored the pack.
    ///
    /// # Errors
    /// [`BulkError::Produce`] if `produce` fails; the channel can then be used further. Else see
    /// [`BulkError`].
    pub async fn pack<T: Send + 'static>(
        &mut self,
        produce: impl FnOnce(&mut dyn Write) -> io::Result<T> + Send + 'static,
    ) -> Result<T, BulkError> {
        self.data(BulkRequest::Pack, produce).await
    }

    /// Sends the content of a file that is too long for a pack, as [`Self::pack`] sends one.
    ///
    /// # Errors
    /// As for a pack.
    pub async fn file(
        &mut self,
        id: TreeId,
        bytes: u64,
        produce: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> Result<(), BulkError> {
        self.data(BulkRequest::File { id, bytes }, produce).await
    }

    async fn data<T: Send + 'static>(
        &mut self,
        request: BulkRequest,
        produce: impl FnOnce(&mut dyn Write) -> io::Result<T> + Send + 'static,
    ) -> Result<T, BulkError> {
        self.call(move |wire| {
            wire.request(&request)?;
            let output = wire.output();
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            let mut frames = FrameWriter::new(&mut *output);
            let produced = produce(&mut frames);
            let broken = frames.broken();
            let sent = match (&produced, broken) {
                (_, true) => Ok(()),
                (Ok(_), false) => frames.finish(),
                (Err(_), false) => frames.abandon(),
            };
            drop(output);
            // Whatever happened to our writing: if the host has given a reason, that is the one to
            // tell.
            match (wire.answer(), produced, sent) {
                (Ok(BulkAnswer::Stored), Ok(value), Ok(())) => Ok(value),
                (Ok(other), _, _) => Err(wire.unexpected(&other)),
                (Err(BulkError::Remote { .. }), Err(source), Ok(())) if !broken => {
                    Err(BulkError::Produce(source))
                }
                (Err(error), _, _) => Err(error),
            }
        })
        .await
    }

    /// Checks a tree out on the host. `near` is a tree that is checked out there already and
    /// differs little.
    ///
    /// # Errors
    /// See [`BulkError`].
    pub async fn check_out(&mut self, tree: TreeId, near: Option<TreeId>) -> Result<(), BulkError> {
        self.call(move |wire| {
            wire.request(&BulkRequest::CheckOut { tree, near })?;
            match wire.answer()? {
                BulkAnswer::CheckedOut { tree: done } if done == tree => Ok(()),
                other => Err(wire.unexpected(&other)),
            }
        })
        .await
    }

    /// Fetches a log from its beginning, also while it grows, and writes it to `sink` on the
    /// channel's thread. Gives the sink back, flushed, and the length, which is the one that `end`
    /// has told.
    ///
    /// # Errors
    /// [`BulkError::Sink`] if `sink` fails. Else see [`BulkError`].
    pub async fn log<W: Write + Send + 'static>(
        &mut self,
        at: TaskRef,
        stream: LogStream,
        end: LogEnd,
        sink: W,
    ) -> Result<(W, u64), BulkError> {
        let mut lines = Vec::new();
        codec::encode(&BulkRequest::Log { at, stream }, &mut lines);
        let (mut told, later) = match end {
            LogEnd::Known(bytes) => {
                codec::encode(&BulkRequest::LogEnds { bytes }, &mut lines);
                (Some(bytes), None)
            }
            LogEnd::Later(later) => (None, Some(later)),
        };
        // Written here and not on the thread, so that the end can never be told before the
        // beginning was asked for. The pipe is empty between requests and takes these few bytes at
        // once.
        self.write(&lines)?;
        let max = self.log_max;
        let mut result = self.send(move |wire| wire.log(sink, max));
        if let Some(later) = later {
            tokio::select! {
                biased;
                bytes = later => match bytes {
                    Ok(bytes) => {
                        let mut line = Vec::new();
                        codec::encode(&BulkRequest::LogEnds { bytes }, &mut line);
                        self.write(&line)?;
                        told = Some(bytes);
                    }
                    Err(_) => return Err(self.lost()),
                },
                early = &mut result => {
                    let early = early.unwrap_or_else(|_| Err(self.lost()))?;
                    let what = format!("a log ended after {} bytes, before its end was told", early.1);
                    return Err(BulkError::Rule { host: self.host.clone(), what });
                }
            }
        }
        let (sink, bytes) = self.watched(result).await?;
        match told {
            Some(announced) if announced != bytes => {
                Err(BulkError::Length { host: self.host.clone(), what: "a log".to_owned(), announced, bytes })
            }
            _ => Ok((sink, bytes)),
        }
    }

    fn write(&self, lines: &[u8]) -> Result<(), BulkError> {
        let mut output = self.output.0.lock().unwrap_or_else(PoisonError::into_inner);
        output.write_all(lines).map_err(|_| self.lost())
    }

    /// Fetches the artifacts of an attempt into a directory, which must be fresh and ours alone.
    ///
    /// Gives back how many there were. Names that would leave it, doubles, more data than `limits`
    /// and wrong checksums are refused. After an error the directory may hold some of them.
    ///
    /// # Errors
    /// See [`BulkError`].
    pub async fn artifacts(
        &mut self,
        at: TaskRef,
        directory: PathBuf,
        limits: ArtifactLimits,
    ) -> Result<u64, BulkError> {
        self.call(move |wire| {
            wire.request(&BulkRequest::Artifacts { at })?;
            artifacts::receive(wire, &directory, limits)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
