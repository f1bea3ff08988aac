//! Ctrl-C and SIGTERM: the first asks the run to stop, the second ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::exit::Exit;

/// The signals that ask for an end. A terminal that is closed is one as well.
const ASKING: [SignalKind; 3] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];

/// Begins to listen. The value becomes true with the first signal. With the second the process ends; workers notice that
/// their boss is gone and clean up by themselves. A thread of its own does it, so that the second signal also works when
/// the rest of the boss hangs.
pub fn listen() -> std::io::Result<watch::Receiver<bool>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals: Vec<Signal> = {
        let _entered = runtime.enter();
        ASKING.into_iter().map(signal).collect::<std::io::Result<_>>()?
    };
    let (asked, receiver) = watch::channel(false);
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || {
        runtime.block_on(async {
            any(&mut signals).await;
            asked.send_replace(true);
            any(&mut signals).await;
            leave();
        });
    })?;
    Ok(receiver)
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
    std::process::exit(i32::from(Exit::Interrupted.code()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_first_signal_asks_for_the_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut asked = listen().unwrap();
            assert!(!*asked.borrow());
            let myself = std::process::id().to_string();
            let sent = std::process::Command::new("kill").args(["-HUP", &myself]).status().unwrap();
            assert!(sent.success());
            let changed = tokio::time::timeout(Duration::from_secs(10), asked.changed()).await;
            changed.expect("no signal arrived").unwrap();
            assert!(*asked.borrow());
        });
    }

    /// Says to the second test, started anew by itself, that it is the child.
    const CHILD: &str = "CREWBOSS_TEST_OF_SIGNALS";

    struct Killed(std::process::Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    fn wait_for_signals() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut asked = listen().unwrap();
            eprintln!("listening");
            asked.changed().await.unwrap();
            eprintln!("asked");
            // As a boss that hangs.
            std::thread::sleep(Duration::from_secs(60));
        });
    }

    #[test]
    fn the_second_signal_ends_the_process_at_once() {
        use std::io::BufRead;
        if std::env::var_os(CHILD).is_some() {
            return wait_for_signals();
        }
        let name = "interrupt::tests::the_second_signal_ends_the_process_at_once";
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args([name, "--exact", "--nocapture"]).env(CHILD, "1").stderr(std::process::Stdio::piped());
        let mut child = Killed(command.stdout(std::process::Stdio::null()).spawn().unwrap());
        let pid = child.0.id().to_string();
        let told = std::io::BufReader::new(child.0.stderr.take().unwrap());
        // The lines come, or the child ends by its own time limit and they do not.
        for line in told.lines().map(Result::unwrap) {
            let signal = match line.as_str() {
                "listening" => "-TERM",
                "asked" => "-INT",
                _ => continue,
            };
            assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
        }
        assert_eq!(child.0.wait().unwrap().code(), Some(i32::from(Exit::Interrupted.code())));
    }
}
