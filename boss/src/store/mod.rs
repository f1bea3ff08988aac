//! The result directory: one directory per task, whole or not there at all, and the journal that
//! says what is done.

mod durable;
mod journal;
mod layout;
mod record;
mod result;
mod writer;

pub use journal::{History, Journal, JournalError};
pub use layout::{OutDir, StoreError, task_path};
pub use record::Recorded;
pub use result::{
    AttemptStory, AuxiliaryInputs, MachineInputs, RESULT_SCHEMA, ResultFile, TargetDigest, TaskKey,
};
pub use writer::{StoreReply, Submission, WriteError, Writer};
