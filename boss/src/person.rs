//! Brings a person to a guest: finds out who uses which host, and talks to a role there that does
//! it.

use std::borrow::Cow;
use std::time::Duration;

use crewboss_protocol::codec::{Line, LineDecoder, encode, parse};
use crewboss_protocol::overview::Overview;
use crewboss_protocol::visit::{FromPerson, ToPerson};
use crewboss_protocol::{HostName, codec};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout};

use crate::crew::{Crew, Host, Timing, Transport};
use crate::link::{ChannelGuard, ChannelReader, Connector, Exit, Link, OwnBinary, Role, ShipError, start};
use crate::report::{Answer, Heard, Question, ReportError, of_crew, of_link};
use crate::run::{RunError, forgiven};

/// The role that tells. It only reads some files.
fn question() -> Question {
    Question { words: vec!["overview".to_owned()], is_work: false }
}

/// What is read of a role's standard error, which only one that crashes uses.
const STDERR_MAX: u64 = 4096;

/// How long that may take.
const STDERR_WITHIN: Duration = Duration::from_secs(2);

/// What waits to be sent; a host that does not take more is not sent what is typed.
const WAITING_MAX: usize = 64 << 10;

/// Asks all hosts at once who uses them, in the order of the crew; `told` hears each when it has
/// answered.
///
/// # Errors
/// If this computer cannot connect to anybody. What is wrong with a host is its answer.
pub async fn overview(
    crew: &Crew,
    told: &mut dyn FnMut(Heard<'_, Overview>),
) -> Result<Vec<Answer<Overview>>, RunError> {
    of_crew(crew, question(), told).await
}

/// Why a person does not get to a host.
#[derive(Debug, thiserror::Error)]
pub enum PersonError {
    /// No connection.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The host does not answer.
    #[error("host {host}")]
    Report {
        /// Which.
        host: HostName,
        /// Why.
        #[source]
        source: ReportError,
    },
    /// The program does not start there.
    #[error(transparent)]
    Ship(#[from] ShipError),
    /// Nothing is heard any more.
    #[error("nothing was heard from host {host} for {} s; a guest that was kept is kept there", .within.as_secs())]
    Silent {
        /// Which.
        host: HostName,
        /// For how long.
        within: Duration,
    },
    /// The connection or the process there is gone.
    #[error("host {host} is not there any more ({how}); a guest that was kept is kept there{said}")]
    Lost {
        /// Which.
        host: HostName,
        /// What the process ended with.
        how: Exit,
        /// What it printed last, with what stands before it.
        said: String,
    },
    /// What is heard makes no sense.
    #[error("what host {host} says cannot be understood")]
    Nonsense {
        /// Which.
        host: HostName,
        /// Why.
        #[source]
        source: codec::DecodeError,
    },
}

impl PersonError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Run(error) => error.hint(),
            Self::Report { source, .. } => source.hint().map(Cow::Borrowed),
            Self::Ship(error) => error.hint().map(Cow::Borrowed),
            Self::Silent { .. } | Self::Lost { .. } | Self::Nonsense { .. } => None,
        }
    }
}

/// A connection to one host, with the program there.
#[derive(Debug)]
pub struct Visit {
    host: Host,
    link: Link,
    binary: OwnBinary,
    ssh: crate::crew::Ssh,
    timing: Timing,
    _connector: Connector,
}

impl Visit {
    /// Connects to a host, and hears who uses it.
    ///
    /// # Errors
    /// If that cannot be done.
    pub async fn begin(crew: &Crew, host: &Host) -> Result<(Self, Overview), PersonError> {
        let connector = Connector::new(&crew.ssh, &crew.timing).map_err(RunError::from)?;
        let binary = OwnBinary::current().map_err(RunError::from)?;
        let failed = |source: ReportError| PersonError::Report { host: host.name.clone(), source };
        let link = connector.connect(host).await.map_err(|error| failed(error.into()))?;
        let overview = of_link(&link, &binary, host, &question()).await.map_err(failed)?;
        let (host, ssh, timing) = (host.clone(), crew.ssh.clone(), crew.timing);
        Ok((Self { host, link, binary, ssh, timing, _connector: connector }, overview))
    }

    /// Which host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The words with which the person's own `ssh` reaches the host, if it is reached by that.
    pub fn ssh(&self) -> Option<String> {
        let Transport::Ssh(destination) = &self.host.transport else { return None };
        let config = self.ssh.config.as_ref().map(|config| format!("-F {} ", config.path.display()));
        Some(format!("ssh {}{destination}", config.unwrap_or_default()))
    }

    /// Starts a role there, on behalf of `person` (`user@computer`).
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn talk(&self, words: &[&str], person: &str) -> Result<Talk, PersonError> {
        let millis = |duration: Duration| duration.as_millis().to_string();
        let (heartbeat, silence) = (millis(self.timing.heartbeat), millis(self.timing.silence));
        let mut words = words.to_vec();
        words.extend(["--person", person, "--host", self.host.name.as_str()]);
        words.extend(["--heartbeat", &heartbeat, "--silence", &silence]);
        words.extend(self.host.machines.iter().flat_map(|machines| ["--machines", machines]));
        let role = Role::new(&words, self.host.work.as_deref());
        let running = start(&self.link, &self.binary, role, b"").await?;
        let (input, output, guard) = running.channel.into_parts();
        let mut beats = interval(self.timing.heartbeat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Talk {
            host: self.host.name.clone(),
            timing: self.timing,
            beats,
            input: Some(input),
            waiting: Vec::new(),
            output,
            decoder: LineDecoder::new(),
            heard: Instant::now(),
            guard,
        })
    }
}

/// A role that brings the person to a guest.
#[derive(Debug)]
pub struct Talk {
    host: HostName,
    timing: Timing,
    beats: Interval,
    /// Open as long as the person is there.
    input: Option<pipe::Sender>,
    waiting: Vec<u8>,
    output: ChannelReader,
    decoder: LineDecoder,
    heard: Instant,
    guard: ChannelGuard,
}

/// What came of a role.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// It says this.
    Told(ToPerson),
    /// It has ended with this code.
    Over(i32),
}

impl Talk {
    /// Tells it something; [`Self::next`] sends it. Nothing is sent once the person has left.
    pub fn tell(&mut self, message: &FromPerson) {
        if self.input.is_some() {
            encode(message, &mut self.waiting);
        }
    }

    /// Whether it takes more of what is typed.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Says that the person has left, after all that was told before.
    pub async fn leave(&mut self) {
        if let Some(mut input) = self.input.take() {
            // A host that does not take it in time hears the end all the same.
            let _sent = timeout(self.timing.heartbeat, input.write_all(&self.waiting)).await;
        }
        self.waiting.clear();
    }

    /// What comes next. Says meanwhile that the person is there, and takes silence for the end.
    /// Unless it `reads`, it only does the first, without end: what came before is still to be
    /// shown. May be given up and called again.
    ///
    /// # Errors
    /// If the host is gone, or makes no sense.
    pub async fn next(&mut self, reads: bool) -> Result<News, PersonError> {
        let mut buffer = Vec::with_capacity(64 << 10);
        loop {
            if reads && let Some(told) = self.told()? {
                return Ok(News::Told(told));
            }
            if !reads {
                self.heard = Instant::now();
            }
            let silent = sleep_until(self.heard + self.timing.silence);
            let writes = self.input.is_some() && !self.waiting.is_empty();
            tokio::select! {
                // Ours first, which is never much; and what was said before anybody is called
                // silent: it may have been this process that stood still.
                biased;
                due = self.beats.tick() => {
                    self.heard = forgiven(self.heard, due, &self.timing, Instant::now());
                    // Also when the person has left: it is what this loop always has to wait for.
                    if self.waiting.is_empty() {
                        self.tell(&FromPerson::Here);
                    }
                }
                written = send(&mut self.input, &self.waiting), if writes => match written {
                    Ok(count) => drop(self.waiting.drain(..count)),
                    // That it has gone shows by its output.
                    Err(_) => self.input = None,
                },
                read = self.output.read_buf(&mut buffer), if reads => {
                    if !read.is_ok_and(|count| count > 0) {
                        return self.over().await;
                    }
                    self.heard = Instant::now();
                    self.decoder.push(&buffer);
                    buffer.clear();
                }
                () = silent, if reads => {
                    return Err(PersonError::Silent { host: self.host.clone(), within: self.timing.silence });
                }
            }
        }
    }

    fn told(&mut self) -> Result<Option<ToPerson>, PersonError> {
        let failed = |source| PersonError::Nonsense { host: self.host.clone(), source };
        while let Some(line) = self.decoder.next_line() {
            match line {
                Line::Ours(text) => match parse(text).map_err(failed)? {
                    ToPerson::Here => {}
                    told => return Ok(Some(told)),
                },
                Line::Stray(_) => {}
                Line::TooLong => return Err(failed(codec::DecodeError::TooLong)),
            }
        }
        Ok(None)
    }

    async fn over(&mut self) -> Result<News, PersonError> {
        self.input = None;
        let ended = timeout(self.timing.silence, self.guard.wait()).await;
        match ended {
            Ok(Exit::Code(code)) => Ok(News::Over(code)),
            Ok(how) => {
                let said = self.stderr().await;
                Err(PersonError::Lost { host: self.host.clone(), how, said })
            }
            Err(_) => Err(PersonError::Silent { host: self.host.clone(), within: self.timing.silence }),
        }
    }

    async fn stderr(&mut self) -> String {
        let Some(stderr) = self.guard.stderr.take() else { return String::new() };
        let mut said = Vec::new();
        let _cut_off = timeout(STDERR_WITHIN, stderr.take(STDERR_MAX).read_to_end(&mut said)).await;
        let said = String::from_utf8_lossy(&said);
        let said = said.trim();
        if said.is_empty() { String::new() } else { format!("; it said: {said}") }
    }
}

async fn send(input: &mut Option<pipe::Sender>, bytes: &[u8]) -> std::io::Result<usize> {
    match input {
        Some(input) => input.write(bytes).await,
        None => std::future::pending().await,
    }
}
