//! Ctrl-C and SIGTERM: the first asks the run to stop, the second ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::exit::Exit;

/// The signals that ask for an end. A terminal that is closed is one as well.
const ASKING: [SignalKind; 3] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];

/// Begins to listen; must be called inside the runtime. The value becomes true with the first signal. With the second the
/// process ends; workers notice that their boss is gone and clean up by themselves.
pub fn listen() -> std::io::Result<watch::Receiver<bool>> {
    let signals: Vec<Signal> = ASKING.into_iter().map(signal).collect::<std::io::Result<_>>()?;
    let (asked, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let mut signals = signals;
        any(&mut signals).await;
        asked.send_replace(true);
        any(&mut signals).await;
        leave();
    });
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
}
