//! The patterns by which a target names files: what they mean, and which of them can never mean
//! anything.
//!
//! A pattern is read once into the names of a path, one after the other. So looking for files on a
//! disk and choosing among the names of an archive mean the same by it, and only directories that
//! can hold a match are ever opened.

use crewboss_protocol::limits::{PATH_BYTES_MAX, PATH_PART_BYTES_MAX, PATH_PARTS_MAX};
use globset::{GlobBuilder, GlobMatcher};

/// Patterns that one with braces may stand for.
const ALTERNATIVES_MAX: usize = 1000;

/// Why a pattern cannot name any file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct PatternError {
    /// What is wrong with it.
    pub why: String,
    /// What to write in its place.
    pub hint: Option<String>,
}

/// One name of a path.
#[derive(Debug, Clone)]
enum Part {
    /// This one.
    Name(String),
    /// Whatever matches.
    Glob(GlobMatcher),
    /// `**`: directories in each other, any number of them, or none.
    Directories,
}

/// A pattern, as the paths that it stands for.
#[derive(Debug, Clone)]
pub struct Pattern {
    alternatives: Vec<Vec<Part>>,
}

/// How far into a pattern the names of a path have led: which alternative, and which part of it is
/// next.
type At = (usize, usize);

/// All places in a pattern to which the names of a path have led.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places(Vec<At>);

/// What a name means to a pattern.
#[derive(Debug, Default)]
pub struct Step {
    /// The path is a match.
    pub matches: bool,
    /// Where it leads if it is a directory.
    pub directory: Places,
    /// Where it leads if it is a link to a directory: on only where a part of the pattern is meant
    /// for its name. What `**` stands for are directories, as in a shell, or links in circles would
    /// never end.
    pub link: Places,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// If it can never match a file that can be brought back.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        check(text)?;
        let syntax = |error: globset::Error| wrong(error.kind().to_string());
        GlobBuilder::new(text).literal_separator(true).build().map_err(syntax)?;
        let mut alternatives = Vec::new();
        for text in expand(text)? {
            check(&text)?;
            alternatives.push(parts(&text)?);
        }
        Ok(Self { alternatives })
    }

    /// Whether it is a plain name of one file.
    pub fn is_name(&self) -> bool {
        let names = |parts: &[Part]| parts.iter().all(|part| matches!(part, Part::Name(_)));
        self.alternatives.len() == 1 && self.alternatives.iter().all(|parts| names(parts))
    }

    /// The places before the first name.
    pub fn start(&self) -> Places {
        self.reached((0..self.alternatives.len()).map(|alternative| (alternative, 0)))
    }

    /// The only names that lead on, if just those do: then there is no need to list the directory.
    pub fn names(&self, places: &Places) -> Option<Vec<&str>> {
        let name = |at: &At| match self.part(*at) {
            Some(Part::Name(name)) => Some(name.as_str()),
            _ => None,
        };
        let mut names: Vec<&str> = places.0.iter().map(name).collect::<Option<_>>()?;
        names.sort_unstable();
        names.dedup();
        Some(names)
    }

    /// Takes one more name of a path.
    pub fn step(&self, places: &Places, name: &std::ffi::OsStr) -> Step {
        let (mut stays, mut next) = (Vec::new(), Vec::new());
        for at in &places.0 {
            let is_meant = match self.part(*at) {
                Some(Part::Name(wanted)) => name == wanted.as_str(),
                Some(Part::Glob(glob)) => glob.is_match(name),
                Some(Part::Directories) => {
                    stays.push(*at);
                    false
                }
                None => false,
            };
            if is_meant {
                next.push((at.0, at.1 + 1));
            }
        }
        let is_end = |at: &At| self.part(*at).is_none();
        let matches = next.iter().any(is_end);
        next.retain(|at| !is_end(at));
        let link = self.reached(next.iter().copied());
        let directory = self.reached(next.into_iter().chain(stays));
        Step { matches, directory, link }
    }

    /// Whether it matches a path.
    pub fn is_match(&self, path: &str) -> bool {
        let mut step = Step { directory: self.start(), ..Step::default() };
        for name in path.split('/') {
            step = self.step(&step.directory, name.as_ref());
        }
        step.matches
    }

    fn part(&self, (alternative, index): At) -> Option<&Part> {
        self.alternatives.get(alternative)?.get(index)
    }

    /// With what comes after each `**`, which may stand for nothing.
    fn reached(&self, from: impl Iterator<Item = At>) -> Places {
        let mut all = Vec::new();
        for mut at in from {
            all.push(at);
            while matches!(self.part(at), Some(Part::Directories)) {
                at.1 += 1;
                all.push(at);
            }
        }
        all.sort_unstable();
        all.dedup();
        Places(all)
    }
}

impl Places {
    /// Whether nothing matches any more.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn wrong(why: impl Into<String>) -> PatternError {
    PatternError { why: why.into(), hint: None }
}

fn hinted(why: &str, hint: impl Into<String>) -> PatternError {
    PatternError { why: why.to_owned(), hint: Some(hint.into()) }
}

/// What no path of an artifact can be.
fn check(text: &str) -> Result<(), PatternError> {
    const ELSEWHERE: &str = "a stage can copy what lies elsewhere to $CREWBOSS_OUT";
    if text.is_empty() {
        return Err(hinted("it is empty", "a name or a pattern such as \"*.bin\" or \"lib/**\""));
    }
    if text.starts_with('/') {
        let why = "it is absolute, and looked for below $CREWBOSS_OUT and $CREWBOSS_SRC";
        return Err(hinted(why, ELSEWHERE));
    }
    if text.starts_with("$CREWBOSS_") || text.starts_with("${CREWBOSS_") || text.starts_with("~/") {
        let rest = text.split_once('/').map_or("", |(_, rest)| rest);
        let why = "nothing is replaced in it, and it is looked for below $CREWBOSS_OUT and $CREWBOSS_SRC";
        return Err(hinted(why, if rest.is_empty() { "**".to_owned() } else { format!("{rest:?}") }));
    }
    if text.chars().any(char::is_control) {
        return Err(wrong("it has a control character"));
    }
    let parts = || text.split('/');
    if parts().any(|part| part == "..") {
        return Err(hinted("it has a `..`", ELSEWHERE));
    }
    let is_nothing = |part: &str| part.is_empty() || part == ".";
    if parts().any(is_nothing) {
        let rest = parts().filter(|part| !is_nothing(part)).collect::<Vec<_>>().join("/");
        let ends = parts().next_back().is_some_and(is_nothing);
        let hint = match (ends, rest.is_empty()) {
            (_, true) => "\"**\" matches all files".to_owned(),
            (true, false) if !rest.ends_with("**") => {
                format!("\"{rest}/**\" matches all files below a directory")
            }
            _ => format!("write {rest:?}"),
        };
        return Err(hinted("it has an empty or `.` part, or a slash at its end", hint));
    }
    Ok(())
}

/// The parts of a pattern without braces.
fn parts(text: &str) -> Result<Vec<Part>, PatternError> {
    let mut parts = Vec::new();
    for part in text.split('/') {
        let part = if part == "**" { Part::Directories } else { one(part)? };
        if !matches!((&part, parts.last()), (Part::Directories, Some(Part::Directories))) {
            parts.push(part);
        }
    }
    // At the end it stands for what is in the directories.
    if let Some(Part::Directories) = parts.last() {
        parts.push(one("*")?);
    }
    let needed = parts.iter().filter(|part| !matches!(part, Part::Directories)).count();
    if needed > PATH_PARTS_MAX || text.len() > 4 * PATH_BYTES_MAX {
        return Err(wrong(format!("no path is so long: at most {PATH_PARTS_MAX} parts can be brought back")));
    }
    Ok(parts)
}

fn one(text: &str) -> Result<Part, PatternError> {
    if text.contains(['*', '?', '[']) {
        // What was whole is not so in pieces if a class had a slash in it, which no name has.
        let glob = GlobBuilder::new(text).literal_separator(true).build();
        let glob = glob.map_err(|_| wrong("it has a `/` inside of [ ]"))?;
        return Ok(Part::Glob(glob.compile_matcher()));
    }
    let mut name = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        // An escaped character stands for itself.
        name.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    if name.len() > PATH_PART_BYTES_MAX {
        return Err(wrong(format!("no name is longer than {PATH_PART_BYTES_MAX} bytes")));
    }
    Ok(Part::Name(name))
}

/// A pattern with braces as the patterns that it stands for. It must be one that globset takes.
fn expand(text: &str) -> Result<Vec<String>, PatternError> {
    let mut done = Vec::new();
    let mut open = vec![text.to_owned()];
    while let Some(text) = open.pop() {
        if done.len() + open.len() >= ALTERNATIVES_MAX {
            return Err(wrong(format!("its braces stand for more than {ALTERNATIVES_MAX} patterns")));
        }
        match braces(&text) {
            // From the end, so that the first one is next.
            Some((before, inner, after)) => {
                open.extend(inner.iter().rev().map(|inner| format!("{before}{inner}{after}")));
            }
            None => done.push(text),
        }
    }
    Ok(done)
}

/// What stands before, in, and after the first braces.
fn braces(text: &str) -> Option<(&str, Vec<&str>, &str)> {
    let (mut depth, mut start, mut from) = (0_usize, 0, 0);
    let mut inner = Vec::new();
    let mut class = false;
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            ']' => class = false,
            _ if class => {}
            '[' => {
                class = true;
                // The first character of a class may be the bracket that would end it, also behind
                // a negation.
                characters.next_if(|(_, next)| matches!(next, '!' | '^'));
                characters.next_if(|(_, next)| *next == ']');
            }
            '{' => {
                depth += 1;
                if depth == 1 {
                    (start, from) = (at, at + 1);
                }
            }
            ',' if depth == 1 => {
                inner.push(&text[from..at]);
                from = at + 1;
            }
            '}' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    inner.push(&text[from..at]);
                    return Some((&text[..start], inner, &text[at + 1..]));
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn names_and_patterns_match_as_in_a_shell() {
        for (text, yes, no) in [
            ("a/b", &["a/b"][..], &["a", "a/b/c", "b"][..]),
            ("*.o", &["a.o", ".o"], &["a/b.o", "a.c"]),
            ("**/a", &["a", "x/a", "x/y/a"], &["a/x", "xa"]),
            ("a/**", &["a/b", "a/b/c"], &["a", "b/a"]),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["a/x/c", "b"]),
            ("**", &["a", "a/b"], &[]),
            ("**/**/x", &["x", "a/b/x"], &["y"]),
            ("a**", &["a", "abc"], &["a/b"]),
            ("{bin/*.{elf,bin},lib/**}", &["bin/a.elf", "bin/a.bin", "lib/x/y"], &["bin/a.o", "elf"]),
            ("x{,.txt}", &["x", "x.txt"], &["xx"]),
            ("[]{,}]{a,b}", &["]a", "{b", ",a"], &["a", "xa"]),
            ("[!a]?", &["bc"], &["ab", "b"]),
            (r"a\*\{b", &["a*{b"], &["aa{b"]),
            ("ü*", &["üé"], &["u"]),
        ] {
            let pattern = pattern(text);
            yes.iter().for_each(|path| assert!(pattern.is_match(path), "{text} {path}"));
            no.iter().for_each(|path| assert!(!pattern.is_match(path), "{text} {path}"));
        }
        assert!(pattern("a/b").is_name());
        assert!(!pattern("*").is_name() && !pattern("{a,b}").is_name());
    }

    #[test]
    fn what_can_never_match_is_refused_with_what_to_write() {
        let error = |text: &str| match Pattern::parse(text) {
            Ok(_) => panic!("{text} was taken"),
            Err(error) => format!("{error}; {}", error.hint.as_deref().unwrap_or_default()),
        };
        for (text, said) in [
            ("", "it is empty; a name"),
            ("/a", "it is absolute"),
            ("{a,/b}", "it is absolute"),
            ("a/../b", "it has a `..`; a stage can copy"),
            ("**/..", "it has a `..`"),
            ("./a", "part, or a slash at its end; write \"a\""),
            ("a//b", "write \"a/b\""),
            ("a/", "\"a/**\" matches all"),
            ("a/b/.", "\"a/b/**\" matches all"),
            ("a/**/", "write \"a/**\""),
            (".", "\"**\" matches all"),
            ("a{,b}/{,c}", "\"a/**\" matches all"),
            (
                "$CREWBOSS_OUT/a",
                "nothing is replaced in it, and it is looked for below $CREWBOSS_OUT and $CREWBOSS_SRC; \"a\"",
            ),
            ("a\nb", "it has a control character"),
            ("[", "unclosed"),
            ("{a", "unclosed"),
            ("a[b/c]d", "`/` inside of [ ]"),
        ] {
            assert!(error(text).contains(said), "{text}: {}", error(text));
        }
        assert!(error(&"x".repeat(256)).contains("no name is longer"));
        assert!(error(&["x"; 257].join("/")).contains("no path is so long"));
        assert!(error(&"{a,b}".repeat(11)).contains("more than 1000 patterns"));
        assert!(Pattern::parse(&"{a,b}".repeat(9)).is_ok());
    }

    #[test]
    fn only_names_that_lead_on_have_to_be_looked_at() {
        let pattern = pattern("{a/b,a/c,d}");
        let start = pattern.start();
        assert_eq!(pattern.names(&start), Some(vec!["a", "d"]));
        let step = pattern.step(&start, "a".as_ref());
        assert!(!step.matches && step.link == step.directory);
        assert_eq!(pattern.names(&step.directory), Some(vec!["b", "c"]));
        assert!(pattern.step(&start, "x".as_ref()).directory.is_empty());
        let any = self::pattern("**/x/*");
        assert_eq!(any.names(&any.start()), None);
        let step = any.step(&any.start(), "x".as_ref());
        assert!(!step.link.is_empty() && step.link != step.directory);
        assert!(any.step(&any.start(), "y".as_ref()).link.is_empty());
    }
}
