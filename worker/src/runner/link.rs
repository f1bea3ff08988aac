//! A runner's end of the socket to the worker proper, with the live view, which may lose pieces but
//! never waits.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crewboss_host::doing::Doing;
use crewboss_host::program::Control;
use crewboss_machine::guest::Listener;
use crewboss_protocol::limits::{LIVE_CHUNK_BYTES_MAX, STANDSTILL};
use crewboss_protocol::message::{BootstrapEnd, Done};
use crewboss_protocol::{FromWorker, Outcome, Phase, TaskRef, codec};
use rustix::event::{PollFd, PollFlags};
use rustix::net::SendFlags;

use super::message::ToRunner;

/// A live piece is sent at most this often: as smooth as an eye can tell, cheap for a build that
/// prints line by line.
const LIVE_EVERY: Duration = Duration::from_millis(100);

/// Longest line that a runner accepts; a definition of a target is the longest, and came in one
/// line itself.
const LINE_MAX: usize = 4 << 20;

/// The socket.
#[derive(Debug)]
pub struct Link {
    socket: File,
    input: Vec<u8>,
    output: Vec<u8>,
    closed: bool,
    live: Live,
    /// How long this runner may do one thing without a sign of life.
    standstill: Duration,
    /// By when the worker proper was told that it will hear of us.
    promised: Option<Instant>,
    /// What others are told who look at the host.
    pub doing: Doing,
}

#[derive(Debug, Default)]
struct Live {
    pending: Vec<u8>,
    seq: u64,
    lost: u64,
    next: Option<Instant>,
}

impl Link {
    /// Takes over the socket.
    pub fn new(socket: OwnedFd) -> Self {
        let live = Live::default();
        Self {
            socket: socket.into(),
            input: Vec::new(),
            output: Vec::new(),
            closed: false,
            live,
            standstill: STANDSTILL,
            promised: None,
            doing: Doing::default(),
        }
    }

    /// Sets how long this runner may do one thing without a sign of life.
    pub fn set_standstill(&mut self, standstill: Duration) {
        self.standstill = standstill;
    }

    /// The next message, waiting for it. `None` once the worker proper is gone.
    pub fn receive(&mut self) -> Option<ToRunner> {
        loop {
            if let Some(message) = self.take() {
                return Some(message);
            }
            if self.closed {
                return None;
            }
            self.fill();
        }
    }

    /// The next message that has been read already.
    pub fn take(&mut self) -> Option<ToRunner> {
        let end = self.input.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.input.drain(..=end).collect();
        let message = serde_json::from_slice(&line).ok();
        // The other end is the same binary: a line that makes no sense means that it is not itself
        // any more.
        self.closed |= message.is_none();
        message
    }

    /// Sends the result of a job.
    pub fn done(&mut self, done: Done) {
        let (at, outcome) = (done.at, done.outcome);
        self.end(at, outcome, &FromWorker::Done(Box::new(done)));
    }

    /// Sends the end of a bootstrap.
    pub fn bootstrapped(&mut self, at: TaskRef, end: BootstrapEnd) {
        let good = matches!(end, BootstrapEnd::Made { .. } | BootstrapEnd::Ready { .. });
        let outcome = if good { Outcome::Success } else { Outcome::Infrastructure };
        self.end(at, outcome, &FromWorker::Bootstrapped { at, end });
    }

    fn end(&mut self, at: TaskRef, outcome: Outcome, message: &FromWorker) {
        self.output.clear();
        self.output.extend_from_slice(format!("D{at} {outcome} ").as_bytes());
        codec::encode(message, &mut self.output);
        self.write();
        self.live = Live::default();
        self.promised = None;
        self.doing.end();
    }

    fn write(&mut self) {
        if self.socket.write_all(&self.output).is_err() {
            self.closed = true;
        }
    }

    /// How long until the live view wants to be flushed; `None` if there is nothing for it.
    fn live_due(&self, now: Instant) -> Option<Duration> {
        let wants = !self.live.pending.is_empty();
        wants.then(|| self.live.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now)))
    }

    /// Sends the live output that has come together, if its time has come or `force`. Never waits
    /// for a slow boss.
    pub fn flush(&mut self, at: TaskRef, now: Instant, force: bool) {
        match self.live_due(now) {
            Some(wait) if force || wait.is_zero() => {}
            _ => return,
        }
        self.live.next = Some(now + LIVE_EVERY);
        let held_back = if force { 0 } else { incomplete_utf8(&self.live.pending) };
        let whole = self.live.pending.len() - held_back;
        if whole == 0 {
            return;
        }
        if !self.has_room() {
            self.live.lost += self.live.pending.len() as u64;
            self.live.pending.clear();
            return;
        }
        let rest = self.live.pending.split_off(whole);
        let piece = std::mem::replace(&mut self.live.pending, rest);
        let text = String::from_utf8_lossy(&piece).into_owned();
        let lost = std::mem::take(&mut self.live.lost);
        let message = FromWorker::Log { at, seq: self.live.seq, text, lost };
        self.live.seq += 1;
        self.output.clear();
        self.output.extend_from_slice(format!("L{at} {} ", piece.len()).as_bytes());
        codec::encode(&message, &mut self.output);
        self.send_live();
    }

    fn has_room(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
        crewboss_host::sys::poll(&mut fds, Some(Duration::ZERO)).is_ok_and(|ready| ready > 0)
    }

    fn send_live(&mut self) {
        let sent = rustix::net::send(&self.socket, &self.output, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        match sent {
            // A line that was begun must be ended, and what is left of it is short.
            Ok(len) if len < self.output.len() => {
                if self.socket.write_all(&self.output[len..]).is_err() {
                    self.closed = true;
                }
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.closed = true,
        }
    }
}

impl Control for Link {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.closed).then(|| self.socket.as_fd())
    }

    fn fill(&mut self) {
        let mut buffer = [0; 16 << 10];
        match self.socket.read(&mut buffer) {
            Ok(len) if len > 0 && self.input.len() + len <= LINE_MAX => {
                self.input.extend_from_slice(&buffer[..len]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => self.closed = true,
        }
    }

    fn is_cancelled(&mut self, at: TaskRef) -> bool {
        let mut wanted = false;
        while let Some(message) = self.take() {
            // Nothing else is said while a job runs.
            wanted |= matches!(message, ToRunner::Cancel { at: other } if other == at);
        }
        wanted || self.closed
    }

    fn flush_live(&mut self, at: TaskRef, now: Instant) -> Option<Duration> {
        self.flush(at, now, false);
        self.live_due(now)
    }
}

impl Listener for Link {
    /// Tells the worker proper that we go on until then at most, and after it do one thing that
    /// nobody hears of. It need not be told of the stages of a task on the host itself: it knows
    /// their limit.
    fn promise(&mut self, until: Instant) {
        if self.promised.is_some_and(|promised| promised >= until + self.standstill / 2) {
            return;
        }
        let promised = until + self.standstill;
        self.promised = Some(promised);
        let within = promised.saturating_duration_since(Instant::now());
        self.output.clear();
        self.output.extend_from_slice(format!("W{}\n", within.as_millis()).as_bytes());
        self.write();
    }

    fn note(&mut self, phase: &Phase) {
        self.doing.note(phase);
    }

    fn forward(&mut self, message: &FromWorker) {
        self.output.clear();
        self.output.push(b'F');
        codec::encode(message, &mut self.output);
        self.write();
    }

    fn live(&mut self, bytes: &[u8]) {
        let room = LIVE_CHUNK_BYTES_MAX - self.live.pending.len();
        let kept = bytes.len().min(room);
        self.live.pending.extend_from_slice(&bytes[..kept]);
        self.live.lost += (bytes.len() - kept) as u64;
    }
}

/// How many bytes at the end are the beginning of a character whose rest has not come yet.
fn incomplete_utf8(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    match tail.iter().rposition(|byte| *byte >= 0xc0) {
        Some(at) => {
            let need = match tail[at] {
                0xf0.. => 4,
                0xe0.. => 3,
                _ => 2,
            };
            let have = tail.len() - at;
            if have < need { have } else { 0 }
        }
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crewboss_host::program::run::{Stopped, program, run};
    use crewboss_machine::guest::watch::Watch;
    use crewboss_protocol::Phases;
    use std::process::Command;

    /// A runner's end that has read a `Cancel` together with what came before it; and the other
    /// end.
    fn with_a_cancel_in_its_buffer(at: TaskRef) -> (Link, File) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut theirs = File::from(OwnedFd::from(theirs));
        let cancel = |at| format!("{}\n", serde_json::to_string(&ToRunner::Cancel { at }).unwrap());
        let text = cancel("999.9".parse().unwrap()) + &cancel(at);
        theirs.write_all(text.as_bytes()).unwrap();
        let mut link = Link::new(ours.into());
        assert!(matches!(link.receive(), Some(ToRunner::Cancel { at: other }) if other != at));
        (link, theirs)
    }

    #[test]
    fn a_cancel_that_was_read_with_its_job_ends_it() {
        let at: TaskRef = "1.1".parse().unwrap();
        // In a process of its own: stages end all that comes from their process.
        if std::env::var_os("CREWBOSS_TEST_STAGE").is_none() {
            let mut own = Command::new(std::env::current_exe().unwrap());
            own.args(["--exact", "runner::link::tests::a_cancel_that_was_read_with_its_job_ends_it"]);
            crewboss_host::testing::run(own.env("CREWBOSS_TEST_STAGE", "1"));
            return;
        }
        let (mut link, _worker) = with_a_cancel_in_its_buffer(at);
        let mut sleep = program("sleep");
        sleep.arg("1000");
        let deadline = Instant::now() + Duration::from_secs(20);
        let ended = run(sleep, at, deadline, &mut link, &mut Vec::new(), &mut |_, _, _| Ok(())).unwrap();
        assert!(matches!(ended.stopped, Some(Stopped::Cancelled)), "{ended:?}");
    }

    #[test]
    fn a_cancel_that_was_read_with_its_job_is_heard() {
        let at: TaskRef = "1.1".parse().unwrap();
        let (mut link, _worker) = with_a_cancel_in_its_buffer(at);
        let begin = Instant::now();
        assert!(!Watch::new(&mut link, at, Phases::default()).pause(Duration::from_secs(20)));
        assert!(begin.elapsed() < Duration::from_secs(10), "it was heard by and by only");
        let (mut link, _worker) = with_a_cancel_in_its_buffer(at);
        assert!(Watch::new(&mut link, at, Phases::default()).is_cancelled());
    }

    #[test]
    fn half_a_character_is_held_back() {
        for (text, rest) in [("ab", 0), ("aä", 0), ("€", 0), ("😀", 0), ("", 0)] {
            assert_eq!(incomplete_utf8(text.as_bytes()), rest);
        }
        for (bytes, rest) in
            [(b"a\xc3".as_slice(), 1), (b"\xe2\x82", 2), (b"x\xf0\x9f\x98", 3), (b"\x80\x80\x80\x80", 0)]
        {
            assert_eq!(incomplete_utf8(bytes), rest);
        }
    }
}
