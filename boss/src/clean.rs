//! Has every host of a crew cleaned: sessions whose boss is gone are ended, and what they left is removed.

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

/// Cleans all hosts at once, in the order of the crew; `told` hears each when it is done.
///
/// # Errors
/// If this computer cannot connect to anybody. What is wrong with a host is its answer.
pub async fn clean(
    crew: &Crew,
    how: Thoroughly,
    told: &mut dyn FnMut(Heard<'_, CleanReport>),
) -> Result<Vec<Answer<CleanReport>>, RunError> {
    let words: &'static [&'static str] = match (how.force, how.purge) {
        (false, false) => &["clean"],
        (true, false) => &["clean", "--force"],
        (false, true) => &["clean", "--purge"],
        (true, true) => &["clean", "--force", "--purge"],
    };
    // Ending workers in order takes seconds, removing large trees may take minutes.
    of_crew(crew, Question { words, is_work: true }, told).await
}
