//! Which accelerator guests run with: found out by starting a tiny guest, with a time limit.
//!
//! That `/dev/kvm` opens says nothing about whether a guest runs: there are hosts where it hangs,
//! or where QEMU aborts. So the guest of [`super::rom`] is run with the processor that guests
//! get, and what it printed is the reason that a person reads. The answer is kept until the host
//! boots again, or QEMU or the kernel change; that a KVM which opens does not work for an hour
//! only, since the host may just have been too busy for the time limit.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crewboss_ground::{Replace, read_record};
use crewboss_host::layout::Layout;
use crewboss_host::{process, sys};
use crewboss_protocol::machine::{AccelChoice, Accelerator, Emulator};
use crewboss_protocol::message::Hello;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use super::child::{Child, Ended};
use super::command::{default_cpu, trial_arguments};
use super::error::QemuError;
use super::process::{Channel, launch};
use super::rom::{self, STEPS};
use super::version::{Identity, Program, Version};

/// What KVM is reached by.
const KVM: &str = "/dev/kvm";

/// A trial guest takes a tenth of a second in KVM. Emulation is tried on busy hosts too, and there
/// is nothing after it.
const KVM_LIMIT: Duration = Duration::from_secs(5);
const TCG_LIMIT: Duration = Duration::from_secs(20);

/// A KVM that opens and does not work is tried again after this.
const DISTRUST_MAX: Duration = Duration::from_secs(3600);

/// A file larger than this is not ours.
const CACHE_BYTES_MAX: u64 = 64 << 10;

/// Longest words of QEMU in a reason.
const SAID_BYTES_MAX: usize = 300;

/// What guests of this host run with. `None` if it has no machine directory: then nobody asks, and
/// nothing is tried.
pub fn of_host(layout: &Layout, hello: &Hello) -> Option<Result<Emulator, QemuError>> {
    let machines = hello.machines.as_ref().map_or_else(|| layout.work().join("machines"), PathBuf::from);
    machines.is_dir().then(|| find(&layout.emulator_cache(), hello.accel, hello.refresh))
}

/// Finds out what guests of this host run with. What an earlier call found is taken from the file
/// `cache` unless `refresh` says to try anew. What a crew file says is taken as it is, without a
/// trial.
///
/// # Errors
/// If there is no QEMU that can be used.
pub fn find(cache: &Path, choice: AccelChoice, refresh: bool) -> Result<Emulator, QemuError> {
    let host = Host { program: Program::find()?, kvm: KVM.into(), limits: (KVM_LIMIT, TCG_LIMIT) };
    host.find(cache, choice, refresh)
}

struct Host {
    program: Program,
    kvm: PathBuf,
    limits: (Duration, Duration),
}

/// What an earlier call found out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Known {
    program: Identity,
    version: Version,
    trial: Option<(Key, Accelerator, String)>,
    /// When that was, in seconds since 1970.
    #[serde(default)]
    tried: u64,
}

/// What the outcome of a trial depends on, besides QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    kernel: String,
    /// Settings of the firmware and of the host's own host come into force with a boot.
    boot: String,
    /// Why KVM cannot be opened, if it cannot: the user may be let into its group at any time.
    closed: Option<String>,
    cpus: [String; 2],
}

impl Host {
    fn find(&self, cache: &Path, choice: AccelChoice, refresh: bool) -> Result<Emulator, QemuError> {
        let known = if refresh { None } else { Known::load(cache) };
        let known = known.filter(|known| known.program == *self.program.identity());
        let mut found = match &known {
            Some(known) => known.clone(),
            None => {
                let version = self.program.version()?;
                Known { program: self.program.identity().clone(), version, trial: None, tried: 0 }
            }
        };
        let version = found.version.to_string();
        let (accelerator, why) = match choice {
            AccelChoice::Only(accelerator) => (accelerator, "set in the crew file".to_owned()),
            AccelChoice::Auto => {
                let key = self.key();
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let trial = match found.trial.take().filter(|(of, ..)| *of == key) {
                    Some(trial) if !is_doubtful(&trial) || is_recent(found.tried, now) => trial,
                    _ => {
                        found.tried = now.as_secs();
                        self.choose(key)?
                    }
                };
                let answer = (trial.1, trial.2.clone());
                found.trial = Some(trial);
                answer
            }
        };
        if known.as_ref() != Some(&found) {
            // The next call then only takes longer.
            found.store(cache).ok();
        }
        Ok(Emulator { version, accelerator, why })
    }

    #[expect(clippy::disallowed_methods, reason = "a device of the system")]
    fn key(&self) -> Key {
        let kernel =
            crewboss_ground::kernel_text("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        let closed = File::options().read(true).write(true).open(&self.kvm).err();
        let cpus = [Accelerator::Kvm, Accelerator::Tcg].map(|of| default_cpu(of).to_owned());
        Key { kernel, boot: process::boot_id(), closed: closed.map(|error| error.to_string()), cpus }
    }

    fn choose(&self, key: Key) -> Result<(Key, Accelerator, String), QemuError> {
        let kvm = self.kvm.display();
        let why_not = match &key.closed {
            Some(error) => format!("{kvm} cannot be opened: {error}"),
            None => match self.trial(Accelerator::Kvm, default_cpu(Accelerator::Kvm))? {
                Ok(took) => return Ok((key, Accelerator::Kvm, passed(took))),
                Err(why) => format!("{kvm} opens, but {why}"),
            },
        };
        match self.trial(Accelerator::Tcg, default_cpu(Accelerator::Tcg))? {
            Ok(_) => Ok((key, Accelerator::Tcg, why_not)),
            Err(why) => Err(QemuError::Trial { why: format!("{why} under emulation, and {why_not}") }),
        }
    }

    /// Runs the trial guest: how long it took, or what it did instead.
    fn trial(&self, accelerator: Accelerator, cpu: &str) -> Result<Result<Duration, String>, QemuError> {
        let limit = if accelerator == Accelerator::Kvm { self.limits.0 } else { self.limits.1 };
        let begin = Instant::now();
        let rom = rom_file()?;
        let console = Channel::new("the console")?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", rom.as_raw_fd()));
        let arguments = trial_arguments(accelerator, cpu, &path, console.theirs.as_raw_fd());
        let descriptors = [console.theirs.as_fd(), rom.as_fd()];
        let child = launch(&self.program, arguments, Path::new("/"), &descriptors)?;
        drop((console.theirs, rom));
        let mut trial = Trial { child, console: Some(console.ours), printed: 0, garbage: None };
        let ended = trial.run(begin + limit);
        let verdict = if trial.printed == expected().len() && trial.garbage.is_none() {
            Ok(begin.elapsed())
        } else {
            Err(trial.complaint(ended, limit))
        };
        // A QEMU that cannot be killed hangs in the kernel: whatever it printed, it must not run
        // guests.
        let killed = trial.child.kill();
        Ok(if killed { verdict } else { Err("a trial guest could not be killed".to_owned()) })
    }
}

fn passed(took: Duration) -> String {
    format!("a trial guest ran in it in {:.1} s", took.as_secs_f64())
}

/// The image as a file without a name: nothing of it is left, whatever happens.
fn rom_file() -> Result<OwnedFd, QemuError> {
    let failed = |source| QemuError::Channel { what: "the ROM", source };
    let rom = rustix::fs::memfd_create("crewboss-trial", MemfdFlags::CLOEXEC);
    let mut rom = File::from(rom.map_err(|error| failed(error.into()))?);
    rom.write_all(&rom::image()).map_err(failed)?;
    Ok(rom.into())
}

/// What the trial guest prints if all goes well.
fn expected() -> Vec<u8> {
    STEPS.iter().map(|(letter, _)| *letter).chain([b'\n']).collect()
}

struct Trial {
    child: Child,
    console: Option<OwnedFd>,
    /// How much of what is expected was printed.
    printed: usize,
    garbage: Option<String>,
}

impl Trial {
    /// Until it has printed all, or something else, or has ended, or the time is over. How it
    /// ended, if it has.
    fn run(&mut self, until: Instant) -> Option<Ended> {
        while self.printed < expected().len() && self.garbage.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            let pidfd = self.child.fd();
            let mut fds = vec![PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
            fds.extend(self.console.as_ref().map(|console| PollFd::new(console, PollFlags::IN)));
            fds.extend(self.child.words_fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            let polled = sys::poll(&mut fds, Some(left));
            self.child.hear();
            let ended = self.child.try_ended();
            // After the look whether it has ended, so that nothing it printed is missed.
            self.read();
            if ended.is_some() || polled.is_err() || left.is_zero() {
                return ended;
            }
        }
        None
    }

    fn read(&mut self) {
        let expected = expected();
        let mut buffer = [0; 64];
        while let Some(console) = &self.console {
            let len = match rustix::io::read(console, &mut buffer) {
                Ok(0) => return self.console = None,
                Ok(len) => len,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => return self.console = None,
            };
            let next = expected.get(self.printed..self.printed + len);
            if next != Some(&buffer[..len]) {
                let right = expected[self.printed..].iter().zip(&buffer[..len]).take_while(|(a, b)| a == b);
                self.printed += right.count();
                self.garbage = Some(String::from_utf8_lossy(&buffer[..len]).into_owned());
                return;
            }
            self.printed += len;
        }
    }

    fn complaint(&self, ended: Option<Ended>, limit: Duration) -> String {
        let step = match self.printed.min(STEPS.len()) {
            0 => "before step 1 (real mode)".to_owned(),
            step => format!("after step {step} ({})", STEPS[step - 1].1),
        };
        let said = self.child.said();
        let said = gist(&said).map(|line| format!(": {line}")).unwrap_or_default();
        match (ended, &self.garbage) {
            (_, Some(garbage)) => format!("a trial guest printed {garbage:?} {step}"),
            (Some(ended), None) => format!("QEMU ended {step} of a trial guest by {ended}{said}"),
            (None, None) => format!("a trial guest hung {step} for {} s{said}", limit.as_secs()),
        }
    }
}

/// The first line of QEMU's words that is no mere warning, in one line with the rest of the reason.
fn gist(said: &str) -> Option<&str> {
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains("warning:"));
    let line = lines.next()?;
    let line = line.strip_prefix("qemu-system-x86_64: ").unwrap_or(line);
    Some(&line[..line.floor_char_boundary(SAID_BYTES_MAX)])
}

/// Whether KVM opened and did not work.
fn is_doubtful((key, accelerator, _): &(Key, Accelerator, String)) -> bool {
    *accelerator == Accelerator::Tcg && key.closed.is_none()
}

fn is_recent(tried: u64, now: Duration) -> bool {
    // A time to come is that of a clock that was set back since.
    now.checked_sub(Duration::from_secs(tried)).is_some_and(|age| age < DISTRUST_MAX)
}

impl Known {
    fn load(path: &Path) -> Option<Self> {
        serde_json::from_slice(&read_record(path, CACHE_BYTES_MAX).ok()??).ok()
    }

    /// Writes it, whole or not at all.
    fn store(&self, path: &Path) -> std::io::Result<()> {
        Ok(Replace::with_mode(0o600).path(path, &serde_json::to_vec(self)?)?)
    }
}

#[cfg(test)]
#[path = "accelerator_tests.rs"]
mod tests;
