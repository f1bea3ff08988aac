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
    use super::*;

    #[test]
    fn the_crew_is_named_as_a_shell_takes_it() {
        assert_eq!(enter("lab1", "tiny-x"), "crewboss enter lab1/tiny-x");
        assert_eq!(option(Path::new("../crews/lab.toml")), "--crew ../crews/lab.toml ");
        assert_eq!(option(Path::new("my crew's.toml")), r"--crew 'my crew'\''s.toml' ");
    }
}
