//! The two directions of a bulk channel: lines and frames, with as few and as large reads and
//! writes as possible.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::mpsc;
use std::time::Duration;

use crewboss_protocol::bulk::{BROKEN, BulkAnswer, BulkErrorKind, HOLE, HOLE_BYTES_MAX};
use crewboss_protocol::codec;
use crewboss_protocol::limits::{BULK_CHUNK_BYTES_MAX, LINE_BYTES_MAX, STALL};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{End, Failure};

/// What is collected before it is written: several frames, many small files.
const OUTPUT_BYTES: usize = 1 << 20;

/// The largest pipe that an ordinary user may ask for by default.
const PIPE_BYTES: usize = 1 << 20;

/// How often the boss hears that a request that brings no data is being worked on: well within the
/// time in which a transfer counts as standing still.
const WORKING_EVERY: Duration = Duration::from_secs(2);
const _: () = assert!(5 * WORKING_EVERY.as_secs() < STALL.as_secs());

/// The length of a frame's length.
pub(super) const FRAME_HEAD: usize = 4;

const _: () = assert!(LINE_BYTES_MAX >= BULK_CHUNK_BYTES_MAX + FRAME_HEAD);

/// One piece of incoming data.
#[derive(Debug)]
pub(super) enum Frame<'a> {
    Data(&'a [u8]),
    End,
    Broken,
}

/// The incoming direction.
pub(super) struct Input<'a> {
    file: BorrowedFd<'a>,
    buffer: Vec<u8>,
    start: usize,
}

impl<'a> Input<'a> {
    pub(super) fn new(file: BorrowedFd<'a>) -> Self {
        Self { file, buffer: Vec::with_capacity(LINE_BYTES_MAX + FRAME_HEAD), start: 0 }
    }

    /// The next line without its newline; `None` if the channel ended before it.
    pub(super) fn line(&mut self) -> Result<Option<&[u8]>, End> {
        let mut scanned = 0;
        loop {
            let pending = &self.buffer[self.start..];
            if let Some(length) = pending[scanned..].iter().position(|&b| b == b'\n') {
                let from = self.start;
                self.start += scanned + length + 1;
                return Ok(Some(&self.buffer[from..self.start - 1]));
            }
            scanned = pending.len();
            if scanned >= LINE_BYTES_MAX {
                return Err(End::Lost(Failure::new(
                    BulkErrorKind::Protocol,
                    "a line is longer than the limit",
                )));
            }
            if !self.fill()? {
                return if scanned == 0 { Ok(None) } else { Err(End::Closed) };
            }
        }
    }

    /// As [`Self::line`], if something arrives within this time; `None` if nothing does.
    pub(super) fn line_within(&mut self, time: Duration) -> Result<Option<&[u8]>, End> {
        if self.start == self.buffer.len() {
            let time = Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&time)) {
                Ok(0) | Err(Errno::INTR) => return Ok(None),
                Ok(_) => {}
                Err(_) => return Err(End::Closed),
            }
        }
        self.line()?.map_or(Err(End::Closed), |line| Ok(Some(line)))
    }

    /// The next piece of data.
    pub(super) fn frame(&mut self) -> Result<Frame<'_>, End> {
        let head = self.take(FRAME_HEAD)?;
        let length = u32::from_be_bytes(head.try_into().unwrap_or([0xff; FRAME_HEAD]));
        match usize::try_from(length) {
            _ if length == BROKEN => Ok(Frame::Broken),
            Ok(0) => Ok(Frame::End),
            Ok(length) if length <= BULK_CHUNK_BYTES_MAX => self.take(length).map(Frame::Data),
            _ => Err(End::Lost(Failure::new(
                BulkErrorKind::Protocol,
                format!("a frame of {length} bytes is over the limit of {BULK_CHUNK_BYTES_MAX}"),
            ))),
        }
    }

    fn take(&mut self, length: usize) -> Result<&[u8], End> {
        while self.buffer.len() - self.start < length {
            if !self.fill()? {
                return Err(End::Closed);
            }
        }
        let from = self.start;
        self.start += length;
        Ok(&self.buffer[from..self.start])
    }

    /// Reads as much as there is and fits; false at the end.
    fn fill(&mut self) -> Result<bool, End> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        loop {
            match rustix::io::read(self.file, spare_capacity(&mut self.buffer)) {
                Ok(count) => return Ok(count > 0),
                Err(Errno::INTR) => {}
                Err(_) => return Err(End::Closed),
            }
        }
    }
}

/// The outgoing direction.
pub(super) struct Output<'a> {
    file: BorrowedFd<'a>,
    buffer: Vec<u8>,
}

impl<'a> Output<'a> {
    pub(super) fn new(file: BorrowedFd<'a>) -> Self {
        // Fails for sockets, and where pipes are limited: then it is only slower.
        rustix::pipe::fcntl_setpipe_size(file, PIPE_BYTES).ok();
        Self { file, buffer: Vec::with_capacity(OUTPUT_BYTES) }
    }

    /// Does what brings no data, and lets the boss know every few seconds that it is being done.
    pub(super) fn working<T>(&self, work: impl FnOnce() -> T) -> T {
        let file = self.file;
        let (done, ended) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let say = move || {
                let mut line = Vec::new();
                codec::encode(&BulkAnswer::Working, &mut line);
                while ended.recv_timeout(WORKING_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                    // So little goes into a pipe in one piece. If nobody hears it, that shows with
                    // the answer.
                    let _said = rustix::io::write(file, &line);
                }
            };
            // Without it a boss only has less patience.
            let _told = std::thread::Builder::new().name("working".to_owned()).spawn_scoped(scope, say);
            let result = work();
            drop(done);
            result
        })
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Adds a line. It is written at the next [`Self::flush`], or when the buffer is full.
    pub(super) fn answer(&mut self, answer: &BulkAnswer) {
        codec::encode(answer, &mut self.buffer);
    }

    /// Writes what is there if it is much, so that lines alone cannot fill the memory.
    pub(super) fn relieve(&mut self) -> Result<(), End> {
        if self.buffer.len() >= OUTPUT_BYTES / 2 { self.flush() } else { Ok(()) }
    }

    /// Adds a frame with up to `limit` bytes read from a file, and hands them out as well. Empty at
    /// the file's end; then nothing is added.
    pub(super) fn frame_from(&mut self, file: BorrowedFd<'_>, limit: u64) -> Result<io::Result<&[u8]>, End> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(BULK_CHUNK_BYTES_MAX);
        if self.buffer.capacity() - self.buffer.len() < limit + FRAME_HEAD {
            self.flush()?;
        }
        let head = self.buffer.len();
        self.buffer.extend_from_slice(&[0; FRAME_HEAD]);
        let from = self.buffer.len();
        let read = read_up_to(file, &mut self.buffer, limit);
        let count = self.buffer.len() - from;
        if count == 0 || read.is_err() {
            self.buffer.truncate(head);
            return Ok(read.map(|()| [].as_slice()));
        }
        let length = u32::try_from(count).unwrap_or(BROKEN);
        self.buffer[head..from].copy_from_slice(&length.to_be_bytes());
        Ok(Ok(&self.buffer[from..]))
    }

    /// Tells of a hole in place of data, and lets the boss hear of it.
    pub(super) fn hole(&mut self, bytes: u64) -> Result<(), End> {
        self.raw(&HOLE.to_be_bytes());
        self.raw(&bytes.to_be_bytes());
        if bytes == HOLE_BYTES_MAX { self.flush() } else { self.relieve() }
    }

    /// Ends the data.
    pub(super) fn end_frames(&mut self) {
        self.raw(&0_u32.to_be_bytes());
    }

    /// Says that the data cannot be completed.
    pub(super) fn break_frames(&mut self) {
        self.raw(&BROKEN.to_be_bytes());
    }

    /// Writes everything.
    pub(super) fn flush(&mut self) -> Result<(), End> {
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            match rustix::io::write(self.file, rest) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(_) => return Err(End::Closed),
            }
        }
        self.buffer.clear();
        Ok(())
    }
}

/// Appends up to `limit` bytes of a file with one read, if the buffer has the room.
fn read_up_to(file: BorrowedFd<'_>, buffer: &mut Vec<u8>, limit: usize) -> io::Result<()> {
    let from = buffer.len();
    let room = buffer.spare_capacity_mut();
    let limit = limit.min(room.len());
    let count = loop {
        match rustix::io::read(file, &mut room[..limit]) {
            Ok((read, _)) => break read.len(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    // SAFETY: the kernel has just written this many bytes behind the old length, inside the
    // capacity.
    unsafe { buffer.set_len(from + count) };
    Ok(())
}
