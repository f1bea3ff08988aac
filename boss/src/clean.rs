//! Has every host of a crew cleaned: sessions whose boss is gone are ended, and what they left is removed.

use std::time::Duration;

use crewboss_protocol::clean::CleanReport;

use crate::crew::Crew;
use crate::report::{Answer, of_crew};
use crate::run::RunError;

/// For one host: ending workers in order takes seconds, removing large trees may take minutes.
const CLEAN_WITHIN: Duration = Duration::from_secs(600);

/// Cleans all hosts at once, in the order of the crew; `told` hears each when it is done. With `force`, live sessions are
/// ended too.
///
/// # Errors
/// If this computer cannot connect to anybody. What is wrong with a host is its answer.
pub async fn clean(
    crew: &Crew,
    force: bool,
    told: &mut dyn FnMut(&Answer<CleanReport>),
) -> Result<Vec<Answer<CleanReport>>, RunError> {
    let words: &[&str] = if force { &["clean", "--force"] } else { &["clean"] };
    of_crew(crew, words, CLEAN_WITHIN, told).await
}
