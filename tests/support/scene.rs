//! A project to build and a person who builds it: a repository, a home directory of their own, a
//! crew file.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::boss::Boss;
use super::lab::{Lab, User};
use super::write;

/// No host is taken for lost because this machine stands still for a while.
pub const LIMITS: &str = "[limits]\nheartbeat = \"1s\"\nsilence = \"2m\"\n";

/// For tests in which a host falls silent: it is soon noticed.
pub const FAST_LIMITS: &str = "[limits]\nheartbeat = \"1s\"\nsilence = \"4s\"\n";

/// Where programs are, for somebody who has set nothing.
const PROGRAMS: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

const TWO_HOSTS: [(&str, &str); 2] = [("host1", "slots = 1"), ("host2", "slots = 1")];

/// A directory with all that one test needs, removed at its end.
#[derive(Debug)]
pub struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    /// A repository without commits, and this build file in it.
    pub fn new(build: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("crewboss-scene-").tempdir().expect("a directory");
        let scene = Self { dir };
        std::fs::create_dir(scene.path("home")).expect("a home");
        git2::Repository::init(scene.repo()).expect("a repository");
        write(&scene.repo().join("build.toml"), build);
        scene
    }

    /// As `new`, with this many commits. Commit `n` (from 1) has a file `number` that says so.
    pub fn with_commits(build: &str, commits: u32) -> Self {
        let scene = Self::new(build);
        for number in 1..=commits {
            scene.commit(&[("number", &number.to_string())], &format!("Count to {number}"));
        }
        scene
    }

    /// Something below the scene's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The repository.
    pub fn repo(&self) -> PathBuf {
        self.path("repo")
    }

    /// The result directory.
    pub fn out(&self) -> PathBuf {
        self.path("out")
    }

    /// Writes files into the working tree.
    pub fn files(&self, files: &[(&str, &str)]) {
        for (name, content) in files {
            write(&self.repo().join(name), content);
        }
    }

    /// Writes files and commits everything.
    pub fn commit(&self, files: &[(&str, &str)], subject: &str) {
        self.files(files);
        let repo = git2::Repository::open(self.repo()).expect("the repository");
        let mut index = repo.index().expect("an index");
        index.add_all(["*"], git2::IndexAddOption::DEFAULT, None).expect("files to add");
        index.write().expect("the index");
        let tree = repo.find_tree(index.write_tree().expect("a tree")).expect("the tree");
        let who = git2::Signature::new("A Person", "person@example.org", &git2::Time::new(1_700_000_000, 0));
        let who = who.expect("a signature");
        let parent = repo.head().ok().map(|head| head.peel_to_commit().expect("a commit"));
        let parents: Vec<&git2::Commit<'_>> = parent.iter().collect();
        repo.commit(Some("HEAD"), &who, &who, subject, &tree, &parents).expect("a commit");
    }

    /// Writes a crew file with hosts of a lab: `hosts` names them and adds further lines to each.
    pub fn crew(&self, lab: &Lab, user: User, hosts: &[(&str, &str)]) -> PathBuf {
        self.crew_with(LIMITS, lab, user, hosts)
    }

    /// The same with other limits.
    pub fn crew_with(&self, limits: &str, lab: &Lab, user: User, hosts: &[(&str, &str)]) -> PathBuf {
        let config = lab.dir().join("ssh_config");
        let mut text = format!("{limits}[ssh]\nconfig = {:?}\n", config.display().to_string());
        for (host, more) in hosts {
            text += &format!(
                "[host.{host}]\nssh = \"{}@{host}\"\nwork = \"{}\"\n{more}\n",
                user.name(),
                user.work()
            );
        }
        self.crew_file(&text)
    }

    /// Both hosts of a shared lab with one slot each.
    pub fn two_hosts(&self, lab: &Lab, user: User) -> PathBuf {
        self.crew(lab, user, &TWO_HOSTS)
    }

    /// The same, for tests in which one of them falls silent.
    pub fn two_hosts_that_may_fall_silent(&self, lab: &Lab, user: User) -> PathBuf {
        self.crew_with(FAST_LIMITS, lab, user, &TWO_HOSTS)
    }

    /// Writes a crew file.
    pub fn crew_file(&self, text: &str) -> PathBuf {
        let path = self.path("crew.toml");
        write(&path, text);
        path
    }

    /// `crewboss build` of this project with this crew, where the lab's hosts can be reached.
    pub fn build(&self, lab: &Lab, crew: &Path) -> Boss {
        let mut boss = self.boss(lab.inside(Path::new(env!("CARGO_BIN_EXE_crewboss"))));
        boss.arg("build").arg("--crew").arg(crew);
        self.with_files(boss)
    }

    /// `crewboss build` of this project on this computer, by the rules for a missing crew file.
    pub fn build_local(&self) -> Boss {
        let mut boss = self.boss(Command::new(env!("CARGO_BIN_EXE_crewboss")));
        boss.arg("build");
        self.with_files(boss)
    }

    /// `crewboss` with other arguments, on the lab's network if there is one.
    pub fn crewboss(&self, lab: Option<&Lab>, arguments: &[&str]) -> Boss {
        let program = Path::new(env!("CARGO_BIN_EXE_crewboss"));
        let mut boss = self.boss(lab.map_or_else(|| Command::new(program), |lab| lab.inside(program)));
        for argument in arguments {
            boss.arg(argument);
        }
        boss
    }

    /// A line of shell as somebody types it who has `crewboss` on the path.
    pub fn typed(&self, lab: Option<&Lab>, line: &str) -> Boss {
        let shell = Path::new("sh");
        let mut boss = self.boss(lab.map_or_else(|| Command::new(shell), |lab| lab.inside(shell)));
        boss.arg("-c").arg(format!("exec {line}"));
        boss.env("PATH", path_with_crewboss())
    }

    fn with_files(&self, mut boss: Boss) -> Boss {
        boss.arg("--file").arg(self.repo().join("build.toml")).arg("--out").arg(self.out());
        boss.events(self.path("events.jsonl"));
        boss
    }

    /// The environment of a person who has set nothing.
    fn boss(&self, mut command: Command) -> Boss {
        command
            .env_clear()
            .env("PATH", PROGRAMS)
            .env("HOME", self.path("home"))
            .env("LANG", "C.UTF-8")
            .env("TMPDIR", self.dir.path())
            .current_dir(self.dir.path());
        Boss::new(command, self.dir.path(), self.out())
    }
}

/// A path on which our program is found by its name, as in what messages advise.
pub fn path_with_crewboss() -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_crewboss"));
    format!("{}:{PROGRAMS}", program.parent().expect("a directory").display())
}
