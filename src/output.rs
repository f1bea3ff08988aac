//! The only way to standard output and standard error. Unlike `println!` it does not panic when
//! nobody reads any more, and it never holds up a run: what is printed goes through an [`Outlet`].

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crewboss_boss::outlet::{self, Kind, Outlet, Trouble, Weight};
use crewboss_protocol::HostName;

use crate::interrupt::{self, Asked};
use crate::terminal::text::{counted, harmless};
use crate::terminal::way_in;

/// What may wait for a terminal, or for a program that reads.
const LIVE: Kind = Kind {
    room: 4 << 20,
    gap: |lines| format!("... ({} left out: nobody read in time)\n", counted(lines, "line")),
};

/// At the end of a run a reader that stands still for so long is given up: it is a pager that
/// somebody has left, or a program that hangs. What it misses is in the result directory.
const STILL_MAX: Duration = Duration::from_secs(30);

/// The same for the next reader once one was given up: most often they are the same.
const STILL_AGAIN: Duration = Duration::from_secs(1);

/// How long a run that was asked to stop waits for its readers.
const STOPPED_MAX: Duration = Duration::from_millis(400);

/// Standard output and standard error. Text that is written to one goes into its queue, in whole
/// lines, and never waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// For what a command is called for.
    Out,
    /// For what is said besides.
    Err,
}

static OUT: OnceLock<Outlet> = OnceLock::new();
static ERR: OnceLock<Outlet> = OnceLock::new();

/// Begins to print through queues. Roles on hosts do without: they have nobody to answer while they
/// print.
pub fn start() -> io::Result<()> {
    for stream in [Stream::Out, Stream::Err] {
        let file = File::from(match stream {
            Stream::Out => io::stdout().as_fd().try_clone_to_owned()?,
            Stream::Err => io::stderr().as_fd().try_clone_to_owned()?,
        });
        let outlet = Outlet::start(stream.name(), LIVE, move || Ok(file))?;
        // It happens once in a process.
        let _first = stream.outlet().set(outlet);
    }
    Ok(())
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Out => "standard output",
            Stream::Err => "standard error",
        }
    }

    fn outlet(self) -> &'static OnceLock<Outlet> {
        match self {
            Stream::Out => &OUT,
            Stream::Err => &ERR,
        }
    }

    /// Takes whole lines. Waits only in a process that has not called [`start`].
    pub fn put(self, weight: Weight, text: &[u8]) {
        if let Some(outlet) = self.outlet().get() {
            return outlet.put(weight, text);
        }
        let written = match self {
            Stream::Out => directly(io::stdout().lock(), text),
            Stream::Err => directly(io::stderr().lock(), text),
        };
        // That standard error cannot be written can be told nowhere.
        if let (Stream::Out, Err(source)) = (self, written) {
            tell(Some(Trouble::Write { name: self.name().to_owned(), source }));
        }
    }

    /// Its queue, in a process that has called [`start`].
    pub fn queue(self) -> Option<Outlet> {
        self.outlet().get().cloned()
    }

    fn settle(self) -> Option<Trouble> {
        self.outlet().get()?.settle(&mut patience())
    }
}

impl Write for Stream {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.put(Weight::News, text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn directly(mut stream: impl Write, text: &[u8]) -> io::Result<()> {
    stream.write_all(text).and_then(|()| stream.flush())
}

/// Writes text to standard output, behind all that went to standard error. That nobody reads it any
/// more, as behind `| head`, is no error; anything else is told at the end.
pub fn print(text: &str) {
    // Only the order counts here: what could not be written to standard error cannot be told there.
    let _untold = Stream::Err.settle();
    Stream::Out.put(Weight::Last, text.as_bytes());
}

/// Writes to standard output while something else goes on. Never waits, and leaves nothing out.
pub fn show(text: &str) {
    Stream::Out.put(Weight::Last, text.as_bytes());
}

/// Says which hosts a command still waits for.
pub fn waiting_for(hosts: &[HostName]) {
    let names: Vec<&str> = hosts.iter().map(HostName::as_str).collect();
    Stream::Err.put(Weight::Live, format!("crewboss: still waiting for {}\n", names.join(", ")).as_bytes());
}

/// Waits until everything is written that can be, logs included, and says what could not be. To be
/// called once, at the end. Gives whether standard output has all that it should have, or a reader
/// that wanted no more.
#[must_use]
pub fn finish() -> bool {
    outlet::settle_all(&mut patience()).into_iter().for_each(|trouble| tell(Some(trouble)));
    let _untold = Stream::Err.settle();
    !CUT.load(Ordering::Relaxed)
}

/// Whether something is missing on standard output.
static CUT: AtomicBool = AtomicBool::new(false);

/// For a way out that is settled before the end.
pub fn patience() -> impl FnMut(Duration) -> bool {
    static GAVE_UP: AtomicBool = AtomicBool::new(false);
    let begun = Instant::now();
    move |still| {
        let enough = match interrupt::asked() {
            // Whoever waits can be ended by the first Ctrl-C, like any program behind which nobody
            // reads.
            Asked::Nobody => false,
            Asked::Yes => begun.elapsed() >= STOPPED_MAX,
            Asked::No if GAVE_UP.load(Ordering::Relaxed) => still >= STILL_AGAIN,
            Asked::No => still >= STILL_MAX,
        };
        if enough {
            GAVE_UP.store(true, Ordering::Relaxed);
        }
        enough
    }
}

fn tell(trouble: Option<Trouble>) {
    match trouble {
        Some(Trouble::Write { name, source })
            if name == Stream::Out.name() && source.kind() == io::ErrorKind::BrokenPipe => {}
        Some(trouble) => {
            let (Trouble::Write { name, .. } | Trouble::Slow { name, .. }) = &trouble;
            CUT.fetch_or(name == Stream::Out.name(), Ordering::Relaxed);
            complain(&trouble);
        }
        None => {}
    }
}

/// Writes an error with its causes to standard error.
pub fn complain(error: &dyn Error) {
    complain_with_hint(error, None);
}

/// As [`complain`], and what a person can do about it.
pub fn complain_with_hint(error: &dyn Error, hint: Option<&str>) {
    let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
    let text = way_in::here(&format!("crewboss: {}{hint}\n", harmless(&with_causes(error))));
    let trouble = Stream::Out.settle();
    Stream::Err.put(Weight::Last, text.as_bytes());
    tell(trouble);
}

/// An error and its causes. A hint stays at the end, where it is seen.
pub fn with_causes(error: &dyn Error) -> String {
    let own = error.to_string();
    let (message, hint) = own.split_once("\n  hint: ").map_or((own.as_str(), None), |(m, h)| (m, Some(h)));
    let mut text = message.to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    if let Some(hint) = hint {
        text.push_str(&format!("\n  hint: {hint}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_stand_before_the_hint() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot start\n  hint: try again")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::other("no space"));
        assert_eq!(with_causes(&error), "cannot start: no space\n  hint: try again");
    }
}
