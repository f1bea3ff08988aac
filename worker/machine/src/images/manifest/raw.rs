//! A manifest as it is written: every value is checked for itself, so that an error has its line.

use std::path::Path;
use std::time::Duration;

use crewboss_protocol::Name;
use crewboss_protocol::machine::{MACHINE_PROTOCOL, MachineRole};
use crewboss_protocol::units;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _};

use super::{DiskFormat, Exchange, INSTANCES_MAX, Mac, ManifestError, Network};

/// Longest id.
const ID_BYTES_MAX: usize = 128;

/// Longest summary: one line of a table.
const SUMMARY_BYTES_MAX: usize = 256;

/// Longest name of a file on Linux.
const FILE_BYTES_MAX: usize = 255;

/// Longest command line of a kernel that every architecture takes.
const APPEND_BYTES_MAX: usize = 2048;

/// Longest single word for QEMU.
const WORD_BYTES_MAX: usize = 1024;

/// Further options of QEMU.
const OPTIONS_MAX: usize = 64;

/// Longest name of a network device (`IFNAMSIZ` without the NUL).
const BRIDGE_BYTES_MAX: usize = 15;

/// Processors that QEMU's ordinary machine types can have.
const PROCESSORS_MAX: u32 = 255;

/// Boots that may be tried again.
const MISBOOTS_MAX: u32 = 20;

/// No guest runs in less memory, and no host has more.
const MEMORY_MIN: u64 = 1 << 20;
const MEMORY_MAX: u64 = 1 << 46;

/// A limit below this is over before anything could have begun; one above it is no limit.
const LIMIT_MIN: Duration = Duration::from_secs(1);
const LIMIT_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) id: Checked<Id>,
    pub(super) name: Name,
    pub(super) summary: Option<Checked<Summary>>,
    pub(super) role: MachineRole,
    pub(super) memory: Memory,
    pub(super) processors: Option<Checked<Processors>>,
    pub(super) disk: Checked<FileName>,
    #[serde(default)]
    pub(super) format: Format,
    pub(super) kernel: Option<Checked<FileName>>,
    pub(super) initrd: Option<Checked<FileName>>,
    pub(super) append: Option<Checked<Append>>,
    pub(super) firmware: Option<Firmware>,
    pub(super) mac: Option<Checked<Address>>,
    pub(super) cpu: Option<Checked<Word>>,
    pub(super) options: Option<Checked<Options>>,
    pub(super) network: Option<Checked<NetworkName>>,
    #[serde(default)]
    pub(super) exchange: ExchangeName,
    /// Being read it has been checked, and says nothing more.
    #[serde(rename = "protocol")]
    pub(super) _protocol: Option<Checked<Protocol>>,
    pub(super) instances: Option<Checked<Instances>>,
    pub(super) refresh: Option<Checked<Refresh>>,
    #[serde(default)]
    pub(super) display: bool,
    #[serde(default)]
    pub(super) warm_start: bool,
    #[serde(default)]
    pub(super) limits: RawLimits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    pub(super) min: Checked<Amount>,
    pub(super) max: Option<Checked<Amount>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    pub(super) startup: Option<Checked<Limit>>,
    pub(super) bootstrap: Option<Checked<Limit>>,
    pub(super) shutdown: Option<Checked<Limit>>,
    pub(super) misboots: Option<Checked<Misboots>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    #[default]
    Raw,
    Qcow2,
}

impl From<Format> for DiskFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Qcow2 => Self::Qcow2,
        }
    }
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Firmware {
    Bios,
    Uefi,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ExchangeName {
    #[default]
    Agent,
    Tftp,
}

impl From<ExchangeName> for Exchange {
    fn from(exchange: ExchangeName) -> Self {
        match exchange {
            ExchangeName::Agent => Self::Agent,
            ExchangeName::Tftp => Self::Tftp,
        }
    }
}

/// What a value must be.
pub(super) trait Rule {
    /// As it is written.
    type Written: DeserializeOwned;
    /// As it is used.
    type Value;
    /// Takes it or says, for a person, what is wrong.
    fn check(written: Self::Written) -> Result<Self::Value, String>;
}

/// A value that follows a rule. The check runs while the value is read, so that its error has a
/// line.
#[derive(Debug)]
pub(super) struct Checked<R: Rule>(pub(super) R::Value);

impl<'de, R: Rule> Deserialize<'de> for Checked<R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        R::check(R::Written::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

macro_rules! rule {
    ($name:ident: $written:ty => $value:ty, $check:expr) => {
        #[derive(Debug)]
        pub(super) enum $name {}
        impl Rule for $name {
            type Written = $written;
            type Value = $value;
            fn check(written: $written) -> Result<$value, String> {
                $check(written)
            }
        }
    };
}

rule!(Id: String => String, id);
rule!(Summary: String => String, |text: String| line("the summary", text, SUMMARY_BYTES_MAX));
rule!(Processors: u32 => u32, |number| between(number, 1, PROCESSORS_MAX));
rule!(Instances: u32 => u32, |number| between(number, 1, INSTANCES_MAX));
rule!(Misboots: u32 => u32, |number| between(number, 0, MISBOOTS_MAX));
rule!(FileName: String => String, file_name);
rule!(Append: String => String, |text: String| line("the command line", text, APPEND_BYTES_MAX));
rule!(Word: String => String, word);
rule!(Options: Vec<String> => Vec<String>, options);
rule!(Address: String => Mac, |text: String| mac(&text));
rule!(NetworkName: String => Network, |text: String| network(&text));
rule!(Protocol: u32 => (), protocol);
rule!(Amount: String => u64, |text: String| memory(&text));
rule!(Refresh: String => Duration, |text: String| at_least_a_second(&text));
rule!(Limit: String => Duration, |text: String| limit(&text));

/// Parses the text of a manifest.
pub(super) fn parse(text: &str, path: &Path) -> Result<Raw, ManifestError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let before = text.as_bytes().get(..start).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before.rsplit(|byte| *byte == b'\n').next().map_or(0, <[u8]>::len) + 1;
        let message = error.message().trim_end().replace('\n', " ");
        ManifestError::Wrong { path: path.to_owned(), line, column, why: in_plain_words(&message) }
    })
}

/// The parser's message without the words of Rust's data model.
fn in_plain_words(message: &str) -> String {
    const WORDS: [(&str, &str); 5] = [
        ("unknown field ", "unknown key "),
        ("missing field ", "missing key "),
        ("expected a string", "expected a text in quotes"),
        ("expected a boolean", "expected true or false"),
        ("expected u32", "expected a whole number from 0"),
    ];
    WORDS.iter().fold(message.to_owned(), |text, (word, plain)| text.replace(word, plain))
}

fn between(number: u32, min: u32, max: u32) -> Result<u32, String> {
    if (min..=max).contains(&number) {
        Ok(number)
    } else {
        Err(format!("{number} is not between {min} and {max}"))
    }
}

fn line(what: &str, text: String, max: usize) -> Result<String, String> {
    if text.len() > max {
        return Err(format!("{what} is {} bytes long; the limit is {max}", text.len()));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(control) => Err(format!("{what} has the control character {control:?}")),
        None => Ok(text),
    }
}

/// It stands in results and is compared byte for byte, so nothing in it may look like something
/// else.
fn id(text: String) -> Result<String, String> {
    let text = line("the id", text, ID_BYTES_MAX)?;
    if text.is_empty() {
        return Err("the id is empty".to_owned());
    }
    match text.chars().find(|c| !c.is_ascii_graphic() && *c != ' ') {
        Some(other) => Err(format!("the id has the character {other:?}; only printable ASCII can be in it")),
        None if text.trim() != text => Err("the id begins or ends with a space".to_owned()),
        None => Ok(text),
    }
}

fn file_name(text: String) -> Result<String, String> {
    let text = line("the file name", text, FILE_BYTES_MAX)?;
    if text.contains('/') || matches!(text.as_str(), "" | "." | "..") {
        return Err(format!("{text:?} is not the plain name of a file in the revision"));
    }
    Ok(text)
}

fn word(text: String) -> Result<String, String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    line("it", text, WORD_BYTES_MAX)
}

fn options(words: Vec<String>) -> Result<Vec<String>, String> {
    if words.len() > OPTIONS_MAX {
        return Err(format!("{} words; the limit is {OPTIONS_MAX}", words.len()));
    }
    words.into_iter().map(|text| word(text).map_err(|why| format!("one of the words: {why}"))).collect()
}

fn mac(text: &str) -> Result<Mac, String> {
    let refuse = |why: &str| format!("{text:?} {why}; write it as \"52:54:00:12:34:56\"");
    let mut octets = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut octets {
        let digits =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        *octet = value.ok_or_else(|| refuse("is no address of a network device"))?;
    }
    if parts.next().is_some() {
        return Err(refuse("is no address of a network device"));
    }
    if octets[0] & 1 == 1 {
        return Err(refuse("is a multicast address, which no device can have"));
    }
    if octets == [0; 6] { Err(refuse("is no device's address")) } else { Ok(Mac(octets)) }
}

fn network(text: &str) -> Result<Network, String> {
    match text {
        "none" => return Ok(Network::None),
        "user" => return Ok(Network::User),
        _ => {}
    }
    let Some(bridge) = text.strip_prefix("bridge:") else {
        return Err(format!("{text:?} is no network; it is \"none\", \"user\" or \"bridge:NAME\""));
    };
    if bridge.is_empty() || bridge.len() > BRIDGE_BYTES_MAX {
        return Err(format!(
            "the name of a bridge has 1 to {BRIDGE_BYTES_MAX} characters, not {}",
            bridge.len()
        ));
    }
    // Whatever else the kernel allows would end or change an option of QEMU.
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !bridge.chars().all(allowed) || matches!(bridge, "." | "..") || bridge.starts_with('-') {
        return Err(format!("{bridge:?} cannot be the name of a bridge"));
    }
    Ok(Network::Bridge(bridge.to_owned()))
}

fn protocol(number: u32) -> Result<(), String> {
    if number == MACHINE_PROTOCOL {
        return Ok(());
    }
    Err(format!("the machine speaks protocol {number}, and this crewboss {MACHINE_PROTOCOL}"))
}

fn memory(text: &str) -> Result<u64, String> {
    let bytes = units::size(text)?;
    if (MEMORY_MIN..=MEMORY_MAX).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("{text:?} is not between 1 MiB and 64 TiB"))
    }
}

fn at_least_a_second(text: &str) -> Result<Duration, String> {
    let duration = units::duration(text)?;
    if duration >= LIMIT_MIN { Ok(duration) } else { Err(format!("{text:?} is less than a second")) }
}

fn limit(text: &str) -> Result<Duration, String> {
    let duration = at_least_a_second(text)?;
    if duration <= LIMIT_MAX { Ok(duration) } else { Err(format!("{text:?} is more than a day")) }
}
