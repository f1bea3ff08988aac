//! What a person's crewboss and the role that brings the person to a guest say to each other.
//!
//! Both ends say [`FromPerson::Here`] and [`ToPerson::Here`] all the time. Whoever has not heard
//! the other for the limit of the crew takes it for gone: a cut link, a killed or a stopped process
//! all look like that, and a guest must not run on for somebody who is not there.

use serde::{Deserialize, Serialize};

use crate::guest::GuestStream;
use crate::limits::WORD_BYTES_MAX;
use crate::message::{Invalid, Validate};

/// Longest piece of typed or shown bytes in one message.
pub const PIECE_MAX: usize = 32 << 10;

/// Longest text of a message for the person.
const TEXT_MAX: usize = 64 << 10;

/// Any bytes, as text that JSON can carry: each byte is the character with its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Bytes(pub Vec<u8>);

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        bytes.0.into_iter().map(char::from).collect()
    }
}

impl TryFrom<String> for Bytes {
    type Error = std::char::TryFromCharError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.chars().map(u8::try_from).collect::<Result<_, _>>().map(Self)
    }
}

/// From the person's crewboss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromPerson {
    /// Somebody is there.
    Here,
    /// This was typed.
    Typed(Bytes),
    /// The person's terminal has this size now.
    Size {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// A stage that runs again is to have this variable. On the command line of the role everybody
    /// on that host would see it.
    Variable {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
}

/// To the person's crewboss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToPerson {
    /// The role is there. The first thing that it says.
    Here,
    /// The keyboard is the guest's from now on, or is not any more.
    Inside(bool),
    /// The guest, or a stage in it, printed this.
    Shown {
        /// On which stream.
        stream: GuestStream,
        /// What.
        bytes: Bytes,
    },
    /// A line about what goes on.
    Said(String),
    /// A command that the person may take as it stands.
    Command(String),
    /// It cannot be done.
    Failed(String),
}

impl Validate for FromPerson {
    fn validate(&self) -> Result<(), Invalid> {
        match self {
            Self::Typed(bytes) => fits("typed", bytes.0.len(), PIECE_MAX),
            Self::Variable { name, value } => fits("variable", name.len() + value.len(), WORD_BYTES_MAX),
            Self::Here | Self::Size { .. } => Ok(()),
        }
    }
}

impl Validate for ToPerson {
    fn validate(&self) -> Result<(), Invalid> {
        match self {
            Self::Here | Self::Inside(_) => Ok(()),
            Self::Shown { bytes, .. } => fits("bytes", bytes.0.len(), PIECE_MAX),
            Self::Said(text) | Self::Command(text) | Self::Failed(text) => fits("text", text.len(), TEXT_MAX),
        }
    }
}

fn fits(field: &'static str, len: usize, max: usize) -> Result<(), Invalid> {
    let why = || format!("{len} bytes are over the limit of {max}");
    if len <= max { Ok(()) } else { Err(Invalid { field, why: why() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn every_byte_comes_through() {
        let all = FromPerson::Typed(Bytes((0..=255).collect()));
        let mut line = Vec::new();
        codec::encode(&all, &mut line);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let text = line.strip_prefix(codec::PREFIX).unwrap();
        assert_eq!(codec::parse::<FromPerson>(text).unwrap(), all);
        assert!(codec::parse::<FromPerson>("{\"typed\":\"\u{100}\"}".as_bytes()).is_err());
        let long = format!("{{\"typed\":\"{}\"}}", "x".repeat(PIECE_MAX + 1));
        assert!(codec::parse::<FromPerson>(long.as_bytes()).is_err());
    }
}
