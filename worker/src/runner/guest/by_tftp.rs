//! A task that a guest without our agent runs: it gets everything by TFTP, and puts its result when
//! it is done.

use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crewboss_ground::{Open, read_record};
use crewboss_host::program::run::Stream;
use crewboss_machine::books::record::Step;
use crewboss_machine::books::room;
use crewboss_machine::guest::running::{GuestEvent, Way};
use crewboss_machine::guest::verdict::Stop;
use crewboss_machine::images::files::{ARTIFACTS, ERR, LOG, RESULT, STAGE};
use crewboss_protocol::guest::ResultDocument;
use crewboss_protocol::{Outcome, Phase, StageExit, chain};

use super::Task;

/// A result is a few lines; a guest that puts more of them lies.
const RESULT_BYTES_MAX: u64 = 1 << 20;

/// Longest word that names a stage.
const STAGE_BYTES_MAX: u64 = 256;

/// What is read of a log at once.
const PIECE_BYTES: usize = 64 << 10;

impl Task<'_> {
    /// Waits for the result, then takes in what the guest has put.
    pub(super) fn run_by_tftp(&mut self) -> Result<Outcome, Stop> {
        let limit = Duration::from_millis(self.spec.target.timeout_ms);
        let deadline = Instant::now() + limit;
        let build = self.build();
        self.guests[build].advance(Step::Running)?;
        self.watch.begin(Phase::Stages);
        let mut told = 0;
        loop {
            match self.next(deadline)? {
                None => return Err(Stop::Timeout { phase: self.watch.phase(), limit, load: None }),
                Some(GuestEvent::Put(name)) if name == RESULT => break,
                Some(GuestEvent::Put(name)) if name == STAGE => self.hear_of_stage(&mut told),
                Some(GuestEvent::Source(Way::Begun)) if told == 0 => self.watch.begin(Phase::Preparing),
                Some(GuestEvent::Source(Way::Ended)) if told == 0 => self.watch.begin(self.first_phase()),
                Some(GuestEvent::Putting(name)) if [LOG, ERR, ARTIFACTS].contains(&name.as_str()) => {
                    // How it has ended, the result says, if there ever is one.
                    self.end_stage(StageExit::Lost);
                    self.watch.begin(Phase::Collecting);
                }
                Some(_) => {}
            }
        }
        self.guests[build].advance(Step::Collecting)?;
        self.watch.begin(Phase::Collecting);
        self.take_logs()?;
        let result = self.result_document()?;
        let mut outcome = self.judge(&result)?;
        for stage in &result.stages {
            let phase = Phase::Stage(stage.name.clone());
            let ended = self.watch.clock.ended();
            // Of those that it has told, the time is known already.
            if ended.iter().all(|known| known.phase != phase) {
                ended.concede(&Phase::Stages, phase, stage.wall_ms);
            }
        }
        self.rss_kib = result.rss_kib_max;
        (self.sizes, self.message) = (result.sizes, result.message);
        self.stages = result.stages;
        let archive = self.put_file(ARTIFACTS);
        let bytes = archive.metadata().map_or(0, |found| found.len());
        self.unpack(&archive, bytes, result.problems, &mut outcome)?;
        Ok(outcome)
    }

    /// What it is at when it has its source and has told no stage: it may be one that never does.
    fn first_phase(&self) -> Phase {
        match self.spec.target.stages.as_slice() {
            [only] => Phase::Stage(only.name.clone()),
            _ => Phase::Stages,
        }
    }

    /// The guest says which stage begins. What it cannot be, since that was earlier or is none of
    /// the task's, is passed over.
    fn hear_of_stage(&mut self, told: &mut usize) {
        // What is longer than any name, or cannot be read, is none.
        let told_last =
            read_record(&self.put_file(STAGE), STAGE_BYTES_MAX).ok().flatten().unwrap_or_default();
        let text = String::from_utf8_lossy(&told_last);
        let stages = &self.spec.target.stages;
        let found =
            stages.iter().enumerate().skip(*told).find(|(_, stage)| stage.name.as_str() == text.trim_end());
        let Some((index, stage)) = found else { return };
        *told = index + 1;
        let phase = Phase::Stage(stage.name.clone());
        // An only stage is known before it is told.
        if self.watch.phase() != phase {
            // Else it would not have come to the next one.
            self.end_stage(StageExit::Code(0));
            self.watch.begin(phase);
        }
    }

    fn put_file(&self, name: &str) -> std::path::PathBuf {
        self.guests[self.build()].put_file(name)
    }

    fn result_document(&self) -> Result<ResultDocument, Stop> {
        let mut text = String::new();
        let read = Open::read()
            .path(&self.put_file(RESULT))
            .map_err(std::io::Error::from)
            .and_then(|file| file.take(RESULT_BYTES_MAX).read_to_string(&mut text));
        read.map_err(|error| self.unreadable(error.to_string()))?;
        ResultDocument::parse(&text).map_err(|error| self.unreadable(chain(&error)))
    }

    /// The stages that a guest reports must be those that it was given, in their order, up to the
    /// first that failed.
    fn judge(&self, result: &ResultDocument) -> Result<Outcome, Stop> {
        let (given, ran) = (&self.spec.target.stages, &result.stages);
        let in_order = ran.iter().zip(given).all(|(ran, given)| ran.name == given.name);
        let bad = ran.iter().position(|stage| !stage.exit.is_success());
        let whole = match bad {
            None => ran.len() == given.len(),
            Some(bad) => bad + 1 == ran.len(),
        };
        if !in_order || !whole || ran.len() > given.len() {
            return Err(self.unreadable("its stages are not those of the task".to_owned()));
        }
        Ok(if bad.is_some() { Outcome::Failure } else { Outcome::Success })
    }

    /// The console has shown it live already, so it only goes into the logs.
    fn take_logs(&mut self) -> Result<(), Stop> {
        for (name, stream) in [(LOG, Stream::Out), (ERR, Stream::Err)] {
            let path = self.put_file(name);
            let (bytes, left) = (path.metadata().map_or(0, |found| found.len()), room::left(&self.job.dir));
            if bytes > left {
                let (has, left) = (bytes >> 20, left >> 20);
                return Err(
                    self.too_much(format!("its {name} has {has} MiB, and the host has room for {left}"))
                );
            }
            self.take_log(&path, stream).map_err(|error| self.not_stored(&error))?;
        }
        Ok(())
    }

    fn take_log(&mut self, path: &Path, stream: Stream) -> std::io::Result<()> {
        let Ok(mut file) = Open::read().path(path) else { return Ok(()) };
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let len = file.read(&mut piece)?;
            if len == 0 {
                return Ok(());
            }
            match stream {
                Stream::Out => self.output.store(self.watch.link, Stream::Out, &piece[..len])?,
                Stream::Err => self.output.note_err(&piece[..len])?,
            }
        }
    }
}
