//! Everything that happens on a host: environments, storage, probing, bulk data.

pub mod environment;
pub mod layout;
pub mod source;
pub mod storage;
