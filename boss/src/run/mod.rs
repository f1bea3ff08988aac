//! One run: plan, sessions, handing out, results.
//!
//! [`core`] decides; [`dispatch`] passes on what happens and carries out what was decided;
//! [`session`] keeps one host going; [`push`] and [`fetch`] move bulk data beside it;
//! [`drive`](run) waits for all of them and for the clock.

mod awake;
mod collect;
pub mod core;
mod dispatch;
mod done;
mod events;
mod fetch;
mod flood;
mod host_log;
mod hosts;
mod live;
mod log;
mod opening;
mod plan;
mod push;
pub mod results;
mod session;
mod session_error;
mod site;
mod start;
mod talk;
mod tally;
mod upload;

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

pub use collect::{Collected, Missing, Seen};
pub use done::Force;
pub use plan::{Commit, Guests, Plan, PlanError, TASKS_MAX};
pub use start::{RunError, RunRequest};
pub use upload::UploadsEnd;

pub use crate::store::StoreError;

pub(crate) use awake::{Awake, forgiven};
pub(crate) use dispatch::{offer, requirements};
pub(crate) use done::{Division, confirmed, divide};
pub(crate) use hosts::{Report, Traffic};
pub(crate) use opening::Opening;
pub(crate) use session_error::SessionError;
pub(crate) use site::Common;
pub(crate) use start::{make_plan, run_id};
pub(crate) use talk::Talk;

use crate::event::{EventSink, Stopped, Summary};
use crate::store::StoreReply;
use crewboss_protocol::TaskRef;
use crewboss_protocol::limits::STOP_WITHIN;
use dispatch::Dispatcher;
use done::SETTLE_WITHIN;

/// Carries out a run, and tells the sinks about it as it goes.
///
/// When `stop` becomes true, everything is stopped on all hosts within [`STOP_WITHIN`], and what is
/// there is kept.
///
/// # Errors
/// If the run cannot begin: no usable repository, result directory or plan. What goes wrong later
/// is in the summary.
pub async fn run(
    request: RunRequest,
    sinks: Vec<Box<dyn EventSink + Send>>,
    mut stop: watch::Receiver<bool>,
) -> Result<Summary, RunError> {
    let mut started = start::start(request, sinks, &mut stop).await?;
    drive(&mut started, stop).await;
    started.finish().await
}

/// Channels into the run loop.
struct Inbox {
    reports: mpsc::Receiver<Report>,
    stored: mpsc::UnboundedReceiver<StoreReply>,
    uploaded: mpsc::UnboundedReceiver<(TaskRef, UploadsEnd)>,
}

async fn drive(started: &mut start::Started, mut stop: watch::Receiver<bool>) {
    let start::Started { dispatcher, inbox, .. } = started;
    let mut settle = Some(Instant::now() + SETTLE_WITHIN);
    let mut stop_by: Option<Instant> = None;
    while !is_over(dispatcher, stop_by) {
        dispatcher.tell_standstill();
        let wake = wake_at(dispatcher, settle, stop_by);
        tokio::select! {
            biased;
            Ok(_) = stop.wait_for(|&asked| asked), if stop_by.is_none() => dispatcher.stop(Stopped::Interrupted),
            Some(reply) = inbox.stored.recv() => dispatcher.stored(reply),
            Some((at, end)) = inbox.uploaded.recv() => dispatcher.uploaded(at, end),
            Some(report) = inbox.reports.recv(), if !dispatcher.is_backed_up() => dispatcher.report(report),
            () = sleep_until(wake) => {
                if settle.take_if(|at| *at <= Instant::now()).is_some() {
                    dispatcher.settle();
                }
                dispatcher.tick();
            }
        }
        if dispatcher.stopped().is_some() {
            stop_by.get_or_insert_with(|| Instant::now() + STOP_WITHIN);
        }
    }
}

fn is_over(dispatcher: &Dispatcher, stop_by: Option<Instant>) -> bool {
    match stop_by {
        Some(by) => dispatcher.is_quiet() || by <= Instant::now(),
        None => dispatcher.is_finished(),
    }
}

/// When something is due without anything happening.
fn wake_at(dispatcher: &Dispatcher, settle: Option<Instant>, stop_by: Option<Instant>) -> Instant {
    const LONGEST: Duration = Duration::from_secs(60);
    let tick = dispatcher.next_wake().map(|at| {
        let left = at.0.saturating_sub(dispatcher.now().0);
        Instant::now() + Duration::from_millis(left + 1)
    });
    let longest = Instant::now() + LONGEST;
    [settle, stop_by, tick].into_iter().flatten().fold(longest, Instant::min)
}
