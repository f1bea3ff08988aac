//! A TFTP server for one guest: it can get what was put out for it and put what is expected, and
//! reaches nothing else.
//!
//! Written for this purpose, since the crate async-tftp brings an executor and a reactor thread
//! into a worker that has no runtime, has no event for the end of a transfer and no limits, and
//! writes what it receives under its final name.
//!
//! [`packet`] reads and writes packets and [`transfer`] is the protocol of one transfer; both are
//! pure. [`file`](mod@file) is the content of a transfer, [`source`] finds out whether a packet
//! comes from the guest, [`event`] is what is told, and [`server`] has the sockets. The caller
//! polls one descriptor, and calls the server when that is readable or its deadline is over.

pub mod event;
pub mod file;
pub mod packet;
pub mod server;
pub mod source;
pub mod transfer;

mod live;

#[cfg(test)]
mod guest_tests;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod simulation;

pub use event::{Abort, Counts, Event, Refusal};
pub use server::{Limits, Offer, PutRule, Server, ServerError};
