//! A bulk channel: receives git packs and long files, checks trees out, sends logs and artifacts.
//!
//! One process serves one channel, one request after the other, with blocking reads and writes.
//! Every failure is answered with its kind; only a channel that cannot be read, or in which our
//! place is lost, ends it, and the end of its session.

mod file;
mod pack;
mod send;
mod stream;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crewboss_host::layout::Layout;
use crewboss_host::storage::{Way, is_no_space};
use crewboss_protocol::bulk::{BulkAnswer, BulkErrorKind, BulkRequest};
use crewboss_protocol::limits::TEXT_BYTES_MAX;
use crewboss_protocol::{SessionId, TreeId, chain, codec};

use crate::slots::lock_as_user;

use crate::source::{self, Objects, SourceError, Sources};
use stream::{Input, Output};

/// Between two looks whether the session is still there.
const SESSION_EVERY: Duration = Duration::from_secs(2);

/// Why a request ends without success.
#[derive(Debug)]
enum End {
    /// It failed; the next one may be served.
    Failed(Failure),
    /// It failed with data still coming in, so that no next request can be found.
    Lost(Failure),
    /// The channel is gone.
    Closed,
}

#[derive(Debug)]
struct Failure {
    kind: BulkErrorKind,
    text: String,
}

impl Failure {
    fn new(kind: BulkErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// For an error of the file system; the kind tells a full disk and a missing file from all
    /// others.
    fn io(what: &str, error: &io::Error) -> Self {
        let kind = match error.kind() {
            _ if is_no_space(error) => BulkErrorKind::NoSpace,
            io::ErrorKind::NotFound => BulkErrorKind::Missing,
            _ => BulkErrorKind::Io,
        };
        Self::new(kind, format!("{what}: {error}"))
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<&SourceError> for Failure {
    fn from(error: &SourceError) -> Self {
        let kind = match error {
            _ if error.is_no_space() => BulkErrorKind::NoSpace,
            SourceError::Missing { .. } | SourceError::Object { .. } | SourceError::Content { .. } => {
                BulkErrorKind::Objects
            }
            SourceError::Repository { .. } | SourceError::Io { .. } => BulkErrorKind::Io,
        };
        Self::new(kind, chain(error))
    }
}

/// Serves the channel on standard input and output until it ends. The exit code is 0 if it ended
/// between requests.
pub fn main(work: Option<PathBuf>, session: SessionId) -> ExitCode {
    // Without a directory to work in there is nothing to say either: the worker has said why.
    let Ok(layout) = Layout::resolve(work) else { return ExitCode::FAILURE };
    end_with_session(layout.session(&session));
    let (input, output) = (io::stdin(), io::stdout());
    if serve(layout, session, input.as_fd(), output.as_fd()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ends this process soon after the session's directory has gone: behind a link that was cut nobody
/// would ever say that the channel has ended, and it would be in use for ever.
#[expect(clippy::exit, reason = "whatever it waits for does not come any more")]
fn end_with_session(directory: PathBuf) {
    let watch = move || {
        let mut begun = false;
        loop {
            let there = directory.exists();
            if begun && !there {
                std::process::exit(1);
            }
            begun |= there;
            std::thread::sleep(SESSION_EVERY);
        }
    };
    // Without it only the end of the input ends the channel.
    drop(std::thread::Builder::new().name("session".to_owned()).spawn(watch));
}

/// Serves a channel; whether it ended in order.
fn serve(layout: Layout, session: SessionId, input: BorrowedFd<'_>, output: BorrowedFd<'_>) -> bool {
    let mut server = Server {
        layout,
        session,
        input: Input::new(input),
        output: Output::new(output),
        sources: None,
        _users: None,
    };
    if server.open().is_err() {
        return false;
    }
    loop {
        let request = match server.request() {
            Ok(Some(request)) => request,
            Ok(None) => return true,
            Err(end) => return server.end(end),
        };
        let ended = server.handle(request).or_else(|end| match end {
            End::Failed(failure) => server.fail(failure),
            end => Err(end),
        });
        if let Err(end) = ended.and_then(|()| server.output.flush()) {
            return server.end(end);
        }
    }
}

struct Server<'a> {
    layout: Layout,
    session: SessionId,
    input: Input<'a>,
    output: Output<'a>,
    sources: Option<Sources>,
    /// Locked as long as we live, so that nobody prunes what we use.
    _users: Option<File>,
}

impl Server<'_> {
    fn open(&mut self) -> Result<(), End> {
        self.output.raw(b"\n");
        self.output.answer(&BulkAnswer::Open);
        self.output.flush()?;
        // Without the lock all still works; the worker of the session holds one too.
        self._users = lock_as_user(&self.layout).ok();
        Ok(())
    }

    fn request(&mut self) -> Result<Option<BulkRequest>, End> {
        let Some(line) = self.input.line()? else { return Ok(None) };
        parse(line).map(Some)
    }

    fn handle(&mut self, request: BulkRequest) -> Result<(), End> {
        match request {
            BulkRequest::Have { trees } => {
                let trees = self.output.working(|| self.have(trees));
                self.output.answer(&BulkAnswer::Has { trees });
            }
            BulkRequest::Pack => {
                self.output.working(|| pack::receive(&self.layout.objects(), &mut self.input))?;
                self.output.answer(&BulkAnswer::Stored);
            }
            BulkRequest::File { id, bytes } => {
                let objects = self.layout.objects();
                self.output.working(|| file::receive(&objects, id, bytes, &mut self.input))?;
                self.output.answer(&BulkAnswer::Stored);
            }
            BulkRequest::CheckOut { tree, near } => {
                let Self { layout, sources, output, .. } = self;
                output.working(|| check_out(layout, sources, tree, near))?;
                self.output.answer(&BulkAnswer::CheckedOut { tree });
            }
            BulkRequest::Log { at, stream } => {
                let attempt = self.layout.attempt(&self.session, at);
                send::log(&attempt, stream, &mut self.input, &mut self.output)?;
            }
            BulkRequest::Artifacts { at } => {
                let attempt = self.layout.attempt(&self.session, at);
                send::artifacts(&attempt, &mut self.output)?;
                self.output.answer(&BulkAnswer::Complete);
            }
            BulkRequest::LogEnds { .. } => {
                return Err(Failure::new(BulkErrorKind::Protocol, "no log is being sent").into());
            }
        }
        Ok(())
    }

    fn have(&self, trees: Vec<TreeId>) -> Vec<TreeId> {
        let path = self.layout.objects();
        let objects = path.is_dir().then(|| Objects::open(&path).ok()).flatten();
        let complete =
            |tree| objects.as_ref().is_some_and(|objects| objects.is_complete(tree).unwrap_or(false));
        trees.into_iter().filter(|tree| source::has(&self.layout, *tree) || complete(*tree)).collect()
    }

    fn fail(&mut self, failure: Failure) -> Result<(), End> {
        let mut text = failure.text;
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        self.output.answer(&BulkAnswer::Failed { kind: failure.kind, text });
        self.output.flush()
    }

    fn end(&mut self, end: End) -> bool {
        if let End::Failed(failure) | End::Lost(failure) = end {
            // If this cannot be written either, nobody is left who would care.
            drop(self.fail(failure));
        }
        false
    }
}

fn check_out(
    layout: &Layout,
    sources: &mut Option<Sources>,
    tree: TreeId,
    near: Option<TreeId>,
) -> Result<(), Failure> {
    let sources = match sources {
        Some(sources) => sources,
        none => {
            let work = layout.work();
            let failed = |error: io::Error| Failure::io(&format!("cannot use {}", work.display()), &error);
            let way = Way::find(work).map_err(failed)?;
            none.insert(Sources::new(layout.clone(), way).map_err(failed)?)
        }
    };
    sources.check_out(tree, near).map_err(|error| Failure::from(&error))
}

fn parse(line: &[u8]) -> Result<BulkRequest, End> {
    let Some(text) = line.strip_prefix(codec::PREFIX) else {
        return Err(End::Lost(Failure::new(BulkErrorKind::Protocol, "a line does not begin as ours do")));
    };
    let lost = |error: codec::DecodeError| End::Lost(Failure::new(BulkErrorKind::Protocol, chain(&error)));
    codec::parse(text).map_err(lost)
}

#[cfg(test)]
mod tests;
