//! A host as the run loop sees it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crewboss_protocol::{HostName, Name};
use tokio::sync::mpsc::UnboundedSender;

use super::super::hosts::{Order, Traffic};

/// A host as the run loop sees it.
#[derive(Debug)]
pub struct HostState {
    /// Its name.
    pub name: HostName,
    /// Words that targets may ask for.
    pub tags: BTreeSet<Name>,
    /// To its session. Has no limit of its own: the scheduler limits what is under way at a host.
    pub orders: UnboundedSender<(u32, Order)>,
    /// Number of the session that orders are for.
    pub session: u32,
    /// Bytes both ways.
    pub traffic: Arc<Traffic>,
    /// Time for a line there and back, in microseconds.
    pub round_trip_us: u64,
    /// It has answered or failed once: nobody waits for its first answer any more.
    pub settled: bool,
    /// Its session will not come back.
    pub over: bool,
}

impl HostState {
    /// A host that is being connected.
    pub fn new(
        name: HostName,
        tags: BTreeSet<Name>,
        orders: UnboundedSender<(u32, Order)>,
        traffic: Arc<Traffic>,
    ) -> Self {
        Self { name, tags, orders, session: 0, traffic, round_trip_us: 0, settled: false, over: false }
    }

    pub(super) fn order(&self, order: Order) {
        // A session that is over takes no orders; what was under way there has been put back.
        self.orders.send((self.session, order)).ok();
    }
}
