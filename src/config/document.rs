//! A configuration file as text, and how its errors find their lines.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use toml::Spanned;

use super::error::{ConfigError, Located, nearest};
use super::trust::{self, Refusal, Trusted, Way};

/// Largest file that is read: room for the largest number of targets at some hundred bytes each.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A file that was read.
#[derive(Debug)]
pub struct Document {
    /// Where it is.
    pub path: PathBuf,
    owner: u32,
    text: String,
}

impl Document {
    /// Reads a file that was come by in some way. One that cannot be trusted is refused, and so is
    /// what is no text.
    pub fn read(path: &Path, way: Way<'_>) -> Result<Self, ConfigError> {
        let Trusted { file, owner } = trust::open(path, way)?;
        let bytes = read_bytes(path, file)?;
        if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes.as_slice() {
            return Err(ConfigError::Utf16 { path: path.to_owned() });
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self { path: path.to_owned(), owner, text: normalised(text) }),
            Err(error) => {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = valid.split(|byte| *byte == b'\n').count();
                let column = valid.rsplit(|byte| *byte == b'\n').next().map_or(0, <[u8]>::len) + 1;
                Err(ConfigError::NotUtf8 { path: path.to_owned(), line, column })
            }
        }
    }

    /// Parses it. `later` names keys that are not known here, with what to say of them; `mistake`
    /// knows what people mean by a file that is well-formed and not understood.
    pub fn parse<T: DeserializeOwned>(
        &self,
        later: &[(&str, &str)],
        mistake: impl Fn(&toml::Table) -> Option<&'static str>,
    ) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|error| {
            let message = error.message().trim_end();
            let meant =
                || toml::from_str(&self.text).ok().and_then(|table| mistake(&table)).map(str::to_owned);
            let hint = hint_for(message, later).or_else(meant);
            self.wrong(error.span().unwrap_or(0..0), in_plain_words(message), hint)
        })
    }

    /// All of it.
    #[cfg(test)]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// An error at a place of this file.
    pub fn wrong(&self, span: Range<usize>, message: impl Into<String>, hint: Option<String>) -> ConfigError {
        let located = Located::new(self.path.clone(), &self.text, span, message.into(), hint);
        ConfigError::Located(Box::new(located))
    }

    /// How what it names came to be used.
    pub fn way(&self) -> Way<'static> {
        Way::NamedBy(self.owner)
    }

    /// The directory of the file, which its relative paths start from.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }
}

/// Without the byte-order mark and the carriage returns that some editors put into files: a shell
/// that is given the lines of a stage would take them for parts of its words. A carriage return
/// that is meant is written `\r`.
fn normalised(text: String) -> String {
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    if text.contains("\r\n") { text.replace("\r\n", "\n") } else { text }
}

fn read_bytes(path: &Path, file: File) -> Result<Vec<u8>, ConfigError> {
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| Refusal::unreadable(path, error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLong { path: path.to_owned(), max: FILE_BYTES_MAX });
    }
    Ok(bytes)
}

/// The parser's message without the words of Rust's data model.
fn in_plain_words(message: &str) -> String {
    const WORDS: [(&str, &str); 5] = [
        ("expected a sequence", "expected a list in brackets, such as [\"one\", \"two\"]"),
        ("expected a string", "expected a text in quotes"),
        ("expected a boolean", "expected true or false"),
        ("expected u32", "expected a whole number from 0 to 4294967295"),
        ("expected i64", "expected a whole number"),
    ];
    if let Some(rest) = message.strip_prefix("unknown field ") {
        return format!("unknown key {rest}");
    }
    let plain =
        WORDS.iter().find_map(|(word, plain)| Some(format!("{}{plain}", message.strip_suffix(word)?)));
    plain.unwrap_or_else(|| message.to_owned())
}

/// A hint made from the parser's own words: it lists the keys that it knows.
fn hint_for(message: &str, later: &[(&str, &str)]) -> Option<String> {
    if message.starts_with("duplicate key") {
        return Some("the same name is used twice; rename or remove one of them".to_owned());
    }
    let rest = message.strip_prefix("unknown field `")?;
    let (unknown, expected) = rest.split_once('`')?;
    if let Some((_, why)) = later.iter().find(|(key, _)| *key == unknown) {
        return Some((*why).to_owned());
    }
    let known = expected.split('`').skip(1).step_by(2);
    match nearest(unknown, known).as_slice() {
        [] => None,
        near => Some(format!("did you mean `{}`?", near.join("` or `"))),
    }
}

/// The entries of a table in the order of the file, each key with its place.
#[derive(Debug)]
pub struct Ordered<V>(pub Vec<(Spanned<String>, V)>);

impl<V> Default for Ordered<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Ordered<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OrderedVisitor(PhantomData))
    }
}

struct OrderedVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for OrderedVisitor<V> {
    type Value = Ordered<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries: Vec<(Spanned<String>, V)> = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        // The parser keeps tables sorted by name; the order of the file is in the places of the
        // keys.
        entries.sort_by_key(|(key, _)| key.span().start);
        Ok(Ordered(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Document, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("build.toml");
        std::fs::write(&path, bytes).unwrap();
        Document::read(&path, Way::Named)
    }

    #[test]
    fn no_shell_sees_what_an_editor_put_at_the_ends_of_lines() {
        let text =
            "\u{feff}a = \"\"\"\r\nmake\r\ntrue\"\"\"\r\nb = '''one\r\ntwo'''\r\nc = \"meant\\r\\n\"\r\n";
        let document = read(text.as_bytes()).unwrap();
        let table: toml::Table = document.parse(&[], |_| None).unwrap();
        assert_eq!(table["a"].as_str(), Some("make\ntrue"));
        assert_eq!(table["b"].as_str(), Some("one\ntwo"));
        assert_eq!(table["c"].as_str(), Some("meant\r\n"));
        let wrong =
            read(b"\xef\xbb\xbfa = 1\r\nb = =\r\n").unwrap().parse::<toml::Table>(&[], |_| None).unwrap_err();
        assert!(wrong.to_string().contains("build.toml:2:5: "), "{wrong}");
    }

    #[test]
    fn what_windows_calls_unicode_is_named() {
        let utf16 = [0xff, 0xfe].into_iter().chain("a = 1".encode_utf16().flat_map(u16::to_le_bytes));
        let error = read(&utf16.collect::<Vec<u8>>()).unwrap_err().to_string();
        assert!(error.ends_with("is UTF-16 text\n  hint: save it as UTF-8"), "{error}");
    }
}
