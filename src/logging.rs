//! crewboss's own diagnostics, for finding faults in crewboss itself: off unless asked for by
//! `$CREWBOSS_LOG`.

use tracing_subscriber::EnvFilter;

use crate::output::Stream;

/// The variable that says what is logged, as in `CREWBOSS_LOG=debug` or
/// `CREWBOSS_LOG=crewboss_boss::session=trace`.
pub const VARIABLE: &str = "CREWBOSS_LOG";

/// Begins to log to standard error. A filter that cannot be understood is an error, since it would
/// look like silence.
pub fn start() -> Result<(), LoggingError> {
    let Some(value) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) else { return Ok(()) };
    let text = value.to_str().ok_or(LoggingError::NotUtf8)?;
    let filter =
        EnvFilter::try_new(text).map_err(|source| LoggingError::Filter { text: text.to_owned(), source })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Stream::Err).with_ansi(false).init();
    Ok(())
}

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The variable is no text.
    #[error("${VARIABLE} is not UTF-8 text")]
    NotUtf8,
    /// The filter cannot be understood.
    #[error("${VARIABLE} is {text:?}, which is no filter\n  hint: try \"debug\", or \"crewboss_boss=trace\"")]
    Filter {
        /// The variable's value.
        text: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
}
