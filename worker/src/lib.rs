//! Everything that happens on a host: environments, storage, probing, bulk data.

pub mod bulk;
pub mod environment;
pub mod layout;
pub mod probe;
pub mod prune;
pub mod source;
pub mod storage;

#[cfg(test)]
mod testing;
