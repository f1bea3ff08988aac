//! Bulk channels: git objects to a host, logs and artifacts from it.
//!
//! A bulk channel is a further process on the host, `crewboss bulk`, that serves one request after
//! the other. Requests and answers are lines like those of the control channel; data follows in
//! frames: a length of four bytes, most significant first, and that many bytes. A frame of length 0
//! ends the data; the length [`BROKEN`] says that it cannot be completed, and a line with
//! [`BulkAnswer::Failed`] follows; [`HOLE`] stands for zeros that are not sent. Nothing but frames
//! and our own lines comes after the first [`BulkAnswer::Open`].

use serde::{Deserialize, Serialize};

use crate::id::{RelPath, TaskRef, TreeId};
use crate::limits::TEXT_BYTES_MAX;
use crate::message::{Invalid, Validate};

/// Instead of a length: the data cannot be completed.
pub const BROKEN: u32 = u32::MAX;

/// Instead of a length: a hole in an artifact. Its length follows in eight bytes, most significant
/// first.
pub const HOLE: u32 = u32::MAX - 1;

/// The longest hole that is told at once: both ends hash its zeros, and are to be heard of
/// meanwhile.
pub const HOLE_BYTES_MAX: u64 = 1 << 30;

/// From the boss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BulkRequest {
    /// Which of these trees are checked out or can be, from objects that are there?
    Have {
        /// At most 1024.
        trees: Vec<TreeId>,
    },
    /// A git pack follows in frames. Answered by `stored`.
    Pack,
    /// The content of one file follows in frames, as it is: with
    /// [`LONG_FILE_BYTES`](crate::limits::LONG_FILE_BYTES) or more it is too long for a pack, whose
    /// parts have to fit into memory. Answered by `stored`.
    File {
        /// The id of its git object.
        id: TreeId,
        /// Its length.
        bytes: u64,
    },
    /// Check this tree out. Answered by `checked_out`.
    CheckOut {
        /// The tree.
        tree: TreeId,
        /// A tree that is there already and differs little.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        near: Option<TreeId>,
    },
    /// Send a log in frames, from its beginning, while it grows, until `log_ends` is received and
    /// that length is sent.
    Log {
        /// Whose.
        at: TaskRef,
        /// Which.
        stream: LogStream,
    },
    /// The log that is being sent has this length.
    LogEnds {
        /// In bytes.
        bytes: u64,
    },
    /// Send the artifacts: for each an `artifact` line, its data in frames, and a `checksum` line;
    /// then `complete`.
    Artifacts {
        /// Whose.
        at: TaskRef,
    },
}

/// From the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BulkAnswer {
    /// The first line.
    Open,
    /// The host is still at work on the answer. It says so every few seconds, of what brings no
    /// data meanwhile.
    Working,
    /// The trees that are there, of those asked for.
    Has {
        /// Which.
        trees: Vec<TreeId>,
    },
    /// The pack is stored and complete.
    Stored,
    /// The tree is checked out.
    CheckedOut {
        /// Which.
        tree: TreeId,
    },
    /// A file follows in frames.
    Artifact {
        /// Its name in the result directory.
        path: RelPath,
        /// Its length, unless it changes while it is read.
        bytes: u64,
        /// Who may do what with it: permission bits, and no others.
        mode: u32,
    },
    /// The file that was just sent.
    Checksum {
        /// BLAKE3, in hexadecimal.
        blake3: String,
    },
    /// All that was asked for has been sent.
    Complete,
    /// The request failed. The channel can be used further, except in the middle of incoming data.
    Failed {
        /// What kind of failure.
        kind: BulkErrorKind,
        /// Details for a person.
        text: String,
    },
}

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Both outputs in the order of arrival.
    Log,
    /// Standard error alone.
    Err,
}

/// Why a bulk request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BulkErrorKind {
    /// The disk is full.
    NoSpace,
    /// What was asked for is not there.
    Missing,
    /// The pack or tree cannot be used: broken, incomplete, or with names that leave the directory.
    Objects,
    /// An artifact's name cannot be sent or stored.
    Name,
    /// The request cannot be understood or does not fit here.
    Protocol,
    /// Reading or writing failed.
    Io,
}

impl Validate for BulkRequest {
    fn validate(&self) -> Result<(), Invalid> {
        match self {
            BulkRequest::Have { trees } if trees.len() > 1024 => {
                Err(Invalid { field: "trees", why: format!("{} is over the limit of 1024", trees.len()) })
            }
            _ => Ok(()),
        }
    }
}

impl Validate for BulkAnswer {
    fn validate(&self) -> Result<(), Invalid> {
        match self {
            BulkAnswer::Has { trees } if trees.len() > 1024 => {
                Err(Invalid { field: "trees", why: format!("{} is over the limit of 1024", trees.len()) })
            }
            BulkAnswer::Artifact { mode, .. } if mode & !0o777 != 0 => {
                Err(Invalid { field: "mode", why: format!("{mode:o} has more than permissions") })
            }
            BulkAnswer::Checksum { blake3 } if blake3.len() != 64 => {
                Err(Invalid { field: "blake3", why: "it does not have 64 digits".to_owned() })
            }
            BulkAnswer::Failed { text, .. } if text.len() > TEXT_BYTES_MAX => {
                Err(Invalid { field: "text", why: "it is over the limit".to_owned() })
            }
            _ => Ok(()),
        }
    }
}
