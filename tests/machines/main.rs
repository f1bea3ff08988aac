//! Tasks in virtual machines, on one lab whose first host has them: it is made once for all of
//! this, and so are most machines.

#[path = "../support/mod.rs"]
mod support;

mod auxiliary;
mod bootstrap;
mod copies;
mod hold;
mod host;
mod hostile;
mod kinds;
mod tasks;
mod warm;
