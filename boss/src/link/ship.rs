//! The worker ships itself: finds this very build on the host or brings it there, then starts it.
//!
//! One line of shell looks for `<cache>/crewboss/bin/<sha256>/crewboss` and executes it, so a host
//! that has it costs one channel and no further round trip: what the new process is to read is
//! already on its way. A host that lacks it says so, gets it over a second channel, and is asked
//! again.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crewboss_protocol::SESSION_VARIABLE;
use crewboss_protocol::codec::{Line, LineDecoder};
use crewboss_protocol::limits::STALL_BYTES;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::channel::{Channel, Exit};
use super::error::ShipError;
use super::{Link, quote};
use crate::crew::Timing;

/// Kept of what a shell prints besides our lines, for an error message.
const STRAY_BYTES_MAX: usize = 2000;

/// Builds kept on a host, the newest first. More than one, since several people may use several
/// versions.
const BUILDS_KEPT: usize = 4;

/// This program's own file, as it is sent to hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnBinary {
    path: PathBuf,
    sha256: String,
    bytes: u64,
}

impl OwnBinary {
    /// The running program. Reads and hashes its whole file (some 10 ms), so call it once and not
    /// on a thread that must not wait.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn current() -> Result<Self, ShipError> {
        // The link, not the path behind it: it still leads to this build when the file was replaced
        // meanwhile.
        Self::of(Path::new("/proc/self/exe"))
    }

    /// Any file, which must understand `verify SHA256` and the roles.
    ///
    /// # Errors
    /// If the file cannot be read.
    #[expect(clippy::disallowed_methods, reason = "it is this very program, whoever has installed it")]
    pub fn of(path: &Path) -> Result<Self, ShipError> {
        let failed = |source| ShipError::OwnBinary { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 128 << 10];
        let mut bytes = 0;
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
            bytes += count as u64;
        }
        let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { path: path.to_owned(), sha256, bytes })
    }

    /// Its SHA-256 in hexadecimal: what names this build.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What the binary is to be on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role<'a> {
    /// The words after its name, such as `["worker"]` or `["bulk", "--session", "r.1"]`.
    pub words: &'a [&'a str],
    /// The host's `work` directory, if the crew file names one.
    pub work: Option<&'a str>,
    /// The session that it belongs to, on whose end it is ended if it is still there. A worker says
    /// so of itself.
    pub session: Option<&'a str>,
    /// Whether its first line is also its last, which comes when all is done.
    pub works_first: bool,
}

impl<'a> Role<'a> {
    /// One that soon says that it is there.
    pub fn new(words: &'a [&'a str], work: Option<&'a str>) -> Self {
        Self { words, work, session: None, works_first: false }
    }

    /// By what and for how long it may say nothing at first.
    fn patience(&self, timing: &Timing) -> (&'static str, Duration) {
        if self.works_first { ("standstill", timing.standstill) } else { ("ready", timing.ready) }
    }

    /// Processes of a session are known by a variable in their environment.
    fn mark(&self) -> String {
        let session = self.session.map(|session| format!("export {SESSION_VARIABLE}={}; ", quote(session)));
        session.unwrap_or_default()
    }

    fn arguments(&self) -> String {
        let work = self.work.iter().flat_map(|work| ["--work", work]);
        self.words.iter().copied().chain(work).map(|word| format!(" {}", quote(word))).collect()
    }
}

/// A role that has begun to speak.
#[derive(Debug)]
pub struct Running {
    /// To its process.
    pub channel: Channel,
    /// Whether the binary was not there and had to be sent.
    pub shipped: bool,
}

/// Starts a role of this build on a host; brings the binary there if it is not.
///
/// `opening` is written to its input at once: the first lines of the control channel, or nothing.
/// Returns when the first line of the protocol has arrived, which is still to be read, after
/// whatever else was printed before it.
///
/// # Errors
/// If the binary cannot be brought there or does not run, each with a hint.
pub async fn start(
    link: &Link,
    binary: &OwnBinary,
    role: Role<'_>,
    opening: &[u8],
) -> Result<Running, ShipError> {
    let script = role.mark() + &start_script(&binary.sha256, &role.arguments());
    let patience = role.patience(link.timing());
    match begin(link, &script, opening, patience).await? {
        Begun::Runs(channel) => return Ok(Running { channel: *channel, shipped: false }),
        Begun::Absent { platform } => check_platform(link, &platform)?,
    }
    upload(link, binary).await?;
    match begin(link, &script, opening, patience).await? {
        Begun::Runs(channel) => Ok(Running { channel: *channel, shipped: true }),
        Begun::Absent { .. } => Err(ShipError::Damaged {
            host: link.host().clone(),
            text: "it was stored, and then it was not there".to_owned(),
        }),
    }
}

/// What the script says before it starts the binary, if there is none, and if the host cannot run
/// it.
const START_MARKS: [&str; 3] =
    [r#"echo "@cb-ship run"; "#, r#"echo "@cb-ship absent $(uname -s -m)""#, r#"echo "@cb-ship noproc""#];

/// A directory in the user's home comes first. The others are for homes that are full, read-only or
/// `noexec`; since everybody may write beside them, they count only if they belong to us, and are
/// no links: another user's link may lead to a directory that is ours and in which everybody may
/// write, such as root's `/tmp`.
///
/// Without a home, nothing can be made in its place.
const HOME_PLACE: &str = r#""${XDG_CACHE_HOME:-${HOME:-/dev/null}/.cache}/crewboss""#;
const FURTHER_PLACES: &str = "/var/tmp/crewboss-$u /dev/shm/crewboss-$u";

/// All of these.
const PLACES: usize = 3;

/// Kept of what a host says of a place that it cannot use.
const SKIPPED_CHARS_MAX: usize = 400;

/// Shell that asks whether nobody else can have changed what lies below the place `$1`, nor can
/// until it is started: the place and the named things in it belong to us, and neither our group
/// nor others may write to them; nobody may rename the place, either. One `ls` tells all, in lines
/// that come in any order. The file's content is not hashed again: whoever could change it could as
/// well have changed the shell that asks.
fn sound(inside: &[&str]) -> String {
    let paths: String = inside.iter().map(|path| format!(r#" "$1/{path}""#)).collect();
    let strict = "l* | ?????w* | ????????w*) exit 1";
    let sticky = "?????????[tT]*";
    let lines = inside.len() + 3;
    format!(
        concat!(
            r#"sound() {{ for w in "$1"{paths}; do [ -O "$w" ] || return 1; done; "#,
            r#"ls -ldn "${{1%/*}}/." "$1/.." "$1/bin/.."{paths} 2>/dev/null | ( k=0; while read -r m w o g w; do k=$((k+1)); "#,
            r#"case "$w" in */bin/..) case "$m" in {strict};; esac;; "#,
            r#"*/. | */..) [ "$o" = 0 ] || [ -O "/${{w#*/}}" ] || exit 1; case "$m" in l*) exit 1;; {sticky}) ;; ????????w*) exit 1;; ?????w*) [ "$o" = "$g" ] || exit 1;; esac;; "#,
            r#"*) case "$m" in {strict};; esac;; esac; done; [ $k -eq {lines} ] ); }}; "#
        ),
        paths = paths,
        strict = strict,
        sticky = sticky,
        lines = lines,
    )
}

/// The user's own cache directory comes first.
fn start_script(sha256: &str, arguments: &str) -> String {
    let [mark, absent, no_proc] = START_MARKS;
    let (directory, program) = (format!("bin/{sha256}"), format!("bin/{sha256}/crewboss"));
    let sound = sound(&["bin", &directory, &program]);
    let run = format!(r#"{{ [ -d /proc/self ] || {{ {no_proc}; exit 0; }}; {mark}exec "$f"{arguments}; }}"#);
    format!(
        r#"{sound}d={HOME_PLACE}; f="$d/{program}"; [ -x "$f" ] && sound "$d" && {run}; u=$(id -u); for d in {FURTHER_PLACES}; do f="$d/{program}"; [ ! -L "$d" ] && [ -x "$f" ] && sound "$d" && {run}; done; {absent}"#
    )
}

/// Takes the binary from its input into the first place, from the given one on, that can keep and
/// execute programs.
fn upload_script(sha256: &str, bytes: u64, first: usize) -> String {
    let keep = BUILDS_KEPT + 1;
    let fits = r#"mkdir -p -m 700 "$d/bin" 2>&1"#;
    let probe = r#"printf '#!/bin/sh\nexit 0\n' >"$t" && chmod 700 "$t""#;
    format!(
        concat!(
            r#"{sound}[ -d /proc/self ] || {{ {no_proc}; exit 0; }}; umask 077; n=0; u=$(id -u); for d in {home} {further}; do n=$((n+1)); [ $n -gt {first} ] || continue; "#,
            r#"[ $n -gt 1 ] && [ -L "$d" ] && {{ echo "@cb-ship skip $n owner $d: it is a link"; continue; }}; "#,
            r#"e=$({fits}) || {{ echo "@cb-ship skip $n create $d: $e"; continue; }}; "#,
            r#"[ -O "$d" ] && [ -O "$d/bin" ] || {{ echo "@cb-ship skip $n owner $d: it belongs to somebody else"; continue; }}; "#,
            r#"sound "$d" || {{ echo "@cb-ship skip $n owner $d: other users can write to it, or to the directory that it is in"; continue; }}; "#,
            r#"t="$d/bin/.new.$$"; "#,
            r#"e=$( {{ {probe}; }} 2>&1) || {{ rm -f "$t"; echo "@cb-ship skip $n create $d: $e"; continue; }}; "#,
            r#"e=$("$t" 2>&1) || {{ rm -f "$t"; echo "@cb-ship skip $n noexec $d: $e"; continue; }}; "#,
            r#"rm -f "$t"; trap 'rm -f "$t"' EXIT; trap "exit 1" HUP TERM; echo "@cb-ship send $n $d"; "#,
            r#"e=$( {{ cat >"$t" && chmod 755 "$t"; }} 2>&1) || {{ cat >/dev/null; echo "@cb-ship skip $n full $d: $e"; exit 0; }}; "#,
            r#"s=$(wc -c <"$t"); [ "$s" -gt 0 ] || {{ echo "@cb-ship noinput"; exit 0; }}; [ "$s" -eq {bytes} ] || {{ echo "@cb-ship damaged it has $s of {bytes} bytes"; exit 0; }}; "#,
            r#"e=$("$t" verify {sha256} 2>&1) || {{ echo "@cb-ship damaged $e"; exit 0; }}; "#,
            r#"mkdir -p "$d/bin/{sha256}" && chmod 700 "$d/bin/{sha256}" && mv -f "$t" "$d/bin/{sha256}/crewboss" || {{ echo "@cb-ship skip $n full $d"; exit 0; }}; "#,
            r#"echo "@cb-ship stored"; cd "$d/bin" && ls -1t | tail -n +{keep} | while read -r o; do rm -rf "./$o"; done; exit 0; done; echo "@cb-ship nowhere""#
        ),
        sound = sound(&["bin"]),
        no_proc = START_MARKS[2],
        home = HOME_PLACE,
        further = FURTHER_PLACES,
        first = first,
        fits = fits,
        probe = probe,
        bytes = bytes,
        sha256 = sha256,
        keep = keep,
    )
}

enum Begun {
    Runs(Box<Channel>),
    Absent { platform: String },
}

async fn begin(
    link: &Link,
    script: &str,
    opening: &[u8],
    (setting, within): (&'static str, Duration),
) -> Result<Begun, ShipError> {
    let mut talk = Talk::open(link, script).await?;
    // If the script only says "absent", nobody reads this, and the pipe may already be closed.
    let _unread = talk.channel.stdin.write_all(opening).await;
    talk.limit_shell();
    loop {
        match talk.next().await? {
            Heard::Ship(text) => match text.split_once(' ').unwrap_or((&text, "")) {
                ("run", _) => talk.limit("the worker", within, setting),
                ("noproc", _) => return Err(ShipError::NoProc { host: link.host().clone() }),
                ("absent", platform) => return Ok(Begun::Absent { platform: platform.to_owned() }),
                _ => {}
            },
            Heard::Protocol => return Ok(Begun::Runs(Box::new(talk.give_back()))),
            Heard::End => return Err(talk.ended().await),
        }
    }
}

/// This build's system and processor in the words of `uname -s -m`.
fn own_platform() -> String {
    let machine = match std::env::consts::ARCH {
        "x86" => "i686",
        "arm" => "armv7l",
        other => other,
    };
    format!("Linux {machine}")
}

/// Kernels of 64 bits run programs of 32 bits, too.
fn runs_here(ours: &str, theirs: &str) -> bool {
    match ours {
        "Linux i686" => ["Linux i386", "Linux i586", "Linux i686", "Linux x86_64"].contains(&theirs),
        "Linux armv7l" => ["Linux armv7l", "Linux armv8l", "Linux aarch64"].contains(&theirs),
        ours => ours == theirs,
    }
}

fn check_platform(link: &Link, theirs: &str) -> Result<(), ShipError> {
    let ours = own_platform();
    if runs_here(&ours, theirs) {
        return Ok(());
    }
    Err(ShipError::Platform { host: link.host().clone(), theirs: theirs.to_owned(), ours })
}

/// Brings the binary to the first place on the host that takes it, or gives up once that takes too
/// long, whatever moves meanwhile.
async fn upload(link: &Link, binary: &OwnBinary) -> Result<(), ShipError> {
    let within = upload_within(link.timing(), binary.bytes);
    let endless = |_| Err(ShipError::Endless { host: link.host().clone(), after: within });
    timeout(within, to_some_place(link, binary)).await.unwrap_or_else(endless)
}

/// For each place a shell that begins, and a check; and the whole of the file once at four times
/// the least that counts as moving. By default some 30 minutes for each MB.
fn upload_within(timing: &Timing, bytes: u64) -> Duration {
    let pieces = u32::try_from(bytes / u64::from(4 * STALL_BYTES)).unwrap_or(u32::MAX);
    let places = u32::try_from(PLACES).unwrap_or(u32::MAX);
    (timing.shell + timing.stall).saturating_mul(places).saturating_add(timing.stall.saturating_mul(pieces))
}

async fn to_some_place(link: &Link, binary: &OwnBinary) -> Result<(), ShipError> {
    let mut tried = Vec::new();
    let mut first = 0;
    loop {
        let script = upload_script(&binary.sha256, binary.bytes, first);
        let mut talk = Talk::open(link, &script).await?;
        talk.limit_shell();
        let outcome = upload_once(&mut talk, binary, &mut tried).await;
        talk.finish().await;
        match outcome? {
            Upload::Stored => return Ok(()),
            Upload::Nowhere => {
                let hint = Skipped::hint(tried.last());
                let tried =
                    tried.iter().map(|skip: &Skipped| skip.text.as_str()).collect::<Vec<_>>().join("; ");
                return Err(ShipError::NoPlace { host: link.host().clone(), tried, hint });
            }
            Upload::Full(place) => first = place,
        }
    }
}

enum Upload {
    Stored,
    Nowhere,
    /// This place could not take it; go on with the next.
    Full(usize),
}

/// A place that the host could not use.
#[derive(Debug, PartialEq, Eq)]
struct Skipped {
    number: usize,
    why: String,
    text: String,
}

impl Skipped {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ' ');
        let (number, why, text) = (parts.next()?, parts.next()?, parts.next()?);
        let text = text.chars().take(SKIPPED_CHARS_MAX).collect();
        Some(Self { number: number.parse().ok()?, why: why.to_owned(), text })
    }

    fn hint(last: Option<&Self>) -> &'static str {
        match last.map(|skip| skip.why.as_str()) {
            Some("noexec") => {
                "every place is mounted noexec: set XDG_CACHE_HOME there to a directory that allows programs"
            }
            Some("full") => "make room there (df -h); some 10 MB are needed",
            _ => "make the user's home directory there writable, or set XDG_CACHE_HOME there",
        }
    }
}

async fn upload_once(
    talk: &mut Talk,
    binary: &OwnBinary,
    tried: &mut Vec<Skipped>,
) -> Result<Upload, ShipError> {
    let mut sending = false;
    loop {
        let Heard::Ship(text) = talk.next().await? else { return Err(talk.ended().await) };
        match text.split_once(' ').unwrap_or((&text, "")) {
            ("send", _) if !sending => {
                sending = true;
                talk.send(&binary.path).await?;
                talk.limit_stall("the upload's check");
            }
            ("stored", _) => return Ok(Upload::Stored),
            ("nowhere", _) => return Ok(Upload::Nowhere),
            ("noproc", _) => return Err(ShipError::NoProc { host: talk.link.host().clone() }),
            ("noinput", _) => {
                let text = talk.stray.trim().to_owned();
                return Err(ShipError::NoInput { host: talk.link.host().clone(), text });
            }
            ("damaged", text) => {
                return Err(ShipError::Damaged { host: talk.link.host().clone(), text: text.to_owned() });
            }
            ("skip", text) => {
                let Some(skipped) = Skipped::parse(text) else { continue };
                let number = skipped.number;
                // Else it could go on for ever with places that it has had.
                if number > PLACES || number <= tried.last().map_or(0, |last| last.number) {
                    let text = format!("it skips place {number} of {PLACES} out of turn");
                    return Err(ShipError::Damaged { host: talk.link.host().clone(), text });
                }
                tried.push(skipped);
                if sending {
                    return Ok(Upload::Full(number));
                }
            }
            _ => {}
        }
    }
}

/// A channel on which a shell speaks to us.
struct Talk {
    link: Link,
    channel: Channel,
    decoder: LineDecoder,
    /// All that was read and is not given up yet, to be given back once the protocol begins.
    read: Vec<u8>,
    stray: String,
    deadline: Instant,
    within: Duration,
    from: &'static str,
    /// What the limit is called in the crew file.
    setting: &'static str,
}

enum Heard {
    /// A line of our script, without its prefix.
    Ship(String),
    /// A line of the protocol.
    Protocol,
    End,
}

/// What each line of our scripts begins with. Not the protocol's prefix, so no script can speak for
/// a worker.
const SHIP_PREFIX: &[u8] = b"@cb-ship ";

/// Printed before the protocol begins; beyond it, a host's banner is forgotten piece by piece.
const READ_BYTES_MAX: usize = 256 << 10;

impl Talk {
    async fn open(link: &Link, script: &str) -> Result<Self, ShipError> {
        Ok(Self {
            channel: link.open(script).await?,
            link: link.clone(),
            decoder: LineDecoder::new(),
            read: Vec::new(),
            stray: String::new(),
            deadline: Instant::now(),
            within: Duration::ZERO,
            from: "the host",
            setting: "shell",
        })
    }

    fn limit(&mut self, from: &'static str, within: Duration, setting: &'static str) {
        (self.from, self.within, self.deadline) = (from, within, Instant::now() + within);
        self.setting = setting;
    }

    /// Until the first word of our script, for as long as a person has said.
    fn limit_shell(&mut self) {
        self.limit("the shell there", self.link.timing().shell, "shell");
    }

    /// As long as bytes have to move.
    fn limit_stall(&mut self, from: &'static str) {
        self.limit(from, self.link.timing().stall, "stall");
    }

    async fn next(&mut self) -> Result<Heard, ShipError> {
        let mut buffer = vec![0; 16 << 10];
        loop {
            while let Some(line) = self.decoder.next_line() {
                match line {
                    Line::Ours(_) | Line::TooLong => return Ok(Heard::Protocol),
                    Line::Stray(text) => match text.strip_prefix(SHIP_PREFIX) {
                        Some(text) => return Ok(Heard::Ship(String::from_utf8_lossy(text).into_owned())),
                        None => keep(&mut self.stray, text),
                    },
                }
            }
            // What always has something to read never lets the time below run out.
            if Instant::now() >= self.deadline {
                return Err(self.silent());
            }
            let count = match timeout_at(self.deadline, self.channel.stdout.read(&mut buffer)).await {
                Ok(Ok(count)) => count,
                Ok(Err(source)) => return Err(self.broken(source)),
                Err(_) => return Err(self.silent()),
            };
            if count == 0 {
                return Ok(Heard::End);
            }
            self.decoder.push(&buffer[..count]);
            if self.read.len() + count > READ_BYTES_MAX {
                self.read.clear();
            }
            self.read.extend_from_slice(&buffer[..count]);
        }
    }

    fn broken(&self, source: io::Error) -> ShipError {
        ShipError::Io { host: self.link.host().clone(), source }
    }

    fn silent(&self) -> ShipError {
        let text = self.stray.trim().to_owned();
        let host = self.link.host().clone();
        ShipError::Silent { host, from: self.from, after: self.within, limit: self.setting, text }
    }

    /// Sends a file and closes the input. A host that stops reading is found by the answer that
    /// follows, or the lack of one.
    #[expect(clippy::disallowed_methods, reason = "it is this very program, whoever has installed it")]
    async fn send(&mut self, path: &Path) -> Result<(), ShipError> {
        let failed = |source| ShipError::OwnBinary { path: path.to_owned(), source };
        let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
        let mut buffer = vec![0; 256 << 10];
        'all: loop {
            let count = file.read(&mut buffer).await.map_err(failed)?;
            if count == 0 {
                break;
            }
            // As little as counts as moving.
            for piece in buffer[..count].chunks(STALL_BYTES as usize) {
                self.limit_stall("the upload");
                match timeout_at(self.deadline, self.channel.stdin.write_all(piece)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => break 'all,
                    Err(_) => return Err(self.silent()),
                }
            }
        }
        self.close_input()
    }

    /// A pipe has no half to shut down: its only end must be dropped, so another takes its place.
    fn close_input(&mut self) -> Result<(), ShipError> {
        let (nobody, _) = tokio::net::unix::pipe::pipe().map_err(|source| self.broken(source))?;
        self.channel.stdin = nobody;
        Ok(())
    }

    /// Lets the script remove what it must: dropping the channel would end it before.
    async fn finish(&mut self) {
        const TIDY_WITHIN: Duration = Duration::from_secs(5);
        let deadline = Instant::now() + TIDY_WITHIN;
        let _ended = self.close_input();
        let _in_time = timeout_at(deadline, self.channel.wait()).await;
    }

    fn give_back(mut self) -> Channel {
        self.channel.stdout.unread(&self.read);
        self.channel
    }

    /// The channel ended before what we wait for: tells why.
    async fn ended(&mut self) -> ShipError {
        const REST_WITHIN: Duration = Duration::from_secs(2);
        let deadline = Instant::now() + REST_WITHIN;
        let mut bytes = Vec::new();
        let mut stderr = (&mut self.channel.stderr).take(STRAY_BYTES_MAX as u64);
        let _what_came_in_time = timeout_at(deadline, stderr.read_to_end(&mut bytes)).await;
        keep(&mut self.stray, &bytes);
        let exit = timeout_at(deadline, self.channel.wait()).await.unwrap_or(Exit::Unknown);
        let host = self.link.host().clone();
        let text = self.stray.trim().to_owned();
        if exit == Exit::Unknown && !self.link.is_alive().await {
            return ShipError::Link(super::LinkError::Lost { host });
        }
        match self.from {
            // It ends in order, and without a word, if its input has ended before anything was in
            // it.
            "the worker" if exit == Exit::Code(0) => ShipError::NoInput { host, text },
            "the worker" => ShipError::NotExecutable { host, exit, text },
            _ => ShipError::Shell { host, exit, text },
        }
    }
}

/// Adds a line to what was printed, and forgets the oldest beyond the limit.
fn keep(stray: &mut String, line: &[u8]) {
    stray.push_str(&String::from_utf8_lossy(line));
    stray.push('\n');
    let mut surplus = stray.len().saturating_sub(STRAY_BYTES_MAX);
    while !stray.is_char_boundary(surplus) {
        surplus += 1;
    }
    stray.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};
    use std::process::Command;

    use super::*;

    /// What a shell says to a script in which the further places are others.
    fn said(script: &str, places: &str) -> String {
        let script = script.replace(FURTHER_PLACES, places);
        let output = Command::new("/bin/sh")
            .args(["-c", &script])
            .env_remove("XDG_CACHE_HOME")
            .env("HOME", "/proc/nonexistent")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_further_place_that_is_a_link_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        let program = real.join("bin/abc/crewboss");
        std::fs::create_dir_all(real.join("bin/abc")).unwrap();
        // By a child: while another thread starts a program, that has open what this process
        // writes, and nobody can run it.
        let write = r##"printf '#!/bin/sh\necho started\n' >"$0" && chmod 755 "$0""##;
        assert!(Command::new("sh").args(["-c", write]).arg(&program).status().unwrap().success());
        symlink(&real, &link).unwrap();

        let start = start_script("abc", "");
        assert!(said(&start, real.to_str().unwrap()).contains("started"));
        let answer = said(&start, link.to_str().unwrap());
        assert!(answer.starts_with("@cb-ship absent"), "{answer}");
        let answer = said(&upload_script("abc", 1, 0), link.to_str().unwrap());
        assert!(answer.contains("it is a link") && answer.contains("@cb-ship nowhere"), "{answer}");
    }

    #[test]
    fn a_program_that_others_can_have_changed_is_not_started() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().join("with a space");
        let place = parent.join("place");
        let program = place.join("bin/abc/crewboss");
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        let write = r##"printf '#!/bin/sh\necho started\n' >"$0" && chmod 755 "$0""##;
        assert!(Command::new("sh").args(["-c", write]).arg(&program).status().unwrap().success());
        let script = start_script("abc", "");
        let starts = || said(&script, &format!("'{}'", place.display())).contains("started");
        assert!(starts());
        let directory = place.join("bin/abc");
        for path in [&place, &place.join("bin"), &directory, &program] {
            for (mode, trusted) in [(0o775, false), (0o757, false), (0o1777, false), (0o755, true)] {
                set_mode(path, mode);
                assert_eq!(starts(), trusted, "{} {mode:o}", path.display());
            }
            chown(path, Some(987_654), None).unwrap();
            assert!(!starts(), "{}", path.display());
            chown(path, Some(0), None).unwrap();
        }
        // In a directory that others may write to they can rename the place, unless it is one such
        // as /tmp.
        for (mode, group, trusted) in
            [(0o777, 0, false), (0o1777, 0, true), (0o775, 987, false), (0o775, 0, true)]
        {
            set_mode(&parent, mode);
            chown(&parent, None, Some(group)).unwrap();
            assert_eq!(starts(), trusted, "{mode:o}");
            let answer = said(&upload_script("abc", 1, 0), &format!("'{}'", place.display()));
            assert_eq!(answer.contains("other users can write to it, or"), !trusted, "{answer}");
        }
        for (path, target) in [(&program, "/bin/true"), (&directory, "/"), (&place.join("bin"), "/bin/..")] {
            let away = dir.path().join("away");
            std::fs::rename(path, &away).unwrap();
            symlink(target, path).unwrap();
            assert!(!starts(), "{}", path.display());
            std::fs::remove_file(path).unwrap();
            std::fs::rename(&away, path).unwrap();
        }
        assert!(starts());
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
}
