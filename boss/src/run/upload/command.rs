//! One command that takes an upload: started with its output in a pipe, ended with all of its
//! process group.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use crewboss_protocol::StageExit;
use crewboss_protocol::limits::KILL_GRACE;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Output of one command that is kept.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// How long the output of a command that has ended is waited for: something that it left running
/// may hold the pipe.
const DRAIN_WITHIN: Duration = Duration::from_millis(500);

/// What a shell says when a command is not there.
const NOT_FOUND: StageExit = StageExit::Code(127);

/// Why a command did not end by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Its time was up.
    Late(StageExit),
    /// It could not be started or waited for.
    Broken(StageExit, String),
}

/// How a command ended.
pub(super) type CommandEnd = Result<StageExit, End>;

/// Runs a command to its end or its time limit, and gives what it printed.
pub(super) async fn run(mut command: Command, limit: Duration) -> (Vec<u8>, CommandEnd) {
    let started = start(&mut command);
    // It holds the writing end of the pipe, whose end would never be seen.
    drop(command);
    let (mut group, mut reader) = match started {
        Ok(started) => started,
        Err(error) => {
            return (Vec::new(), Err(End::Broken(NOT_FOUND, format!("it cannot be started: {error}"))));
        }
    };
    let mut output = Vec::new();
    let deadline = Instant::now() + limit;
    let ended = {
        let reading = read(&mut reader, &mut output);
        // Begun once only, since it remembers whether the time was over.
        let mut ending = pin!(group.end(deadline));
        tokio::select! {
            ended = &mut ending => ended,
            // The end of output is not the end of the command.
            () = reading => ending.await,
        }
    };
    drop(timeout(DRAIN_WITHIN, read(&mut reader, &mut output)).await);
    let ended = match ended {
        Ok((status, true)) => Ok(exit_of(status)),
        Ok((status, false)) => Err(End::Late(exit_of(status))),
        Err(error) => Err(End::Broken(StageExit::Code(1), format!("it cannot be waited for: {error}"))),
    };
    (output, ended)
}

fn start(command: &mut Command) -> io::Result<(Group, pipe::Receiver)> {
    let (reader, writer) = io::pipe()?;
    let (out, err) = (writer.try_clone()?, writer);
    let reader = pipe::Receiver::from_owned_fd(reader.into())?;
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    Ok((Group { child: command.spawn()?, ended: false }, reader))
}

/// Reads to the end; keeps the beginning.
async fn read(reader: &mut pipe::Receiver, output: &mut Vec<u8>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        let room = OUTPUT_BYTES_MAX.saturating_sub(output.len());
        output.extend_from_slice(&buffer[..count.min(room)]);
    }
}

fn exit_of(status: ExitStatus) -> StageExit {
    let number = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    match (status.code(), status.signal()) {
        (Some(code), _) => StageExit::Code(number(code)),
        (None, signal) => StageExit::Signal(number(signal.unwrap_or(0))),
    }
}

/// A command with all that it started in its process group.
#[derive(Debug)]
struct Group {
    child: Child,
    ended: bool,
}

impl Group {
    /// Waits until it ends, or ends it at the deadline. Whether it ended by itself.
    async fn end(&mut self, deadline: Instant) -> io::Result<(ExitStatus, bool)> {
        let (status, in_time) = match timeout_at(deadline, self.child.wait()).await {
            Ok(status) => (status, true),
            Err(_) => {
                self.kill(Signal::TERM);
                // All of the group has this time, not only the command itself. That is waited for
                // last: until then nobody else can have got the number of the group.
                sleep(KILL_GRACE).await;
                self.kill(Signal::KILL);
                (self.child.wait().await, false)
            }
        };
        self.ended = status.is_ok();
        Ok((status?, in_time))
    }

    fn kill(&self, signal: Signal) {
        let id = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        // That it is gone already is what is wanted.
        if let Some(id) = id {
            kill_process_group(id, signal).ok();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.ended {
            self.kill(Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use crewboss_ground::program;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_program_that_is_not_there_is_named_and_output_has_a_limit() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_, ended) = run(Command::new("/nonexistent/publish"), LONG).await;
            assert!(matches!(ended, Err(End::Broken(NOT_FOUND, why)) if why.contains("cannot be started")));
            let mut loud = Command::from(program("sh"));
            loud.args(["-c", "head -c 3000000 /dev/zero; sleep 90 & exit 0"]);
            let begun = Instant::now();
            let (output, ended) = run(loud, LONG).await;
            assert_eq!((output.len(), ended), (OUTPUT_BYTES_MAX, Ok(StageExit::Code(0))));
            assert!(begun.elapsed() < LONG, "what it left running was waited for");
        });
    }

    #[test]
    fn nothing_of_a_command_that_took_too_long_lives_on() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut command = Command::from(program("sh"));
            // The shell ends when it is asked to, and what it has started does not.
            command.args(["-c", "(trap '' TERM; echo up; exec sleep 600) & wait"]);
            let (mut group, mut reader) = start(&mut command).unwrap();
            drop(command);
            let mut said = [0; 3];
            reader.read_exact(&mut said).await.unwrap();
            let (status, in_time) = group.end(Instant::now()).await.unwrap();
            assert_eq!((exit_of(status), in_time), (StageExit::Signal(15), false));
            let rest = timeout(LONG, reader.read(&mut said)).await;
            assert_eq!(rest.expect("it lives on").unwrap(), 0);
        });
    }

    #[test]
    fn stopping_ends_commands() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        runtime.block_on(async {
            let mut command = Command::from(program("sh"));
            command.args(["-c", "echo up; exec sleep 600"]).stdin(Stdio::null());
            command.stdout(writer.try_clone().unwrap());
            let group = Group { child: command.spawn().unwrap(), ended: false };
            drop((command, writer));
            let mut reader = pipe::Receiver::from_owned_fd(reader.into()).unwrap();
            let mut said = [0; 3];
            reader.read_exact(&mut said).await.unwrap();
            drop(group);
            assert_eq!(reader.read(&mut said).await.unwrap(), 0, "it lives on");
        });
    }
}
