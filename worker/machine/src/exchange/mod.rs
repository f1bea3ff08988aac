//! What goes into a guest and comes out of it: the source as an archive, messages over the agent's
//! port, the archive of artifacts.
//!
//! Whatever comes out was written by a guest, which may be anything. [`port`] and
//! [`crewboss_host::tar`] read it with bounded memory and believe nothing, and [`artifacts`] writes
//! nothing under a name that the guest chose.

pub mod artifacts;
pub mod port;
pub mod source;

pub use artifacts::{ArchiveError, ArchiveLimits, Unpacked, unpack};
pub use port::{PortDecoder, PortEvent, encode};
pub use source::{SOURCE_DISK_BYTES, archive_length, bootstrap_archive};
