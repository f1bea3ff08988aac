//! The one command that gets a person into a guest, as it is to be typed here.

use std::fmt::Display;
use std::path::Path;
use std::sync::OnceLock;

/// The option that names the crew, if one was given: without it the command would ask another crew.
static CREW: OnceLock<String> = OnceLock::new();

/// Remembers which crew was named, for all that is printed later.
pub fn remember(crew: Option<&Path>) {
    if let Some(crew) = crew {
        // There is one per process; whoever comes second names the same.
        let _same = CREW.set(option(crew));
    }
}

/// The command for a guest.
pub fn enter(host: impl Display, guest: impl Display) -> String {
    let crew = CREW.get().map(String::as_str).unwrap_or_default();
    format!("crewboss enter {crew}{host}/{guest}")
}

/// A text in which somebody advises commands of ours between backticks, with the crew that they are
/// for.
pub fn here(text: &str) -> String {
    let crew = CREW.get().map(|crew| crew.trim_end()).unwrap_or_default();
    with_crew(text, crew)
}

fn with_crew(text: &str, crew: &str) -> String {
    const BEGIN: &str = "`crewboss ";
    let mut whole = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN).filter(|_| !crew.is_empty()) {
        let from = at + BEGIN.len();
        let Some(end) = rest[from..].find('`') else { break };
        whole.push_str(&rest[..from + end]);
        whole.extend([" ", crew]);
        rest = &rest[from + end..];
        whole.push('`');
        rest = &rest[1..];
    }
    whole + rest
}

fn option(crew: &Path) -> String {
    let path = crew.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._/+-=@:,".contains(c);
    if path.chars().all(plain) && !path.is_empty() {
        format!("--crew {path} ")
    } else {
        format!("--crew '{}' ", path.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use clap::Parser as _;
    use crewboss_protocol::advice::Advice;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn advice_names_the_crew() {
        let text = "it is held; `crewboss release a/b` ends it, or `crewboss enter`; `--wipe` is no command";
        assert_eq!(
            with_crew(text, "--crew x.toml"),
            "it is held; `crewboss release a/b --crew x.toml` ends it, or `crewboss enter --crew x.toml`; `--wipe` is no \
             command"
        );
        assert_eq!(with_crew(text, ""), text);
        assert_eq!(with_crew("`crewboss unended", "--crew x"), "`crewboss unended");
    }

    #[test]
    fn all_advice_is_understood() {
        let (host, name) = ("lab1".parse().unwrap(), "tiny-default-x1y2z3".parse().unwrap());
        for advice in Advice::samples(&host, &name) {
            let text = with_crew(&advice.to_string(), "--crew '/some crew.toml'");
            let line = text.strip_prefix('`').unwrap().strip_suffix('`').unwrap();
            let words =
                Command::new("sh").args(["-c", &format!("printf '%s\\n' {line}")]).output().unwrap().stdout;
            let words = String::from_utf8(words).unwrap();
            assert!(Cli::try_parse_from(words.lines()).is_ok(), "{line}");
        }
    }

    /// The Rust files below a directory of this repository.
    fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                sources(&entry, found);
            } else if entry.extension().is_some_and(|end| end == "rs") {
                found.push(entry);
            }
        }
    }

    #[test]
    fn every_command_that_a_message_names_is_understood() {
        let (top, mut files) = (Path::new(env!("CARGO_MANIFEST_DIR")), Vec::new());
        for directory in ["src", "boss/src", "worker/src", "protocol/src"] {
            sources(&top.join(directory), &mut files);
        }
        let mut found = 0;
        for file in files.iter().filter(|file| !file.ends_with("terminal/way_in.rs")) {
            let text = std::fs::read_to_string(file).unwrap();
            for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
                for command in line.split('`').filter(|part| part.starts_with("crewboss ")) {
                    // Whatever is filled in is a name.
                    let words = command.split(' ').map(|word| if word.contains('{') { "x" } else { word });
                    let parsed = Cli::try_parse_from(words);
                    assert!(parsed.is_ok(), "{}: {command:?} is no command", file.display());
                    found += 1;
                }
            }
        }
        assert!(found >= 10, "only {found} commands were found");
    }

    #[test]
    fn the_crew_is_named_as_a_shell_takes_it() {
        assert_eq!(enter("lab1", "tiny-x"), "crewboss enter lab1/tiny-x");
        assert_eq!(option(Path::new("../crews/lab.toml")), "--crew ../crews/lab.toml ");
        assert_eq!(option(Path::new("my crew's.toml")), r"--crew 'my crew'\''s.toml' ");
    }
}
