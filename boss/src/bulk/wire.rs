//! Lines and frames of a bulk channel, in blocking reads and writes.

use std::io::{self, Read, Write};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crewboss_protocol::HostName;
use crewboss_protocol::bulk::{BROKEN, BulkAnswer, BulkRequest, HOLE, HOLE_BYTES_MAX};
use crewboss_protocol::codec::{self, Line, LineDecoder};
use crewboss_protocol::limits::{BULK_CHUNK_BYTES_MAX, LINE_BYTES_MAX, STALL_BYTES};

use super::Output;
use super::error::BulkError;
use super::patience::Meter;

/// One frame and its length.
const BUFFER_BYTES: usize = BULK_CHUNK_BYTES_MAX + 4;

/// What is read as the length of a frame if there is an answer instead of data: that there is none.
/// No frame is so long.
const ANSWER: u32 = u32::from_be_bytes(*b"@cb ");

/// A piece of incoming data.
#[derive(Debug)]
pub(super) enum Piece<'a> {
    Data(&'a [u8]),
    /// So many zeros.
    Hole(u64),
}

/// The thread's view of a channel.
pub(super) struct Wire {
    host: HostName,
    input: Box<dyn Read + Send>,
    output: Output,
    /// Read and not used yet: `buffer[start..end]`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    opened: bool,
    spoilt: bool,
    /// How long the host may work on one request, besides moving data.
    standstill: Duration,
    /// How long it has worked on this one.
    worked: Duration,
    /// What counts as moving.
    meter: Meter,
}

impl Wire {
    pub(super) fn new(
        host: HostName,
        input: Box<dyn Read + Send>,
        output: Output,
        standstill: Duration,
        meter: Meter,
    ) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self {
            host,
            input,
            output,
            buffer,
            start: 0,
            end: 0,
            opened: false,
            spoilt: false,
            standstill,
            worked: Duration::ZERO,
            meter,
        }
    }

    pub(super) fn host(&self) -> &HostName {
        &self.host
    }

    pub(super) fn output(&self) -> Output {
        self.output.clone()
    }

    /// Does a request, unless an earlier one left the channel in an unknown state.
    pub(super) fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, BulkError>,
    ) -> Result<T, BulkError> {
        if self.spoilt {
            return Err(BulkError::Spoilt { host: self.host.clone() });
        }
        self.worked = Duration::ZERO;
        // Also if `work` panics and the thread ends: whoever comes next must not read on in the
        // middle.
        self.spoilt = true;
        let result = work(self);
        self.spoilt = result.as_ref().is_err_and(BulkError::spoils_the_channel);
        result
    }

    pub(super) fn rule(&self, what: impl Into<String>) -> BulkError {
        BulkError::Rule { host: self.host.clone(), what: what.into() }
    }

    pub(super) fn unexpected(&self, answer: &BulkAnswer) -> BulkError {
        let text: String = format!("{answer:?}").chars().take(100).collect();
        self.rule(format!("an answer that was not asked for: {text}"))
    }

    /// Sends a request. Before the first one, whatever a login shell printed is read: a host that
    /// is still printing would not read, and both would wait for each other.
    pub(super) fn request(&mut self, request: &BulkRequest) -> Result<(), BulkError> {
        self.open()?;
        let mut line = Vec::new();
        codec::encode(request, &mut line);
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.write_all(&line).map_err(|source| lost_or(&self.host, source))
    }

    /// Reads more, at least one byte.
    fn fill(&mut self) -> Result<(), BulkError> {
        debug_assert!(self.start == self.end, "nothing is thrown away unread");
        loop {
            match self.input.read(&mut self.buffer) {
                Ok(0) => return Err(BulkError::Lost { host: self.host.clone() }),
                Ok(count) => {
                    (self.start, self.end) = (0, count);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(lost_or(&self.host, source)),
            }
        }
    }

    /// The next answer. A failure that the host reports becomes an error. That it works is no
    /// answer, and only so long good for one request, however many answers that has.
    pub(super) fn answer(&mut self) -> Result<BulkAnswer, BulkError> {
        let mut since = Instant::now();
        loop {
            let line = self.line()?;
            let text = line
                .strip_prefix(codec::PREFIX)
                .ok_or_else(|| self.rule("bytes between the answers of a bulk channel"))?;
            match self.judge(text)? {
                BulkAnswer::Working => {
                    let now = Instant::now();
                    self.worked += now.saturating_duration_since(std::mem::replace(&mut since, now));
                    if self.worked >= self.standstill {
                        let (host, after) = (self.host.clone(), self.standstill);
                        return Err(BulkError::Stalled { host, after, limit: "standstill" });
                    }
                    self.meter.add(STALL_BYTES.into());
                }
                answer => return Ok(answer),
            }
        }
    }

    fn judge(&self, text: &[u8]) -> Result<BulkAnswer, BulkError> {
        match self.parse(text)? {
            BulkAnswer::Failed { kind, text } => {
                Err(BulkError::Remote { host: self.host.clone(), kind, text })
            }
            answer => Ok(answer),
        }
    }

    fn parse(&self, text: &[u8]) -> Result<BulkAnswer, BulkError> {
        codec::parse(text).map_err(|source| BulkError::Decode { host: self.host.clone(), source })
    }

    fn open(&mut self) -> Result<(), BulkError> {
        if !self.opened {
            self.skip_to_open()?;
            self.opened = true;
        }
        Ok(())
    }

    /// Skips what a login shell printed.
    fn skip_to_open(&mut self) -> Result<(), BulkError> {
        loop {
            let line = self.line_in_pieces()?;
            if let Some(text) = line.strip_prefix(codec::PREFIX) {
                return match self.parse(text)? {
                    BulkAnswer::Open => Ok(()),
                    other => Err(self.unexpected(&other)),
                };
            }
        }
    }

    /// A line of bounded length, without its newline; the rest of what was read stays.
    fn line(&mut self) -> Result<Vec<u8>, BulkError> {
        let mut line = Vec::new();
        loop {
            if self.start == self.end {
                self.fill()?;
            }
            let rest = &self.buffer[self.start..self.end];
            let newline = rest.iter().position(|byte| *byte == b'\n');
            let taken = newline.unwrap_or(rest.len());
            if line.len() + taken > LINE_BYTES_MAX {
                let source = codec::DecodeError::TooLong;
                return Err(BulkError::Decode { host: self.host.clone(), source });
            }
            line.extend_from_slice(&rest[..taken]);
            self.start += taken + usize::from(newline.is_some());
            if newline.is_some() {
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(line);
            }
        }
    }

    /// As [`Self::line`], but noise of any length is skipped by the decoder that knows how.
    fn line_in_pieces(&mut self) -> Result<Vec<u8>, BulkError> {
        let mut decoder = LineDecoder::new();
        loop {
            if self.start == self.end {
                self.fill()?;
            }
            let rest = &self.buffer[self.start..self.end];
            let newline = rest.iter().position(|byte| *byte == b'\n');
            let taken = newline.map_or(rest.len(), |at| at + 1);
            decoder.push(&rest[..taken]);
            self.start += taken;
            match decoder.next_line() {
                Some(Line::Ours(text)) => return Ok([codec::PREFIX, text].concat()),
                Some(Line::TooLong) => {
                    let source = codec::DecodeError::TooLong;
                    return Err(BulkError::Decode { host: self.host.clone(), source });
                }
                Some(Line::Stray(_)) if newline.is_some() => return Ok(Vec::new()),
                Some(Line::Stray(_)) | None => {}
            }
        }
    }

    /// Hands data to `take` until the frame that ends it. Returns its length, which never gets over
    /// `max`.
    pub(super) fn frames(
        &mut self,
        what: &str,
        max: u64,
        mut take: impl FnMut(Piece<'_>) -> Result<(), BulkError>,
    ) -> Result<u64, BulkError> {
        let mut total: u64 = 0;
        let add = |wire: &Self, total: u64, count: u64| match total.saturating_add(count) {
            bytes if bytes > max => {
                let (host, what) = (wire.host.clone(), what.to_owned());
                Err(BulkError::Length { host, what, announced: max, bytes })
            }
            bytes => Ok(bytes),
        };
        loop {
            let length = u32::from_be_bytes(self.number()?);
            match length {
                0 => return Ok(total),
                BROKEN => {
                    let answer = self.answer()?;
                    return Err(self.unexpected(&answer));
                }
                HOLE => {
                    let hole = u64::from_be_bytes(self.number()?);
                    if hole == 0 || hole > HOLE_BYTES_MAX {
                        return Err(
                            self.rule(format!("a hole of {hole} bytes; the limit is {HOLE_BYTES_MAX}"))
                        );
                    }
                    total = add(self, total, hole)?;
                    // Both ends have hashed so many zeros.
                    self.meter.add(hole);
                    take(Piece::Hole(hole))?;
                    continue;
                }
                ANSWER if total == 0 => {
                    let answer = self.line().and_then(|rest| self.judge(&rest))?;
                    return Err(self.unexpected(&answer));
                }
                _ => {}
            }
            let mut left = usize::try_from(length).unwrap_or(usize::MAX);
            if left > BULK_CHUNK_BYTES_MAX {
                return Err(
                    self.rule(format!("a frame of {left} bytes; the limit is {BULK_CHUNK_BYTES_MAX}"))
                );
            }
            total = add(self, total, length.into())?;
            while left > 0 {
                if self.start == self.end {
                    self.fill()?;
                }
                let count = left.min(self.end - self.start);
                take(Piece::Data(&self.buffer[self.start..self.start + count]))?;
                self.start += count;
                left -= count;
            }
        }
    }

    fn number<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], BulkError> {
        let mut bytes = [0; BYTES];
        for byte in &mut bytes {
            if self.start == self.end {
                self.fill()?;
            }
            *byte = self.buffer[self.start];
            self.start += 1;
        }
        Ok(bytes)
    }

    /// Receives a log whose request has been sent.
    pub(super) fn log<W: Write>(&mut self, mut sink: W, max: u64) -> Result<(W, u64), BulkError> {
        self.open()?;
        let host = self.host.clone();
        let bytes = self.frames("a log", max, |piece| match piece {
            Piece::Data(data) => sink.write_all(data).map_err(BulkError::Sink),
            Piece::Hole(_) => Err(BulkError::Rule { host: host.clone(), what: "a hole in a log".to_owned() }),
        })?;
        sink.flush().map_err(BulkError::Sink)?;
        Ok((sink, bytes))
    }
}

fn lost_or(host: &HostName, source: io::Error) -> BulkError {
    match source.kind() {
        io::ErrorKind::BrokenPipe => BulkError::Lost { host: host.clone() },
        _ => BulkError::Io { host: host.clone(), source },
    }
}

/// Writes data as frames, each in one write.
pub(super) struct FrameWriter<W: Write> {
    output: W,
    /// Room for a length, then data.
    buffer: Vec<u8>,
    broken: bool,
}

impl<W: Write> FrameWriter<W> {
    pub(super) fn new(output: W) -> Self {
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        buffer.extend([0; 4]);
        Self { output, buffer, broken: false }
    }

    /// Whether writing to the channel has failed.
    pub(super) fn broken(&self) -> bool {
        self.broken
    }

    fn send(&mut self) -> io::Result<()> {
        let length = u32::try_from(self.buffer.len() - 4).unwrap_or(BROKEN);
        self.buffer[..4].copy_from_slice(&length.to_be_bytes());
        let sent = self.output.write_all(&self.buffer);
        self.broken |= sent.is_err();
        self.buffer.truncate(4);
        sent
    }

    fn end(&mut self, last: u32) -> io::Result<()> {
        let sent = self.output.write_all(&last.to_be_bytes()).and_then(|()| self.output.flush());
        self.broken |= sent.is_err();
        sent
    }

    /// All data is written.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.end(0)
    }

    /// The data cannot be completed.
    pub(super) fn abandon(mut self) -> io::Result<()> {
        self.end(BROKEN)
    }
}

impl<W: Write> Write for FrameWriter<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = data.len().min(BUFFER_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&data[..count]);
        if self.buffer.len() == BUFFER_BYTES {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.len() > 4 { self.send() } else { Ok(()) }
    }
}
