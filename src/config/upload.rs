//! What is done with uploads: a command per type.

use std::collections::BTreeMap;
use std::time::Duration;

use crewboss_boss::plan::UploadCommand;
use crewboss_protocol::{Command, Name, Validate};
use serde::Deserialize;
use toml::Spanned;

use super::document::{Document, Ordered};
use super::error::ConfigError;
use super::units::TimeSpan;

/// Time limit of a command that names none.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);

/// A table `[upload.TYPE]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadTable {
    command: Option<Spanned<Vec<String>>>,
    timeout: Option<TimeSpan>,
}

/// The commands by type.
pub fn uploads(
    document: &Document,
    tables: &Ordered<UploadTable>,
) -> Result<BTreeMap<Name, UploadCommand>, ConfigError> {
    let mut all = BTreeMap::new();
    for (key, table) in &tables.0 {
        let name = key.get_ref().parse::<Name>();
        let name = name.map_err(|error| document.wrong(key.span(), error.to_string(), None))?;
        let command = table.command.as_ref().ok_or_else(|| {
            let hint = "say what takes the file: command = [\"./publish\"]".to_owned();
            document.wrong(key.span(), format!("upload {name} has no `command`"), Some(hint))
        })?;
        let words = command.get_ref().clone();
        Command::Words(words.clone())
            .validate()
            .map_err(|invalid| document.wrong(command.span(), format!("upload {name}: {invalid}"), None))?;
        let timeout = table.timeout.map_or(TIMEOUT_DEFAULT, |span| span.0);
        all.insert(name, UploadCommand { words, timeout });
    }
    Ok(all)
}
