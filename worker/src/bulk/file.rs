//! Receiving files that are too long for a pack.

use std::io::Write;
use std::path::Path;

use crewboss_protocol::TreeId;
use crewboss_protocol::bulk::BulkErrorKind;
use git2::ObjectType;

use super::pack::{check_space, given_up, library_failure};
use super::stream::{Frame, Input};
use super::{End, Failure};
use crate::source::Objects;
use crate::source::objects::oid;

/// Receives frames up to their end, and stores them as a loose object, which can be read piece by
/// piece later.
pub(super) fn receive(objects: &Path, id: TreeId, bytes: u64, input: &mut Input<'_>) -> Result<(), End> {
    let lost = |error: &git2::Error| End::Lost(library_failure(error));
    let repository = Objects::open(objects).map_err(|error| End::Lost(Failure::from(&error)))?;
    let database = repository.database().map_err(|error| End::Lost(Failure::from(&error)))?;
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    check_space(&repository, length).map_err(End::Lost)?;
    let mut writer = database.writer(length, ObjectType::Blob).map_err(|error| lost(&error))?;
    let mut left = length;
    loop {
        match input.frame()? {
            Frame::Data(data) if data.len() > left => return Err(End::Lost(other_length(bytes))),
            Frame::Data(data) => {
                // Only libgit2 knows why, and tells whoever asks next.
                writer.write_all(data).map_err(|_| lost(&git2::Error::last_error(-1)))?;
                left -= data.len();
            }
            Frame::End if left > 0 => return Err(End::Failed(other_length(bytes))),
            Frame::End => break,
            Frame::Broken => return Err(given_up().into()),
        }
    }
    let stored = writer.finalize().map_err(|error| End::Failed(library_failure(&error)))?;
    if Some(stored) == oid(id).ok() {
        return Ok(());
    }
    let text = format!("what came for the file {id} is {stored}");
    Err(End::Failed(Failure::new(BulkErrorKind::Objects, text)))
}

fn other_length(bytes: u64) -> Failure {
    Failure::new(
        BulkErrorKind::Objects,
        format!("a file does not have the {bytes} bytes that were announced"),
    )
}
