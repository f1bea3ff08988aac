//! Has every host of a crew cleaned: sessions whose boss is gone are ended, and what they left is
//! removed.

use crewboss_protocol::clean::CleanReport;

use crate::crew::Crew;
use crate::report::{Answer, Heard, Question, of_crew};
use crate::run::RunError;

/// How thoroughly hosts are cleaned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Thoroughly {
    /// Live sessions are ended, too.
    pub force: bool,
    /// What is kept for later runs is removed, too.
    pub purge: bool,
}

/// Cleans all hosts at once, in the order of the crew; `told` hears each when it is done. `by` is
/// who wants it, as `user@computer`: people whose workers are ended are told.
///
/// # Errors
/// If this computer cannot connect to anybody. What is wrong with a host is its answer.
pub async fn clean(
    crew: &Crew,
    how: Thoroughly,
    by: &str,
    told: &mut dyn FnMut(Heard<'_, CleanReport>),
) -> Result<Vec<Answer<CleanReport>>, RunError> {
    let mut words = vec!["clean".to_owned(), "--by".to_owned(), by.to_owned()];
    words.extend(how.force.then(|| "--force".to_owned()));
    words.extend(how.purge.then(|| "--purge".to_owned()));
    // Ending workers in order takes seconds, removing large trees may take minutes.
    of_crew(crew, Question { words, is_work: true }, told).await
}
