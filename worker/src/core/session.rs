//! What a session makes on the host before it takes work, and how it goes away.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crewboss_ground::{Fault, Open};
use crewboss_host::layout::Layout;
use crewboss_host::owner::Owner;
use crewboss_host::process::{ProcessId, boot_id};
use crewboss_host::{cgroup, short};
use crewboss_machine::images::directory::Machines;
use crewboss_protocol::clean::CleanReport;
use crewboss_protocol::message::{Hello, WorkerErrorKind};

use crate::prune::{self, Aside};
use crate::slots::lock_as_user;
use crate::sweep::{remove_leftovers, sweep_dead};

/// The file that tells of a live boss is touched at most this often.
const TOUCH_EVERY: Duration = Duration::from_secs(1);

/// Why a session cannot begin.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct CannotBegin {
    /// The kind, for the boss.
    pub kind: WorkerErrorKind,
    /// A sentence for a person.
    pub text: String,
}

impl CannotBegin {
    fn at(layout: &Layout, error: &io::Error) -> Self {
        let kind = if crewboss_host::storage::is_no_space(error) {
            WorkerErrorKind::NoSpace
        } else {
            WorkerErrorKind::WorkDirectory
        };
        Self { kind, text: format!("the work directory {} cannot be used: {error}", layout.work().display()) }
    }
}

impl CannotBegin {
    /// A hint only where another directory is what helps.
    fn not_ours(layout: &Layout, error: crewboss_ground::Error) -> Self {
        let hint = match error.fault {
            Fault::Owner { .. } => {
                "; hint: users of a host do not share a work directory; give this one its own by `work = \"...\"` in crew.toml"
            }
            _ => "",
        };
        let Self { kind, text } = Self::at(layout, &error.into());
        Self { kind, text: format!("{text}{hint}") }
    }
}

/// A session that owns a directory.
#[derive(Debug)]
pub struct Session {
    layout: Layout,
    owner: Owner,
    alive: Option<File>,
    touched: Option<Instant>,
    aside: Aside,
    _user: File,
}

impl Session {
    /// Sweeps what the dead left, then writes down who we are, then makes the control group.
    ///
    /// # Errors
    /// If the work directory cannot be used, or another worker has this very session.
    pub fn begin(layout: &Layout, hello: &Hello, guardian: u32) -> Result<(Self, CleanReport), CannotBegin> {
        let fail = |error: io::Error| CannotBegin::at(layout, &error);
        layout.make().map_err(|error| CannotBegin::not_ours(layout, error))?;
        // As long as nobody is here, we included.
        let aside = prune::set_aside(layout).map_err(fail)?;
        let user = lock_as_user(layout).map_err(fail)?;
        let unusable = |text| CannotBegin { kind: WorkerErrorKind::WorkDirectory, text };
        let machines = Machines::resolve(layout, hello.machines.as_deref()).map_err(unusable)?;
        machines
            .check()
            .map_err(|error| unusable(format!("the machine directory cannot be used: {error}")))?;
        let swept = sweep_dead(layout, &machines, hello);
        if layout.session(&hello.session).exists() {
            return Err(unusable(format!("session {} is in use on this host already", hello.session)));
        }
        let dead = || io::Error::other("this process has no entry in /proc");
        let worker = ProcessId::own().ok_or_else(dead).map_err(fail)?;
        let mut owner = Owner {
            session: hello.session.clone(),
            boss: hello.boss.clone(),
            run: hello.run.clone(),
            host: hello.host.clone(),
            priority: hello.priority,
            silence_ms: hello.silence_ms,
            boot: boot_id(),
            guardian: ProcessId::of(guardian).unwrap_or_else(|| worker.clone()),
            worker,
            cgroup: cgroup::plan(&hello.session),
            machines: Some(machines.root().to_owned()),
            short: None,
        };
        owner.write(layout).map_err(fail)?;
        short::make(|path| {
            owner.short = path.map(Path::to_owned);
            owner.write(layout)
        })
        .map_err(fail)?;
        if owner.cgroup.as_deref().is_some_and(|group| !cgroup::enter(group)) {
            owner.cgroup = None;
            owner.write(layout).map_err(fail)?;
        }
        let alive = Open::append().path(&layout.alive(&hello.session)).ok();
        let session = Self { layout: layout.clone(), owner, alive, touched: None, aside, _user: user };
        Ok((session, swept))
    }

    /// Where the session's attempts go.
    pub fn directory(&self) -> PathBuf {
        self.layout.session(&self.owner.session)
    }

    /// The number of our guardian's process.
    pub fn guardian(&self) -> u32 {
        self.owner.guardian.pid
    }

    /// The directory with short ways to attempts, if there is one.
    pub fn short(&self) -> Option<&Path> {
        self.owner.short.as_deref()
    }

    /// What nobody needs any more and has to be removed, for the one who asks first.
    pub fn take_aside(&mut self) -> Aside {
        std::mem::take(&mut self.aside)
    }

    /// Notes that the boss was heard.
    pub fn heard(&mut self, now: Instant) {
        if self.touched.is_none_or(|then| now.duration_since(then) >= TOUCH_EVERY) {
            self.touched = Some(now);
            if let Some(file) = &self.alive {
                // Without it the session only looks forsaken to `clean`, and only if the worker
                // hangs as well.
                let _untouched = file.set_modified(SystemTime::now());
            }
        }
    }

    /// Removes everything of the session. Its processes must have been ended.
    pub fn end(self) -> CleanReport {
        if let Some(group) = &self.owner.cgroup {
            cgroup::leave(group);
        }
        let mut report = CleanReport::default();
        remove_leftovers(&self.layout, &self.owner.session, Some(&self.owner), &mut report);
        report
    }
}
