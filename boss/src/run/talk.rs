//! A session in which little is said: messages one after the other, without a plan or a store
//! behind them.

use std::time::Duration;

use crewboss_protocol::codec::{DecodeError, Line, LineDecoder, encode, parse};
use crewboss_protocol::{FromWorker, ToWorker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::time::{Instant, timeout};

use super::awake::forgiven;
use super::live::{last_words, one_line};
use super::session_error::SessionError;
use super::site::QUIT_WITHIN;
use crate::crew::Timing;
use crate::link::{ChannelGuard, ChannelReader, Link};

/// A worker that listens.
pub(crate) struct Talk {
    link: Link,
    stdin: pipe::Sender,
    stdout: ChannelReader,
    guard: ChannelGuard,
    decoder: LineDecoder,
    buffer: Vec<u8>,
    heard: Instant,
}

impl Talk {
    pub(super) fn new(
        link: Link,
        (stdin, stdout, guard): (pipe::Sender, ChannelReader, ChannelGuard),
        decoder: LineDecoder,
    ) -> Self {
        let buffer = Vec::with_capacity(16 << 10);
        Self { link, stdin, stdout, guard, decoder, buffer, heard: Instant::now() }
    }

    /// Says something. That nobody hears it shows by [`Self::next`].
    pub(crate) async fn say(&mut self, message: &ToWorker) {
        let mut line = Vec::new();
        encode(message, &mut line);
        self.stdin.write_all(&line).await.ok();
    }

    /// Takes note that our own heartbeat comes, which was due at `due`.
    pub(crate) fn beat(&mut self, due: Instant, timing: &Timing) {
        self.heard = forgiven(self.heard, due, timing, Instant::now());
    }

    /// How long nothing has been heard.
    pub(crate) fn silence(&self) -> Duration {
        self.heard.elapsed()
    }

    /// The next message. Whoever stops waiting for it loses nothing.
    pub(crate) async fn next(&mut self) -> Result<FromWorker, SessionError> {
        loop {
            while let Some(line) = self.decoder.next_line() {
                match line {
                    Line::Ours(text) => match parse(text).map_err(SessionError::Decode)? {
                        FromWorker::Error { kind, text } => return Err(SessionError::Worker { kind, text }),
                        message => return Ok(message),
                    },
                    Line::Stray(_) => {}
                    Line::TooLong => return Err(SessionError::Decode(DecodeError::TooLong)),
                }
            }
            self.buffer.clear();
            if self.stdout.read_buf(&mut self.buffer).await.map_err(SessionError::Read)? == 0 {
                let words = last_words(&mut self.guard).await;
                return Err(SessionError::Ended { stderr: one_line(&String::from_utf8_lossy(&words)) });
            }
            self.heard = Instant::now();
            self.decoder.push(&self.buffer);
        }
    }

    /// Ends the session in order.
    pub(crate) async fn part(mut self) {
        let link = self.link.clone();
        let farewell = async {
            // A worker that is gone already needs no farewell.
            self.say(&ToWorker::Quit).await;
            let Self { stdin, mut stdout, mut guard, mut buffer, .. } = self;
            drop(stdin);
            while stdout.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
                buffer.clear();
            }
            guard.wait().await;
        };
        timeout(QUIT_WITHIN, farewell).await.ok();
        link.close();
    }
}
