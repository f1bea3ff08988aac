//! The only way to standard output and standard error. Unlike `println!` it does not panic when nobody reads any more.

use std::error::Error;
use std::io::Write;

use crate::terminal::text::harmless;
use crate::terminal::way_in;

/// Writes text to standard output. That nobody reads it any more, as behind `| head`, is no error; anything else is told.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => complain(&OutputError(error)),
        _ => {}
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
struct OutputError(#[source] std::io::Error);

/// Writes an error with its causes to standard error.
pub fn complain(error: &dyn Error) {
    complain_with_hint(error, None);
}

/// As [`complain`], and what a person can do about it.
pub fn complain_with_hint(error: &dyn Error, hint: Option<&str>) {
    let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
    let text = way_in::here(&format!("crewboss: {}{hint}\n", harmless(&with_causes(error))));
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}

/// An error and its causes. A hint stays at the end, where it is seen.
pub fn with_causes(error: &dyn Error) -> String {
    let own = error.to_string();
    let (message, hint) = own.split_once("\n  hint: ").map_or((own.as_str(), None), |(m, h)| (m, Some(h)));
    let mut text = message.to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    if let Some(hint) = hint {
        text.push_str(&format!("\n  hint: {hint}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_stand_before_the_hint() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot start\n  hint: try again")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("no space"));
        assert_eq!(with_causes(&error), "cannot start: no space\n  hint: try again");
    }
}
