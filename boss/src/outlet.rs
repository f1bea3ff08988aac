//! Ways out for text: files, pipes and terminals, each of which may stand still for as long as it
//! likes.
//!
//! Whoever has to answer others in time must wait for none of them. An [`Outlet`] takes what it is
//! given at once; a thread of its own writes it. What does not fit any more is left out, and a line
//! in its place says how much that was.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Text that comes in quick succession is written together. Short enough for whoever reads along.
const PACE: Duration = Duration::from_millis(50);

/// So much is written without waiting for more.
const AT_ONCE_BYTES: usize = 64 << 10;

/// What is written in one piece. Small, so that it shows soon whether anything moves.
const PIECE_BYTES: usize = 4 << 10;

/// How often somebody who waits looks whether it is time to give up.
const GLANCE: Duration = Duration::from_millis(50);

/// Before something is tried again that would have to wait: standard output may be a pipe that does
/// not block.
const RETRY: Duration = Duration::from_millis(10);

/// Room on the stack of a thread that only writes.
const STACK_BYTES: usize = 128 << 10;

/// How much a text matters when room is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// It may use half of the room.
    Live,
    /// It may use all of the room.
    News,
    /// It is never left out. For what comes in small, known numbers, such as the last words.
    Last,
}

/// A way out. Clones are the same one; it ends when the last of them is gone and everything is
/// written.
#[derive(Debug, Clone)]
pub struct Outlet {
    hold: Arc<Hold>,
}

#[derive(Debug)]
struct Hold(Arc<Shared>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.changed.notify_all();
    }
}

/// What a way out is.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Bytes that may wait.
    pub room: usize,
    /// The line that stands for so many lines that were left out, with its newline.
    pub gap: fn(u64) -> String,
}

#[derive(Debug)]
struct Shared {
    name: String,
    kind: Kind,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    waiting: Vec<u8>,
    /// Bytes and lines that were taken and are not written; some of them may be with the thread.
    unwritten: usize,
    lines: u64,
    /// Lines left out for which no line stands yet.
    gap: u64,
    /// All lines left out.
    left_out: u64,
    /// When something was last written, or began to wait.
    moved: Instant,
    /// Somebody waits for the end.
    hurry: bool,
    /// The thread waits to be woken when so many bytes are there.
    wake_at: usize,
    /// Nothing more comes.
    ended: bool,
    /// Nothing more is taken: writing has failed, or was given up.
    closed: bool,
    failure: Option<io::Error>,
}

/// What went wrong on a way out.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// It cannot be written.
    #[error("cannot write {name}")]
    Write {
        /// What it is called.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Whoever reads it was too slow.
    #[error("{name} stood still or was too slow: {lines} lines were left out")]
    Slow {
        /// What it is called.
        name: String,
        /// How many.
        lines: u64,
    },
}

/// All that were started and may still have something to write.
static ALL: Mutex<Vec<Arc<Shared>>> = Mutex::new(Vec::new());

impl Outlet {
    /// Starts the thread, which first opens what it writes to: that may take its time as well.
    ///
    /// # Errors
    /// If there can be no further thread.
    pub fn start<W: Write>(
        name: impl Into<String>,
        kind: Kind,
        open: impl FnOnce() -> io::Result<W> + Send + 'static,
    ) -> io::Result<Self> {
        let state = State {
            waiting: Vec::new(),
            unwritten: 0,
            lines: 0,
            gap: 0,
            left_out: 0,
            moved: Instant::now(),
            hurry: false,
            wake_at: usize::MAX,
            ended: false,
            closed: false,
            failure: None,
        };
        let name = name.into();
        let shared = Arc::new(Shared { name, kind, state: Mutex::new(state), changed: Condvar::new() });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("outlet".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || {
            let ended = open().and_then(|out| pour(&theirs, out));
            theirs.close(ended.err());
        })?;
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| !other.is_over());
        all.push(shared.clone());
        Ok(Self { hold: Arc::new(Hold(shared)) })
    }

    /// Takes whole lines. Never waits.
    pub fn put(&self, weight: Weight, text: &[u8]) {
        let shared = &self.hold.0;
        let mut state = shared.state();
        if state.closed || text.is_empty() {
            return;
        }
        let room = match weight {
            Weight::Live => shared.kind.room / 2,
            Weight::News => shared.kind.room,
            Weight::Last => usize::MAX,
        };
        let lines = count(text);
        if state.unwritten.saturating_add(text.len()) > room {
            state.gap += lines;
            state.left_out += lines;
            return;
        }
        state.say_gap(shared.kind.gap);
        state.take(text, lines);
        if state.waiting.len() >= state.wake_at {
            state.wake_at = usize::MAX;
            shared.changed.notify_all();
        }
    }

    /// Whether all is written, as far as it can be.
    pub fn is_idle(&self) -> bool {
        self.hold.0.state().unwritten == 0
    }

    /// Waits until all is written, or until `enough`, which is told for how long nothing has moved,
    /// says so. Then nothing more is taken. Tells once what went wrong.
    pub fn settle(&self, enough: &mut dyn FnMut(Duration) -> bool) -> Option<Trouble> {
        self.hold.0.settle(enough)
    }
}

/// As [`Outlet::settle`] for all that this process has started, also those whose last handle is
/// gone.
pub fn settle_all(enough: &mut dyn FnMut(Duration) -> bool) -> Vec<Trouble> {
    let all = std::mem::take(&mut *ALL.lock().unwrap_or_else(PoisonError::into_inner));
    all.iter().filter_map(|shared| shared.settle(enough)).collect()
}

/// Text through a writer is news, and never refused.
impl Write for Outlet {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.put(Weight::News, text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    fn take(&mut self, text: &[u8], lines: u64) {
        if self.unwritten == 0 {
            self.moved = Instant::now();
        }
        self.waiting.extend_from_slice(text);
        self.unwritten += text.len();
        self.lines += lines;
    }

    fn say_gap(&mut self, gap: fn(u64) -> String) {
        if self.gap > 0 {
            let line = gap(std::mem::take(&mut self.gap));
            self.take(line.as_bytes(), count(line.as_bytes()));
        }
    }
}

impl Shared {
    /// A panic of a thread leaves nothing half-changed that anybody relies on.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        let state = self.state();
        state.ended && state.unwritten == 0 && state.failure.is_none() && state.left_out == 0
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, longest: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, longest).unwrap_or_else(PoisonError::into_inner).0
    }

    /// What is to be written next; `None` at the end. `last` is when something was written before.
    fn next(&self, last: Option<Instant>) -> Option<Vec<u8>> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            if state.waiting.is_empty() {
                state.say_gap(self.kind.gap);
            }
            let pace = last.map_or(Duration::ZERO, |last| PACE.saturating_sub(last.elapsed()));
            let now = state.ended || state.hurry || state.waiting.len() >= AT_ONCE_BYTES || pace.is_zero();
            state = match (state.waiting.is_empty(), now) {
                (false, true) => return Some(std::mem::take(&mut state.waiting)),
                (false, false) => {
                    state.wake_at = AT_ONCE_BYTES;
                    self.wait(state, pace)
                }
                (true, _) if state.ended => return None,
                (true, _) => {
                    state.wake_at = 1;
                    self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    fn wrote(&self, text: &[u8]) {
        let mut state = self.state();
        state.moved = Instant::now();
        state.unwritten = state.unwritten.saturating_sub(text.len());
        state.lines = state.lines.saturating_sub(count(text));
        if state.unwritten == 0 {
            self.changed.notify_all();
        }
    }

    fn close(&self, failure: Option<io::Error>) {
        let mut state = self.state();
        state.closed = true;
        state.failure = failure;
        (state.waiting, state.unwritten, state.lines) = (Vec::new(), 0, 0);
        self.changed.notify_all();
    }

    fn settle(&self, enough: &mut dyn FnMut(Duration) -> bool) -> Option<Trouble> {
        let mut state = self.state();
        state.hurry = true;
        self.changed.notify_all();
        while state.unwritten > 0 || state.gap > 0 && !state.closed {
            if enough(state.moved.elapsed()) {
                state.closed = true;
                state.left_out += std::mem::take(&mut state.lines).max(1);
                (state.waiting, state.unwritten, state.gap) = (Vec::new(), 0, 0);
                break;
            }
            state = self.wait(state, GLANCE);
        }
        state.hurry = false;
        let name = self.name.clone();
        match (state.failure.take(), std::mem::take(&mut state.left_out)) {
            (Some(source), _) => Some(Trouble::Write { name, source }),
            (None, 0) => None,
            (None, lines) => Some(Trouble::Slow { name, lines }),
        }
    }
}

/// Writes what comes, to its end.
fn pour(shared: &Shared, mut out: impl Write) -> io::Result<()> {
    let mut last = None;
    while let Some(text) = shared.next(last) {
        for piece in text.chunks(PIECE_BYTES) {
            write_all(&mut out, piece)?;
            shared.wrote(piece);
        }
        out.flush()?;
        last = Some(Instant::now());
    }
    Ok(())
}

/// As `write_all`, also where somebody has switched blocking off, as programs do that share a
/// terminal.
fn write_all(out: &mut impl Write, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match out.write(text) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => text = &text[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn count(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    const KIND: Kind = Kind { room: 1000, gap: |lines| format!("({lines} left out)\n") };

    /// Nobody gives up before the test does.
    fn patient() -> impl FnMut(Duration) -> bool {
        |still| still > Duration::from_secs(60)
    }

    /// An outlet into a pipe that holds 4 KiB, and its other end.
    fn pipe(kind: Kind) -> (Outlet, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
        (Outlet::start("the pipe", kind, move || Ok(writer)).unwrap(), reader)
    }

    fn line(number: usize) -> String {
        format!("{number:>98}\n")
    }

    #[test]
    fn what_is_read_is_complete_and_in_order() {
        let (outlet, mut reader) = pipe(Kind { room: 1 << 20, ..KIND });
        let expected: String = (0..2000).map(line).collect();
        (0..2000).for_each(|number| outlet.put(Weight::News, line(number).as_bytes()));
        drop(outlet);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, expected);
    }

    #[test]
    fn a_reader_that_stands_still_holds_up_nobody_and_is_told_what_it_missed() {
        let (outlet, mut reader) = pipe(KIND);
        // Nobody reads: the pipe and the queue fill up, and each call returns all the same.
        let begun = Instant::now();
        (0..1000).for_each(|number| outlet.put(Weight::News, line(number).as_bytes()));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        outlet.put(Weight::Last, b"the end\n");
        drop(outlet);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let numbers = lines.iter().filter(|line| line.trim().parse::<usize>().is_ok()).count();
        let left: usize = lines
            .iter()
            .filter_map(|line| line.strip_prefix('(')?.strip_suffix(" left out)")?.parse::<usize>().ok())
            .sum();
        assert_eq!((numbers + left, *lines.last().unwrap()), (1000, "the end"), "{text}");
        assert!(left > 0);
    }

    #[test]
    fn live_text_gives_way_to_news() {
        let (outlet, reader) = pipe(KIND);
        // Until the thread is stuck with what the pipe does not hold.
        let stuffed = Instant::now();
        while outlet.is_idle() {
            outlet.put(Weight::News, line(0).as_bytes());
            assert!(stuffed.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(1));
        }
        let accepted = |weight| {
            let before = outlet.hold.0.state().unwritten;
            outlet.put(weight, line(1).as_bytes());
            outlet.hold.0.state().unwritten > before
        };
        while accepted(Weight::Live) {}
        assert!(accepted(Weight::News), "live text may use half of the room only");
        while accepted(Weight::News) {}
        assert!(!accepted(Weight::Live) && accepted(Weight::Last));
        drop(reader);
    }

    #[test]
    fn who_waits_for_a_reader_that_stands_still_gives_up_and_says_so() {
        let (outlet, reader) = pipe(Kind { room: 1 << 20, ..KIND });
        (0..200).for_each(|number| outlet.put(Weight::News, line(number).as_bytes()));
        let trouble = outlet.settle(&mut |still| still > Duration::from_millis(100)).unwrap();
        let Trouble::Slow { lines, .. } = &trouble else { panic!("{trouble}") };
        assert!((100..=200).contains(lines), "{trouble}");
        assert!(trouble.to_string().starts_with("the pipe stood still or was too slow: "), "{trouble}");
        outlet.put(Weight::Last, b"ignored\n");
        assert!(outlet.settle(&mut |_| panic!("there is nothing to wait for")).is_none());
        drop(reader);
    }

    #[test]
    fn what_cannot_be_written_is_told_once() {
        let full = || std::fs::File::options().write(true).open("/dev/full");
        let outlet = Outlet::start("the file", KIND, full).unwrap();
        outlet.put(Weight::News, b"x\n");
        let trouble = outlet.settle(&mut patient()).unwrap();
        assert!(
            matches!(&trouble, Trouble::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull)
        );
        outlet.put(Weight::News, b"x\n");
        assert!(outlet.settle(&mut patient()).is_none());
        let missing = || std::fs::File::open("/nonexistent");
        let outlet = Outlet::start("the file", KIND, missing).unwrap();
        outlet.put(Weight::News, b"x\n");
        assert!(matches!(outlet.settle(&mut patient()), Some(Trouble::Write { .. })));
    }

    #[test]
    fn a_pipe_that_does_not_block_is_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let outlet = Outlet::start("the pipe", Kind { room: 1 << 20, ..KIND }, move || Ok(writer)).unwrap();
        (0..5000).for_each(|number| outlet.put(Weight::News, line(number).as_bytes()));
        drop(outlet);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text.lines().count(), 5000);
    }
}
