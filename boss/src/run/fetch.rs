//! Brings long logs and artifacts from a host, over at most two bulk channels.
//!
//! One channel may follow a log that is still growing; the other is always there for attempts that
//! have ended, so a chatty build never holds up the results of others. A long log that finds the
//! first channel taken is fetched when it has ended.
//!
//! The disk may stand still, so it is waited for on threads that have nobody to answer.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crewboss_protocol::TaskRef;
use crewboss_protocol::bulk::LogStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use super::collect::Seen;
use super::hosts::{Fetch, News, Report};
use super::site::Site;
use crate::bulk::{ArtifactLimits, Bulk, BulkError, LogEnd};
use crate::link::ShipError;

/// Channels for results. With control and source that makes
/// [`crewboss_protocol::limits::CHANNELS_MAX`].
const CHANNELS: usize = 2;

/// Channels that may follow growing logs.
const FOLLOWING: usize = 1;

/// Why a result could not be fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Open(#[from] ShipError),
    #[error(transparent)]
    Bulk(#[from] BulkError),
    #[error("cannot write {}", path.display())]
    Own {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the result is not wanted any more")]
    Unwanted,
}

impl FetchError {
    /// Whether it is this computer that failed, and not the host.
    fn is_own(&self) -> bool {
        matches!(self, Self::Own { .. } | Self::Bulk(BulkError::Sink(_) | BulkError::Local { .. }))
            || crate::lacks_resources(self)
    }
}

/// The results of one session. Dropping it ends what is under way.
#[derive(Debug)]
pub struct Fetcher {
    shared: Arc<Channels>,
    reports: mpsc::Sender<Report>,
    /// Attempts whose log is followed; telling them what to fetch also tells them where the log
    /// ends.
    following: HashMap<TaskRef, oneshot::Sender<Fetch>>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Channels {
    site: Arc<Site>,
    idle: Mutex<Vec<Bulk>>,
    permits: Arc<Semaphore>,
    follow_permits: Arc<Semaphore>,
}

impl Fetcher {
    /// For a session.
    pub fn new(site: Arc<Site>, reports: mpsc::Sender<Report>) -> Self {
        let shared = Channels {
            site,
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(CHANNELS)),
            follow_permits: Arc::new(Semaphore::new(FOLLOWING)),
        };
        Self { shared: Arc::new(shared), reports, following: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Begins to fetch a log that is still growing, if a channel is free for that.
    pub fn follow(&mut self, at: TaskRef, part: PathBuf) {
        let Ok(permit) = self.shared.follow_permits.clone().try_acquire_owned() else { return };
        let (tell, told) = oneshot::channel();
        self.following.insert(at, tell);
        let (shared, reports) = (self.shared.clone(), self.reports.clone());
        self.spawn(async move {
            let fetched = shared.follow(&part, at, told).await;
            drop(permit);
            shared.report(&reports, at, &part, fetched).await;
        });
    }

    /// An attempt has ended: fetches what is not here yet.
    pub fn fetch(&mut self, fetch: Fetch) {
        let fetch = match self.following.remove(&fetch.at) {
            Some(tell) => match tell.send(fetch) {
                Ok(()) => return,
                Err(fetch) => fetch,
            },
            None => fetch,
        };
        let (shared, reports) = (self.shared.clone(), self.reports.clone());
        self.spawn(async move {
            let fetched = shared.fetch(&fetch).await;
            shared.report(&reports, fetch.at, &fetch.part, fetched).await;
        });
    }

    /// A result is not wanted.
    pub fn abandon(&mut self, at: TaskRef, part: &Path) {
        match self.following.remove(&at) {
            // Its task ends for want of an answer, and removes the directory.
            Some(tell) => drop(tell),
            None => {
                let part = part.to_owned();
                self.spawn(async move { remove(&part).await });
            }
        }
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(task);
    }
}

impl Channels {
    /// Whatever becomes of the log meanwhile: once the attempt has ended, its result is fetched or
    /// the reason told.
    async fn follow(
        &self,
        part: &Path,
        at: TaskRef,
        told: oneshot::Receiver<Fetch>,
    ) -> Result<(), FetchError> {
        let (end, ends) = oneshot::channel();
        let wait = async {
            let fetch = told.await.map_err(|_| FetchError::Unwanted)?;
            // If following has failed, nobody hears it.
            end.send(fetch.missing.log.unwrap_or(0)).ok();
            Ok::<_, FetchError>(fetch)
        };
        let (followed, fetch) = tokio::join!(self.follow_log(part, at, ends), wait);
        let fetch = fetch?;
        match followed {
            Ok((_permit, mut bulk)) if fetch.missing.log.is_some() => {
                self.rest(&mut bulk, &fetch).await?;
                self.give_back(bulk);
                return Ok(());
            }
            // The log came with the message after all.
            Ok((_permit, bulk)) => self.give_back(bulk),
            Err(error) => tracing::debug!(%at, %error, "could not follow a log"),
        }
        self.fetch(&fetch).await
    }

    async fn follow_log(
        &self,
        part: &Path,
        at: TaskRef,
        ends: oneshot::Receiver<u64>,
    ) -> Result<(OwnedSemaphorePermit, Bulk), FetchError> {
        let (permit, mut bulk) = self.take().await?;
        make(part).await?;
        let file = create(&part.join("log")).await?;
        bulk.log(at, LogStream::Log, LogEnd::Later(ends), file).await?;
        Ok((permit, bulk))
    }

    async fn fetch(&self, fetch: &Fetch) -> Result<(), FetchError> {
        let (_permit, mut bulk) = self.take().await?;
        // What an abandoned try to follow left behind.
        remove(&fetch.part).await;
        make(&fetch.part).await?;
        if let Some(bytes) = fetch.missing.log {
            let file = create(&fetch.part.join("log")).await?;
            bulk.log(fetch.at, LogStream::Log, LogEnd::Known(bytes), file).await?;
        }
        self.rest(&mut bulk, fetch).await?;
        self.give_back(bulk);
        Ok(())
    }

    async fn rest(&self, bulk: &mut Bulk, fetch: &Fetch) -> Result<(), FetchError> {
        if let Some(bytes) = fetch.missing.err {
            let file = create(&fetch.part.join("err")).await?;
            bulk.log(fetch.at, LogStream::Err, LogEnd::Known(bytes), file).await?;
        }
        if let Some(count) = fetch.missing.artifacts {
            let directory = fetch.part.join("artifacts");
            make(&directory).await?;
            let limits = ArtifactLimits {
                files: count.files.into(),
                directories: count.directories.into(),
                bytes: count.bytes,
            };
            bulk.artifacts(fetch.at, directory, limits).await?;
        }
        let bytes = fetch.missing.log.unwrap_or(0)
            + fetch.missing.err.unwrap_or(0)
            + fetch.missing.artifacts.map_or(0, |count| count.bytes);
        self.site.traffic.add_received(bytes);
        Ok(())
    }

    async fn report(
        &self,
        reports: &mpsc::Sender<Report>,
        at: TaskRef,
        part: &Path,
        fetched: Result<(), FetchError>,
    ) {
        let news = match fetched {
            Ok(()) => {
                let directory = part.to_owned();
                match on_disk(part, move || Ok(Seen::of(&directory))).await {
                    Ok(seen) => News::Fetched { at, seen },
                    Err(error) => News::FetchFailed { at, reason: crate::chain(&error), at_boss: true },
                }
            }
            Err(error) => {
                remove(part).await;
                if matches!(error, FetchError::Unwanted) {
                    return;
                }
                if matches!(error, FetchError::Bulk(BulkError::Stalled { .. })) {
                    // Whatever stopped one may have stopped the others, and each would cost as much
                    // time to find out.
                    self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                News::FetchFailed { at, reason: crate::chain(&error), at_boss: error.is_own() }
            }
        };
        // If nobody listens, the run is over.
        reports.send(Report { host: self.site.index, news }).await.ok();
    }

    /// A channel of our own until it is given back. One that failed in the middle of something is
    /// not given back.
    async fn take(&self) -> Result<(OwnedSemaphorePermit, Bulk), FetchError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| FetchError::Unwanted)?;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bulk = match idle {
            Some(bulk) => bulk,
            None => self.site.open_bulk().await?,
        };
        Ok((permit, bulk))
    }

    fn give_back(&self, bulk: Bulk) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(bulk);
    }
}

/// Does something where the disk is waited for.
async fn on_disk<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, FetchError> {
    let done = tokio::task::spawn_blocking(work).await;
    let failed = |source| FetchError::Own { path: path.to_owned(), source };
    done.map_err(io::Error::other).and_then(|result| result).map_err(failed)
}

async fn make(directory: &Path) -> Result<(), FetchError> {
    let path = directory.to_owned();
    on_disk(directory, move || fs::create_dir(path)).await
}

async fn create(path: &Path) -> Result<File, FetchError> {
    let file = path.to_owned();
    on_disk(path, move || File::create_new(file)).await
}

async fn remove(part: &Path) {
    let path = part.to_owned();
    let removed = on_disk(part, move || match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    });
    if let Err(error) = removed.await {
        tracing::warn!(path = %part.display(), error = %crate::chain(&error), "could not remove");
    }
}
