//! Progress on a terminal: a bar for the run, one line per host, failures above them as they
//! happen.
//!
//! Events only change the shared [`Progress`]; a thread of its own draws it a few times a second.
//! So ten thousand events a second cost ten thousand small changes, not ten thousand drawings.
//! While the terminal stands still nothing is drawn.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crewboss_boss::event::{Event, EventSink};
use crewboss_boss::outlet::{Outlet, Weight};
use crewboss_protocol::HostName;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::plain::Lines;
use super::progress::{HostProgress, HostState, Progress, Running};
use super::screen::Canvas;
use super::text::{bytes, clock, counted, put, shortened};

/// Between two drawings: what the eye takes for moving.
const REDRAW: Duration = Duration::from_millis(125);

/// Text above the bars that may wait for the next drawing. More than that in an eighth of a second
/// can be read by nobody.
const ABOVE_BYTES_MAX: usize = 32 << 10;

/// Lines of the terminal that the host lines leave free: for the bar of the run, the line about
/// further hosts, and the last failure above them.
const LINES_KEPT_FREE: usize = 6;

/// Host lines that are shown even on the smallest terminal.
const HOST_LINES_MIN: usize = 2;

/// Tasks in one host line: more than the widest terminal has room for.
const TASKS_MAX: usize = 8;

/// Draws a run on the terminal at standard error.
#[derive(Debug)]
pub struct Bars {
    shared: Arc<Mutex<Shared>>,
    lines: Lines,
    // Dropped to end the drawing thread.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    progress: Progress,
    above: String,
    dropped: u64,
    // When the last event came, to go on counting while nothing happens.
    heard: Option<Instant>,
}

impl Bars {
    /// Begins to draw, by what goes to standard error.
    pub fn start(lines: Lines, out: Outlet) -> std::io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (end, ended) = channel();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("draw".to_owned())
            .spawn(move || draw_until_ended(&theirs, &ended, Screen::new(lines.palette.colour, out)))?;
        Ok(Self { shared, lines, end: Some(end), thread: Some(thread) })
    }
}

impl EventSink for Bars {
    fn event(&mut self, event: &Event) {
        let mut shared = lock(&self.shared);
        let Shared { progress, above, dropped, heard } = &mut *shared;
        progress.note(event);
        *heard = Some(Instant::now());
        if above.len() < ABOVE_BYTES_MAX {
            self.lines.event(event, progress, above);
        } else {
            *dropped += 1;
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the drawing thread has been reported by itself and must not end the run.
            drop(thread.join());
        }
    }
}

/// A panic while drawing leaves nothing half-changed that anybody relies on.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn draw_until_ended(shared: &Mutex<Shared>, ended: &Receiver<()>, mut screen: Screen) {
    loop {
        let last = ended.recv_timeout(REDRAW) != Err(RecvTimeoutError::Timeout);
        if !last && !screen.out.is_idle() {
            continue;
        }
        let (above, view) = {
            let mut shared = lock(shared);
            let mut above = std::mem::take(&mut shared.above);
            let dropped = std::mem::take(&mut shared.dropped);
            if dropped > 0 {
                put(&mut above, format_args!("... ({} left out)\n", counted(dropped, "event")));
            }
            let idle = shared.heard.map_or(Duration::ZERO, |heard| heard.elapsed());
            (above, View::new(&shared.progress, idle, screen.host_lines()))
        };
        screen.draw(&above, view);
        if last {
            screen.clear();
            return;
        }
    }
}

/// What is shown at one moment.
#[derive(Debug, PartialEq, Eq)]
struct View {
    total: u64,
    done: u64,
    overall: String,
    hosts: Vec<String>,
}

impl View {
    fn new(progress: &Progress, idle: Duration, host_lines: usize) -> Self {
        let idle_ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        let mut hosts: Vec<(&HostName, &HostProgress)> = progress.hosts.iter().collect();
        let mut rest = Vec::new();
        if hosts.len() > host_lines {
            // Those that need a look first: lost ones, then busy ones.
            hosts.sort_by_key(|(_, host)| (host.state == HostState::Ready, usize::MAX - host.running.len()));
            rest = hosts.split_off(host_lines);
            hosts.sort_by_key(|(name, _)| *name);
        }
        let width = hosts.iter().map(|(name, _)| name.as_str().len()).max().unwrap_or(0).min(24);
        let mut lines: Vec<String> = hosts.iter().map(|(name, host)| host_line(name, host, width)).collect();
        if !rest.is_empty() {
            let running: usize = rest.iter().map(|(_, host)| host.running.len()).sum();
            lines.push(format!("and {} more hosts, {running} tasks running there", rest.len()));
        }
        Self {
            total: u64::from(progress.total),
            done: u64::from(progress.tally.done()),
            overall: overall(progress, idle_ms),
            hosts: lines,
        }
    }
}

fn overall(progress: &Progress, idle_ms: u64) -> String {
    let tally = progress.tally;
    let left = match progress.remaining_ms() {
        _ if progress.stopping => ", stopping".to_owned(),
        Some(ms @ 1..) => format!(", about {} left", clock(ms.saturating_sub(idle_ms))),
        _ => String::new(),
    };
    format!(
        "{}/{}  {tally}  {}  {}{left}",
        tally.done(),
        progress.total,
        bytes(progress.bytes),
        clock(progress.elapsed_ms().saturating_add(idle_ms)),
    )
}

fn host_line(name: &HostName, host: &HostProgress, width: usize) -> String {
    let name = shortened(name.as_str(), width.max(8));
    let tally = host.tally;
    let what = match host.state {
        // Those that started last first: they are where things happen. The terminal is full sooner
        // or later.
        HostState::Ready => {
            let tasks = host.running.values().rev().take(TASKS_MAX);
            tasks.map(Running::to_string).collect::<Vec<_>>().join(", ")
        }
        state => state.word().to_owned(),
    };
    let cancelled = match tally.cancelled {
        0 => String::new(),
        count => format!("cancelled {count} "),
    };
    format!(
        "{name:<width$}  {:>3}/{:<3}  ok {:<5} warn {:<4} fail {:<4} {cancelled}{what}",
        host.running.len(),
        host.slots,
        tally.ok,
        tally.warn,
        tally.fail,
    )
}

struct Screen {
    out: Outlet,
    multi: MultiProgress,
    overall: ProgressBar,
    hosts: Vec<ProgressBar>,
    terminal: console::Term,
    shown: Option<View>,
}

impl Screen {
    fn new(colour: bool, out: Outlet) -> Self {
        // The pace is set by the drawing thread, so the target itself leaves no drawings out.
        let target = ProgressDrawTarget::term_like(Box::new(Canvas::new(out.clone())));
        let multi = MultiProgress::with_draw_target(target);
        let template = if colour { "[{bar:30.green}] {wide_msg}" } else { "[{bar:30}] {wide_msg}" };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let overall = multi.add(ProgressBar::new(0).with_style(style.progress_chars("=> ")));
        Self { out, multi, overall, hosts: Vec::new(), terminal: console::Term::stderr(), shown: None }
    }

    fn host_lines(&self) -> usize {
        let (rows, _) = self.terminal.size();
        usize::from(rows).saturating_sub(LINES_KEPT_FREE).max(HOST_LINES_MIN)
    }

    fn draw(&mut self, above: &str, view: View) {
        if !above.is_empty() {
            // Into a queue, which takes everything.
            drop(self.multi.println(above.trim_end_matches('\n')));
        }
        // Every change is a drawing of its own, so nothing is set that is already shown.
        if self.shown.as_ref() != Some(&view) {
            self.change(view);
        }
        // Bars leave the cursor behind the last column. What the terminal echoes there, such as
        // `^C`, would go to a line of its own, and the next drawing would miss the topmost line of
        // this one.
        self.out.put(Weight::Last, b"\r");
    }

    fn change(&mut self, view: View) {
        while self.hosts.len() < view.hosts.len() {
            let style =
                ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::no_length().with_style(style);
            self.hosts.push(self.multi.insert_before(&self.overall, bar));
        }
        while self.hosts.len() > view.hosts.len() {
            if let Some(bar) = self.hosts.pop() {
                self.multi.remove(&bar);
            }
        }
        for (bar, line) in self.hosts.iter().zip(&view.hosts) {
            if bar.message() != *line {
                bar.set_message(line.clone());
            }
        }
        if self.overall.length() != Some(view.total) {
            self.overall.set_length(view.total);
        }
        self.overall.set_position(view.done);
        self.overall.set_message(view.overall.clone());
        self.shown = Some(view);
    }

    fn clear(&self) {
        self.hosts.iter().for_each(ProgressBar::finish_and_clear);
        self.overall.finish_and_clear();
        drop(self.multi.clear());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::Verbosity;
    use crate::terminal::samples::{host, run};
    use crate::terminal::text::Palette;
    use crewboss_boss::event::EventKind;
    use crewboss_boss::outlet::Kind;
    use crewboss_protocol::Outcome;

    fn view(events: usize, host_lines: usize) -> View {
        let mut progress = Progress::default();
        run().iter().take(events).for_each(|event| progress.note(event));
        View::new(&progress, Duration::ZERO, host_lines)
    }

    #[test]
    fn a_run_halfway() {
        let view = view(15, 20);
        insta::assert_snapshot!(format!("{}\n{}", view.hosts.join("\n"), view.overall), @r"
lab1    2/4    ok 0     warn 0    fail 0    aarch64@1a2b3c4d booting, native@1a2b3c4d stage test
lab2    0/0    ok 0     warn 0    fail 0    connecting
2/6  ok 0  warn 0  fail 2  2.0 KiB  0:01
");
    }

    #[test]
    fn what_was_cancelled_is_no_failure() {
        let mut progress = Progress::default();
        for mut event in run().into_iter().take(15) {
            if let EventKind::TaskDone(done) = &mut event.kind
                && done.outcome != Outcome::Skipped
            {
                (done.outcome, done.host) = (Outcome::Cancelled, Some(host("lab2")));
            }
            progress.note(&event);
        }
        let view = View::new(&progress, Duration::ZERO, 20);
        assert!(view.overall.starts_with("2/6  ok 0  warn 0  fail 1  cancelled 1  "), "{}", view.overall);
        assert!(view.hosts[1].ends_with("fail 0    cancelled 1 connecting"), "{}", view.hosts[1]);
    }

    #[test]
    fn more_hosts_than_lines() {
        let hosts = (0..50).map(|n| (host(&format!("h{n:02}")), HostProgress::default())).collect();
        let progress = Progress { hosts, ..Progress::default() };
        let view = View::new(&progress, Duration::ZERO, 3);
        assert_eq!(view.hosts.len(), 4);
        assert_eq!(view.hosts[3], "and 47 more hosts, 0 tasks running there");
    }

    #[test]
    fn drawing_ends_with_the_run_and_a_flood_stays_bounded() {
        let lines = Lines { verbosity: Verbosity::Normal, palette: Palette::PLAIN, good_tasks: false };
        let nowhere = Kind { room: 1 << 20, gap: |_| String::new() };
        let out = Outlet::start("a terminal", nowhere, || Ok(std::io::sink())).unwrap();
        let mut bars = Bars::start(lines, out).unwrap();
        let events = run();
        let failure = events.iter().find(|event| matches!(&event.kind, EventKind::TaskDone(done) if !done.tail.is_empty() && !done.outcome.is_good()));
        let failure = failure.unwrap();
        for _ in 0..100_000 {
            bars.event(failure);
        }
        assert!(lock(&bars.shared).above.len() < 2 * ABOVE_BYTES_MAX);
        drop(bars);
    }
}
