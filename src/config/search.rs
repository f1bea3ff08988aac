//! Where configuration files are looked for.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crewboss_boss::source::repository_of;

use super::error::ConfigError;

/// A build file and the repository that it lies in.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The build file.
    pub file: PathBuf,
    /// The top of the repository.
    pub repository: PathBuf,
}

/// Finds `build.toml`: as named, or upwards from a directory to the top of its repository.
pub fn find_build(named: Option<&Path>, from: &Path) -> Result<Found, ConfigError> {
    if let Some(named) = named {
        let file = from.join(named);
        // One that is not there, or is a directory, is reported by reading it.
        let directory = if file.is_dir() { file.as_path() } else { file.parent().unwrap_or(from) };
        // A file that is kept elsewhere builds the repository in which the user stands.
        let repository = repository_of(directory).or_else(|| repository_of(from));
        let repository =
            repository.ok_or_else(|| ConfigError::NoRepository { directory: directory.to_owned() })?;
        return Ok(Found { file, repository });
    }
    let repository = repository_of(from);
    for directory in from.ancestors() {
        let file = directory.join("build.toml");
        if file.exists() {
            let repository =
                repository.ok_or(ConfigError::NoRepository { directory: directory.to_owned() })?;
            return Ok(Found { file, repository });
        }
        if repository.as_deref() == Some(directory) {
            break;
        }
    }
    Err(ConfigError::NoBuildFile { from: from.to_owned(), repository })
}

/// Finds `crew.toml`: as named, upwards from a directory, or in the user's configuration. `None`: there is none, the
/// crew is this computer.
pub fn find_crew(
    named: Option<&Path>,
    from: &Path,
    config_home: Option<&Path>,
) -> Result<Option<PathBuf>, ConfigError> {
    if let Some(named) = named {
        return Ok(Some(from.join(named)));
    }
    for directory in from.ancestors() {
        let file = directory.join("crew.toml");
        if let Ok(metadata) = file.metadata() {
            return if is_trusted(metadata.uid(), from) {
                Ok(Some(file))
            } else {
                Err(ConfigError::Foreign { path: file, owner: metadata.uid() })
            };
        }
    }
    Ok(config_home.map(|home| home.join("crewboss/crew.toml")).filter(|file| file.exists()))
}

/// A crew file has commands run. One that was merely met on the way up, for example in `/tmp`, must belong to this user,
/// to root, or to whoever owns the directory that the user chose to work in.
fn is_trusted(owner: u32, from: &Path) -> bool {
    let owner_of = |path: &Path| path.metadata().map(|metadata| metadata.uid()).ok();
    owner == 0 || Some(owner) == owner_of(Path::new("/proc/self")) || Some(owner) == owner_of(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_file_is_looked_for_up_to_the_top_of_the_repository() {
        let top = tempfile::tempdir().unwrap();
        let repository = top.path().join("r");
        let deep = repository.join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::create_dir(repository.join(".git")).unwrap();
        std::fs::write(top.path().join("build.toml"), "").unwrap();
        let missing = find_build(None, &deep).unwrap_err();
        assert!(matches!(missing, ConfigError::NoBuildFile { .. }), "one above the repository was taken");
        std::fs::write(repository.join("build.toml"), "").unwrap();
        let found = find_build(None, &deep).unwrap();
        assert_eq!(found, Found { file: repository.join("build.toml"), repository: repository.clone() });
        let named = find_build(Some(Path::new("x.toml")), &deep).unwrap();
        assert_eq!(named, Found { file: deep.join("x.toml"), repository });
    }

    #[test]
    fn the_crew_file_is_looked_for_upwards_and_then_at_the_user_s() {
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("a/b");
        let home = top.path().join("home");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::create_dir_all(home.join("crewboss")).unwrap();
        assert_eq!(find_crew(None, &deep, Some(&home)).unwrap(), None);
        let users = home.join("crewboss/crew.toml");
        std::fs::write(&users, "").unwrap();
        assert_eq!(find_crew(None, &deep, Some(&home)).unwrap(), Some(users));
        let near = top.path().join("a/crew.toml");
        std::fs::write(&near, "").unwrap();
        assert_eq!(find_crew(None, &deep, Some(&home)).unwrap(), Some(near));
    }

    #[test]
    fn a_stranger_s_crew_file_is_not_trusted() {
        let mine = tempfile::tempdir().unwrap();
        assert!(is_trusted(0, mine.path()));
        assert!(is_trusted(mine.path().metadata().unwrap().uid(), mine.path()));
        assert!(!is_trusted(987_654, mine.path()));
    }
}
