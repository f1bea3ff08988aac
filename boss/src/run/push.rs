//! Brings source to a host, one tree after the other, over one bulk channel.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crewboss_protocol::TreeId;
use crewboss_protocol::bulk::BulkErrorKind;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::hosts::{News, Report};
use super::session_error::SessionError;
use super::site::Site;
use crate::bulk::{Bulk, BulkError};
use crate::link::ShipError;
use crate::source::{PackStats, Source, SourceError};

/// Why a tree did not arrive.
#[derive(Debug, thiserror::Error)]
enum PushError {
    #[error(transparent)]
    Open(#[from] ShipError),
    #[error(transparent)]
    Bulk(#[from] BulkError),
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl PushError {
    /// Whether it is this computer that failed, and not the host.
    fn is_own(&self) -> bool {
        matches!(self, Self::Source(_) | Self::Bulk(BulkError::Produce(_))) || crate::lacks_resources(self)
    }

    /// Whether the host would fail again.
    fn is_lasting(&self) -> bool {
        matches!(
            self,
            Self::Bulk(BulkError::Remote { kind: BulkErrorKind::NoSpace | BulkErrorKind::Objects, .. })
        )
    }
}

/// The source channel of one session. Dropping it ends what is under way.
#[derive(Debug)]
pub struct Pusher {
    trees: mpsc::UnboundedSender<TreeId>,
    task: JoinHandle<()>,
}

impl Drop for Pusher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pusher {
    /// For a session whose host has some trees already. Each tree that has arrived is told to
    /// `done`.
    pub fn start(
        site: Arc<Site>,
        source: Source,
        has: Vec<TreeId>,
        reports: mpsc::Sender<Report>,
        done: mpsc::UnboundedSender<Result<TreeId, SessionError>>,
    ) -> Self {
        // No more than the run has commits.
        let (trees, queue) = mpsc::unbounded_channel();
        let push = Push { site, source, has, channel: None };
        let task = tokio::spawn(push.run(queue, reports, done));
        Self { trees, task }
    }

    /// A tree is wanted.
    pub fn push(&self, tree: TreeId) {
        // If the task has ended, so will the session.
        self.trees.send(tree).ok();
    }
}

struct Push {
    site: Arc<Site>,
    source: Source,
    /// Trees that are there, the most recent last.
    has: Vec<TreeId>,
    channel: Option<Bulk>,
}

impl Push {
    async fn run(
        mut self,
        mut queue: mpsc::UnboundedReceiver<TreeId>,
        reports: mpsc::Sender<Report>,
        done: mpsc::UnboundedSender<Result<TreeId, SessionError>>,
    ) {
        // What the worker named first was used last.
        self.has.reverse();
        while let Some(tree) = queue.recv().await {
            let told = match self.push(tree).await {
                Ok(news) => {
                    reports.send(Report { host: self.site.index, news }).await.ok();
                    done.send(Ok(tree))
                }
                Err(error) if error.is_own() => {
                    let news = News::Broken { reason: crate::chain(&error) };
                    reports.send(Report { host: self.site.index, news }).await.ok();
                    return;
                }
                Err(error) => {
                    let lasting = error.is_lasting();
                    done.send(Err(SessionError::Source { text: crate::chain(&error), lasting }))
                }
            };
            if told.is_err() {
                return;
            }
        }
    }

    async fn push(&mut self, tree: TreeId) -> Result<News, PushError> {
        let begun = Instant::now();
        let near = self.has.last().copied();
        let channel = match &mut self.channel {
            Some(channel) => channel,
            none => none.insert(self.site.open_bulk().await?),
        };
        let mut stats = PackStats::default();
        if !channel.have(vec![tree]).await?.contains(&tree) {
            stats = send(channel, &self.source, tree, self.has.clone()).await?;
            self.site.traffic.add_sent(stats.bytes);
        }
        let sent = Instant::now();
        channel.check_out(tree, near).await?;
        self.has.push(tree);
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (wall_ms, check_out_ms) = (ms(sent - begun), ms(sent.elapsed()));
        let PackStats { objects, bytes } = stats;
        Ok(News::SourceSent { tree, objects, bytes, wall_ms, check_out_ms })
    }
}

/// Sends what the host lacks of a tree: long files one by one, all else as a pack.
async fn send(
    channel: &mut Bulk,
    source: &Source,
    tree: TreeId,
    has: Vec<TreeId>,
) -> Result<PackStats, PushError> {
    let from = source.clone();
    let missing = tokio::task::spawn_blocking(move || from.missing(&[tree], &has)).await;
    let missing = missing.map_err(|error| BulkError::Produce(io::Error::other(error)))??;
    let mut long = PackStats::default();
    for &(id, bytes) in missing.long() {
        let source = source.clone();
        channel.file(id, bytes, move |out| source.write(id, out).map_err(io::Error::other)).await?;
        long.objects += 1;
        long.bytes += bytes;
    }
    let source = source.clone();
    let packed = channel.pack(move |out| source.pack(&missing, out).map_err(io::Error::other)).await?;
    Ok(PackStats { objects: packed.objects + long.objects, bytes: packed.bytes + long.bytes })
}
