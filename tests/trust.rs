//! Files of other users that could have something run: crew and build files, and the repository
//! that bounds the search.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

/// A user who is not us.
const STRANGER: u32 = 987_654;

/// A build file that was read is told by this mistake of it.
const BUILD: &str = "[target.x]\nstagse.build = \"touch ran\"\n";
const BUILD_READ: &str = "did you mean `stages`";

/// As [`BUILD`] of a crew file.
const CREW: &str = "[host.a]\nshh = \"x\"\n";
const CREW_READ: &str = "did you mean `ssh`";

struct Place {
    top: tempfile::TempDir,
}

impl Place {
    /// A repository of ours with a directory in it to work in.
    fn new() -> Self {
        let top = tempfile::tempdir().expect("this test runs as root");
        let place = Self { top };
        std::fs::create_dir_all(place.at("repo/inner")).expect("this test runs as root");
        std::fs::create_dir(place.at("home")).expect("this test runs as root");
        git(&place.at("repo"), &["init", "-q"]);
        place
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.top.path().join(path)
    }

    fn give_away(&self, path: &str) {
        chown(self.at(path), Some(STRANGER), Some(STRANGER)).expect("this test runs as root");
    }

    fn set_mode(&self, path: &str, mode: u32) {
        std::fs::set_permissions(self.at(path), Permissions::from_mode(mode))
            .expect("this test runs as root");
    }

    /// What `crewboss` says in the directory, which must be an error.
    fn said(&self, arguments: &[&str], variables: &[(&str, &str)]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crewboss"));
        command.args(arguments).current_dir(self.at("repo/inner")).env("HOME", self.at("home"));
        command.env_remove("XDG_CONFIG_HOME").env_remove("SUDO_UID").stdin(Stdio::null());
        let output = command.envs(variables.iter().copied()).output().expect("this test runs as root");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(!self.at("repo/ran").exists() && !self.at("repo/inner/ran").exists());
        text
    }

    fn expect(&self, arguments: &[&str], part: &str) {
        let text = self.said(arguments, &[]);
        assert!(text.contains(part), "{arguments:?} does not say {part:?}: {text}");
    }
}

fn git(directory: &Path, arguments: &[&str]) {
    let status =
        Command::new("git").args(arguments).current_dir(directory).status().expect("this test runs as root");
    assert!(status.success(), "{arguments:?}");
}

#[test]
fn files_that_others_could_have_written_are_not_used_unless_named() {
    for (name, text, read, option) in
        [("crew.toml", CREW, CREW_READ, "--crew"), ("build.toml", BUILD, BUILD_READ, "--file")]
    {
        let place = Place::new();
        let (path, command) = (format!("repo/inner/{name}"), "build");
        std::fs::write(place.at("repo/build.toml"), "[target.x]\nstages.build = \"make\"\n").unwrap();
        std::fs::write(place.at(&path), text).unwrap();
        place.expect(&[command], read);
        place.set_mode(&path, 0o666);
        place
            .expect(&[command], "other users can write to it (its mode is 666), and have anything run by it");
        place.expect(&[command, option, name], "`chmod go-w ");
        place.set_mode(&path, 0o644);

        // Whoever owns the directory that one works in may have laid it out.
        place.give_away(&path);
        place.give_away("repo/inner");
        place
            .expect(&[command], "it belongs to the user with the number 987654, who could have anything run");
        place.expect(&[command, option, name], read);

        std::fs::rename(place.at(&path), place.at("repo/inner/other.toml")).unwrap();
        symlink("other.toml", place.at(&path)).unwrap();
        place.expect(&[command], "it is a symbolic link and not a file");
        std::fs::remove_file(place.at(&path)).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, place.at(&path), fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        place.expect(&[command], "it is a FIFO and not a file");
        place.expect(&[command, option, name], "it is a FIFO and not a file");
    }
}

#[test]
fn the_repository_of_another_user_is_used_if_git_would_use_it() {
    let place = Place::new();
    std::fs::write(place.at("repo/build.toml"), BUILD).unwrap();
    for path in ["repo", "repo/.git", "repo/build.toml"] {
        place.give_away(path);
    }
    let top = place.at("repo").canonicalize().unwrap().display().to_string();
    let refused = format!("{top} belongs to another user, number 987654");
    let safe = |directory| {
        [("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "safe.directory"), ("GIT_CONFIG_VALUE_0", directory)]
    };
    place.expect(&["build"], &refused);
    for directory in ["*", &top] {
        let text = place.said(&["build"], &safe(directory));
        assert!(text.contains(BUILD_READ), "{directory}: {text}");
    }
    assert!(place.said(&["build"], &safe("/elsewhere")).contains(&refused));
    // Whom root works for is known by a variable, which says nothing of anybody else.
    assert!(place.said(&["build"], &[("SUDO_UID", "987654")]).contains(BUILD_READ));
    assert!(place.said(&["build"], &[("SUDO_UID", "987655")]).contains(&refused));
    // A variable that leads git to a repository does not make it ask whose it is.
    let named = place.at("repo/.git").display().to_string();
    assert!(place.said(&["build"], &[("GIT_DIR", &named)]).contains(&refused));

    // What is told is what helps.
    let text = place.said(&["build"], &[]);
    let hint = text.split('`').nth(1).unwrap();
    let shell = Command::new("sh").args(["-c", hint]).env("HOME", place.at("home")).status().unwrap();
    assert!(shell.success(), "{hint}");
    place.expect(&["build"], BUILD_READ);

    // Another's file in it stays another's.
    chown(place.at("repo/build.toml"), Some(STRANGER + 1), None).unwrap();
    place.expect(&["build"], "it belongs to the user with the number 987655");
}

#[test]
fn a_planted_repository_stops_the_search_where_it_is() {
    let place = Place::new();
    std::fs::remove_dir_all(place.at("repo/.git")).unwrap();
    std::fs::create_dir(place.at("own")).unwrap();
    git(&place.at("own"), &["init", "-q"]);
    std::fs::write(place.at("repo/build.toml"), BUILD).unwrap();
    place.give_away("repo/build.toml");
    let git_dir = place.at("own/.git");
    std::fs::write(place.at("repo/.git"), format!("gitdir: {}\n", git_dir.display())).unwrap();
    place.give_away("repo/.git");
    place.expect(&["build"], "belongs to another user, number 987654");
    std::fs::remove_file(place.at("repo/.git")).unwrap();
    symlink(&git_dir, place.at("repo/.git")).unwrap();
    std::os::unix::fs::lchown(place.at("repo/.git"), Some(STRANGER), Some(STRANGER)).unwrap();
    place.expect(&["build"], "belongs to another user, number 987654");
    // With a repository of our own there, the file is still a stranger's.
    std::os::unix::fs::lchown(place.at("repo/.git"), Some(0), Some(0)).unwrap();
    place.expect(&["build"], "build.toml: it belongs to the user with the number 987654");
}

#[test]
fn an_ssh_configuration_that_others_could_have_written_is_not_used() {
    let place = Place::new();
    std::fs::write(place.at("repo/build.toml"), "[target.x]\nstages.build = \"make\"\n").unwrap();
    std::fs::write(place.at("repo/crew.toml"), "[ssh]\nconfig = 'ssh_config'\n[host.a]\nssh = 'x'\n")
        .unwrap();
    std::fs::write(place.at("repo/ssh_config"), "ProxyCommand touch ran\n").unwrap();
    place.set_mode("repo/ssh_config", 0o666);
    place.expect(&["build"], "other users can write to it (its mode is 666)");
    place.set_mode("repo/ssh_config", 0o644);
    place.give_away("repo/ssh_config");
    place.expect(&["build"], "crew.toml:2:10: cannot use");
}
