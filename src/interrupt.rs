//! Ctrl-C and SIGTERM: the first asks the run to stop, the second ends the process at once. A
//! terminal that is closed asks as well, but insists on nothing: SIGHUP comes more than once then,
//! and together with others.

use std::sync::{OnceLock, mpsc};

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::exit::Exit;

/// Whether somebody has asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Nobody listens: a signal ends the process as it ends any other.
    Nobody,
    /// Not yet.
    No,
    /// They have.
    Yes,
}

static LISTENER: OnceLock<watch::Receiver<bool>> = OnceLock::new();

/// Whether somebody has asked this process for its end, as far as it listens.
pub fn asked() -> Asked {
    match LISTENER.get().map(|asked| *asked.borrow()) {
        None => Asked::Nobody,
        Some(false) => Asked::No,
        Some(true) => Asked::Yes,
    }
}

/// The signals that ask for an end.
const ASKING: [SignalKind; 2] = [SignalKind::interrupt(), SignalKind::terminate()];

/// Whether a terminal that is closed asks for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// Unless whoever started this process wants it to outlive its terminal (`nohup`).
    UnlessIgnored,
    /// Always: without its person it is good for nothing.
    Asks,
}

/// Begins to listen. The value becomes true with the first signal. With the second the process
/// ends; workers notice that their boss is gone and clean up by themselves. A thread of its own
/// does it, so that the second signal also works when the rest of the boss hangs.
pub fn listen(hangup: Hangup) -> std::io::Result<watch::Receiver<bool>> {
    let heeded = (hangup == Hangup::Asks || !ignores_hangup()).then(SignalKind::hangup);
    let (asked, receiver) = watch::channel(false);
    let (begun, begins) = mpsc::channel();
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || {
        let (runtime, mut signals) = match signals(heeded) {
            Ok(both) => both,
            // `recv` below waits for it.
            Err(error) => return begun.send(Err(error)).unwrap_or_default(),
        };
        if begun.send(Ok(())).is_err() {
            return;
        }
        runtime.block_on(async {
            any(&mut signals).await;
            asked.send_replace(true);
            signals.truncate(ASKING.len());
            any(&mut signals).await;
            leave();
        });
    })?;
    begins.recv().map_err(std::io::Error::other)??;
    // Whoever listens a second time in a process is a test.
    let _first = LISTENER.set(receiver.clone());
    Ok(receiver)
}

fn signals(heeded: Option<SignalKind>) -> std::io::Result<(Runtime, Vec<Signal>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    let signals = ASKING.into_iter().chain(heeded).map(signal).collect::<std::io::Result<_>>()?;
    drop(entered);
    Ok((runtime, signals))
}

/// Whether SIGHUP was ignored when this process was started. Nothing here has changed it before
/// that is asked.
fn ignores_hangup() -> bool {
    let status = crewboss_ground::kernel_text("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit is signal 1, which is SIGHUP.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

async fn any(signals: &mut [Signal]) {
    std::future::poll_fn(|context| {
        let ready = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[expect(
    clippy::exit,
    reason = "a person who asks twice wants no orderly end; workers clean up without their boss"
)]
fn leave() -> ! {
    crewboss_boss::link::abandon();
    crate::terminal::seat::restore();
    std::process::exit(i32::from(Exit::Interrupted.code()))
}

#[cfg(test)]
mod tests {
    use std::io::BufRead as _;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Child, Command, ExitStatus, Stdio};
    use std::time::Duration;

    use super::*;

    /// Says to a test, started anew by itself, that it is the child.
    const CHILD: &str = "CREWBOSS_TEST_OF_SIGNALS";

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    fn wait_for_signals(hangup: Hangup) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut asked = listen(hangup).unwrap();
            eprintln!("listening");
            asked.changed().await.unwrap();
            eprintln!("asked");
            // As a boss that hangs.
            std::thread::sleep(Duration::from_secs(60));
        });
    }

    /// Starts this program anew with one test that listens, sends the first signals when it does
    /// and the others when it was asked; returns how it ended. `before` is a shell's words before
    /// it.
    fn ended_by(test: &str, before: &str, first: &[&str], then: &[&str]) -> ExitStatus {
        let name = format!("interrupt::tests::{test}");
        let program = std::env::current_exe().unwrap();
        let line = format!("{before} exec \"$0\" {name} --exact --nocapture");
        let mut command = Command::new("sh");
        command.args(["-c", &line]).arg(program).env(CHILD, "1");
        let mut child = Killed(command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
        let pid = child.0.id().to_string();
        let told = std::io::BufReader::new(child.0.stderr.take().unwrap());
        // The lines come, or the child ends by its own time limit and they do not.
        for line in told.lines().map(Result::unwrap) {
            let signals = match line.as_str() {
                "listening" => first,
                "asked" => then,
                _ => continue,
            };
            for signal in signals {
                assert!(Command::new("kill").args([*signal, pid.as_str()]).status().unwrap().success());
            }
        }
        child.0.wait().unwrap()
    }

    fn is_child() -> bool {
        std::env::var_os(CHILD).is_some()
    }

    #[test]
    fn the_second_signal_ends_the_process_at_once() {
        if is_child() {
            return wait_for_signals(Hangup::UnlessIgnored);
        }
        let test = "the_second_signal_ends_the_process_at_once";
        let ended = ended_by(test, "", &["-TERM"], &["-INT"]);
        assert_eq!(ended.code(), Some(i32::from(Exit::Interrupted.code())));
    }

    #[test]
    fn a_terminal_that_is_closed_asks_and_does_not_insist() {
        if is_child() {
            return wait_for_signals(Hangup::Asks);
        }
        let test = "a_terminal_that_is_closed_asks_and_does_not_insist";
        let ended = ended_by(test, "", &["-HUP"], &["-HUP", "-KILL"]);
        assert_eq!(ended.signal(), Some(9), "SIGHUP has not ended it before");
    }

    #[test]
    fn a_run_may_outlive_its_terminal() {
        if is_child() {
            return wait_for_signals(Hangup::UnlessIgnored);
        }
        // Were the first one heeded, the second would end it.
        let test = "a_run_may_outlive_its_terminal";
        let ended = ended_by(test, "trap '' HUP;", &["-HUP", "-TERM"], &["-KILL"]);
        assert_eq!(ended.signal(), Some(9), "one signal has asked it to end");
    }
}
