//! Ids and names. Each is its own type, each can only be made through a check, also by
//! deserialising.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX, PATH_PART_BYTES_MAX, PATH_PARTS_MAX};

/// Why a name, path or id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing there.
    #[error("a name cannot be empty")]
    Empty,
    /// Over the limit.
    #[error("{text:?} is {len} bytes long; the limit is {max}")]
    TooLong {
        /// The beginning of the refused text.
        text: String,
        /// Its length in bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A character that has a meaning for shells, terminals or file systems.
    #[error("{text:?} has the character {character:?}; names are made of letters, digits and `. _ + -`")]
    Character {
        /// The refused text.
        text: String,
        /// The first offending character.
        character: char,
    },
    /// A leading dash reads as an option, a leading dot hides a file or leaves a directory.
    #[error("{text:?} begins with {character:?}; a name begins with a letter, a digit or `_`")]
    FirstCharacter {
        /// The refused text.
        text: String,
        /// Its first character.
        character: char,
    },
    /// A path that is absolute or could leave its directory.
    #[error("{text:?} is not a plain relative path: {why}")]
    Path {
        /// The refused text.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not a task and an attempt.
    #[error("{text:?} is not a task and an attempt, as in \"12.1\"")]
    TaskRef {
        /// The refused text.
        text: String,
    },
    /// Not a git object id.
    #[error("{text:?} is not a git object id of 40 hexadecimal digits")]
    ObjectId {
        /// The refused text.
        text: String,
    },
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

fn check_name(text: &str) -> Result<(), IdError> {
    if text.len() > NAME_BYTES_MAX {
        return Err(IdError::TooLong { text: excerpt(text), len: text.len(), max: NAME_BYTES_MAX });
    }
    let first = text.chars().next().ok_or(IdError::Empty)?;
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-');
    if let Some(character) = text.chars().find(|c| !allowed(c)) {
        return Err(IdError::Character { text: excerpt(text), character });
    }
    if !(first.is_ascii_alphanumeric() || first == '_') {
        return Err(IdError::FirstCharacter { text: excerpt(text), character: first });
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                check_name(&text)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type! {
    /// The name of a target, stage, toolchain, tag or machine: safe as a file name, a shell word
    /// and a table cell.
    Name
}
name_type! {
    /// The name of a host in `crew.toml`.
    HostName
}
name_type! {
    /// One `crewboss build`. Sorts by the time of its start.
    RunId
}
name_type! {
    /// One connection of one run to one host. It names the directory on the host that owns
    /// everything made there.
    SessionId
}

/// A task's index in the plan of its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId(pub u32);

/// One try at a task, counted over all hosts from 1. A number is never used twice for a task, so a
/// late message of an older attempt can be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attempt(pub u32);

/// A task and an attempt at it: what every message about a task begins with. `"<task>.<attempt>"`
/// on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "&str", into = "String")]
pub struct TaskRef {
    /// Which task.
    pub task: TaskId,
    /// Which try at it.
    pub attempt: Attempt,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for TaskRef {
    /// `<task>.<attempt>`, which is also the name of the attempt's directory on the host.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.task, self.attempt)
    }
}

impl FromStr for TaskRef {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let refuse = || IdError::TaskRef { text: excerpt(text) };
        let number = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit());
            if plain { digits.parse().map_err(|_| refuse()) } else { Err(refuse()) }
        };
        let (task, attempt) = text.split_once('.').ok_or_else(refuse)?;
        Ok(Self { task: TaskId(number(task)?), attempt: Attempt(number(attempt)?) })
    }
}

impl TryFrom<&str> for TaskRef {
    type Error = IdError;
    fn try_from(text: &str) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<TaskRef> for String {
    fn from(at: TaskRef) -> String {
        at.to_string()
    }
}

/// The id of a git object, mostly of a tree: forty hexadecimal digits on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TreeId(pub [u8; 20]);

impl FromStr for TreeId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let refuse = || IdError::ObjectId { text: excerpt(text) };
        let digits = text.as_bytes();
        if digits.len() != 40 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(refuse());
        }
        let mut id = [0; 20];
        for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| refuse())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| refuse())?;
        }
        Ok(Self(id))
    }
}

impl TryFrom<String> for TreeId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<TreeId> for String {
    fn from(id: TreeId) -> String {
        id.to_string()
    }
}

impl fmt::Display for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 40];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        f.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A relative path that stays below the directory it is joined to, and that file systems can have:
/// the name of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelPath(String);

impl RelPath {
    /// The path as text, `/` between its parts.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RelPath {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        if text.len() > PATH_BYTES_MAX {
            return Err(IdError::TooLong { text: excerpt(&text), len: text.len(), max: PATH_BYTES_MAX });
        }
        let why = if text.starts_with('/') {
            "it is absolute"
        } else if text.split('/').any(|part| part == "..") {
            "it has a `..`"
        } else if text.split('/').any(|part| part.is_empty() || part == ".") {
            "it has an empty or `.` part"
        } else if text.chars().any(char::is_control) {
            "it has a control character"
        } else if text.split('/').any(|part| part.len() > PATH_PART_BYTES_MAX) {
            "it has a part of more than 255 bytes"
        } else if text.split('/').count() > PATH_PARTS_MAX {
            "it has more than 256 parts"
        } else {
            return Ok(Self(text));
        };
        Err(IdError::Path { text: excerpt(&text), why })
    }
}

impl FromStr for RelPath {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::try_from(text.to_owned())
    }
}

impl From<RelPath> for String {
    fn from(path: RelPath) -> String {
        path.0
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_do_harm_are_refused_with_a_reason() {
        let refused = ["", "-rf", ".hidden", "..", "a b", "a/b", "a\nb", "a'b", "é", "a\0"];
        for text in refused {
            assert!(text.parse::<Name>().is_err(), "{text:?} was accepted");
        }
        assert!("x".repeat(NAME_BYTES_MAX).parse::<Name>().is_ok());
        assert!("x".repeat(NAME_BYTES_MAX + 1).parse::<Name>().is_err());
        assert_eq!(
            "a b".parse::<Name>().unwrap_err().to_string(),
            "\"a b\" has the character ' '; names are made of letters, digits and `. _ + -`"
        );
    }

    #[test]
    fn relative_paths_stay_below_their_directory() {
        for text in ["", "/etc/passwd", "..", "a/../b", "a//b", "./a", "a/", "a\0b", "a\nb"] {
            assert!(text.parse::<RelPath>().is_err(), "{text:?} was accepted");
        }
        for text in ["a", "a/b.c", "a b/ü", "..a", "a.."] {
            assert!(text.parse::<RelPath>().is_ok(), "{text:?} was refused");
        }
    }

    #[test]
    fn relative_paths_are_made_of_parts_that_file_systems_can_have() {
        let part = |bytes: usize| "x".repeat(bytes);
        let parts = |count: usize| vec!["x"; count].join("/");
        for text in [part(PATH_PART_BYTES_MAX), format!("a/{}/b", part(255)), parts(PATH_PARTS_MAX)] {
            assert!(text.parse::<RelPath>().is_ok(), "{text:?} was refused");
        }
        let refused = |text: String| text.parse::<RelPath>().unwrap_err().to_string();
        for text in [part(256), format!("{}/b", part(256)), format!("a/{}", "ü".repeat(128))] {
            assert!(refused(text).contains("a part of more than 255 bytes"));
        }
        assert!(refused(parts(257)).contains("more than 256 parts"));
    }

    #[test]
    fn object_ids_go_both_ways() {
        let text = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(text.parse::<TreeId>().unwrap().to_string(), text);
        for text in [
            "",
            "0123",
            "g123456789abcdef0123456789abcdef01234567",
            "+123456789abcdef0123456789abcdef01234567",
        ] {
            assert!(text.parse::<TreeId>().is_err(), "{text:?} was accepted");
        }
    }
}
