//! Where configuration files are looked for.

use std::path::{Path, PathBuf};

use crewboss_boss::source::bare_repository_of;

use super::document::Document;
use super::error::ConfigError;
use super::trust::{Repository, Way};

/// A build file and the repository that it lies in.
#[derive(Debug)]
pub struct Found {
    /// The build file.
    pub file: Document,
    /// The top of the repository.
    pub repository: PathBuf,
}

/// Finds `build.toml`: as named, or upwards from a directory to the top of its repository.
pub fn find_build(named: Option<&Path>, from: &Path) -> Result<Found, ConfigError> {
    let around = Repository::around(from);
    if let Some(named) = named {
        let path = from.join(named);
        let file = Document::read(&path, Way::Named)?;
        // A file that is kept elsewhere builds the repository in which the user stands.
        let own = Repository::around(file.directory())?;
        let repository = match own {
            Some(repository) => repository,
            None => around?.ok_or_else(|| no_repository(from))?,
        };
        return Ok(Found { file, repository: repository.top });
    }
    let repository = around?;
    for directory in from.ancestors() {
        let path = directory.join("build.toml");
        if path.symlink_metadata().is_ok() {
            let Some(repository) = repository else {
                return Err(no_repository(directory));
            };
            let file = Document::read(&path, Way::Met { repository: Some(&repository), option: "--file" })?;
            return Ok(Found { file, repository: repository.top });
        }
        if repository.as_ref().is_some_and(|repository| repository.top == directory) {
            break;
        }
    }
    let repository = repository.map(|repository| repository.top);
    Err(ConfigError::NoBuildFile { from: from.to_owned(), repository })
}

fn no_repository(directory: &Path) -> ConfigError {
    match bare_repository_of(directory) {
        Some(bare) => ConfigError::BareRepository { bare },
        None => ConfigError::NoRepository { directory: directory.to_owned() },
    }
}

/// Finds `crew.toml`: as named, upwards from a directory, or in the user's configuration. `None`:
/// there is none, the crew is this computer.
pub fn find_crew(
    named: Option<&Path>,
    from: &Path,
    config_home: Option<&Path>,
) -> Result<Option<Document>, ConfigError> {
    if let Some(named) = named {
        return Document::read(&from.join(named), Way::Named).map(Some);
    }
    let met = from.ancestors().map(|directory| directory.join("crew.toml"));
    if let Some(path) = met.into_iter().find(|path| path.symlink_metadata().is_ok()) {
        let repository = Repository::around(from).ok().flatten();
        let repository = repository.as_ref().filter(|repository| path.starts_with(&repository.top));
        return Document::read(&path, Way::Met { repository, option: "--crew" }).map(Some);
    }
    let own = config_home.map(|home| home.join("crewboss/crew.toml"));
    own.filter(|path| path.exists()).map(|path| Document::read(&path, Way::Own)).transpose()
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
        let bare = top.path().join("bare");
        for name in ["objects", "refs"] {
            std::fs::create_dir_all(bare.join(name)).unwrap();
        }
        std::fs::write(bare.join("HEAD"), "").unwrap();
        let outside = find_build(Some(&top.path().join("build.toml")), &bare.join("objects")).unwrap_err();
        assert!(
            outside.to_string().contains(&format!("git -C '{}' worktree add", bare.display())),
            "{outside}"
        );
        std::fs::write(repository.join("build.toml"), "").unwrap();
        std::fs::write(deep.join("x.toml"), "").unwrap();
        let found =
            |named| find_build(named, &deep).map(|found| (found.file.path, found.repository)).unwrap();
        assert_eq!(found(None), (repository.join("build.toml"), repository.clone()));
        assert_eq!(found(Some(Path::new("x.toml"))), (deep.join("x.toml"), repository));
    }

    #[test]
    fn the_crew_file_is_looked_for_upwards_and_then_at_the_user_s() {
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("a/b");
        let home = top.path().join("home");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::create_dir_all(home.join("crewboss")).unwrap();
        let found = || find_crew(None, &deep, Some(&home)).unwrap().map(|file| file.path);
        assert_eq!(found(), None);
        let users = home.join("crewboss/crew.toml");
        std::fs::write(&users, "").unwrap();
        assert_eq!(found(), Some(users));
        let near = top.path().join("a/crew.toml");
        std::fs::write(&near, "").unwrap();
        assert_eq!(found(), Some(near));
    }
}
