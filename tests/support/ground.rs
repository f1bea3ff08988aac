//! Machines on a btrfs of its own, for hosts that are this computer: so variables reach the runner,
//! and several workers can share one directory of machines.
//!
//! All processes that are started here carry a mark, by which they are found again, whoever their
//! parents were.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::boss::{Boss, Running};
use super::scene::{LIMITS, Scene};
use super::{LOOK_EVERY, SOON, run};

/// What processes carry, with the name of their place.
const MARK: &str = "CREWBOSS_TEST_CASE";

/// Arguments: the machine directory, a machine in it that is bootstrapped, the new one, a line of
/// its manifest.
const VARIANT: &str = r#"
    mkdir "$1/local/$3"
    cd "$1/local/$3"
    for one in 1.1 default; do
        btrfs -q subvolume snapshot "../$2/$2-$one" "$3-$one"
        sed -i "s/^name = .*/name = \"$3\"/" "$3-$one/manifest.toml"
        echo "$4" >>"$3-$one/manifest.toml"
    done
    ln -s "$3-1.1" "$3-1""#;

/// Arguments: the place to copy from, the new place, machines. Their copies and what was saved of
/// them go along.
const COPY: &str = r#"
    from=$1 to=$2
    shift 2
    mkdir -p "$to/work"
    (cd "$from/work" && cp *.json "$to/work")
    for machine; do
        mkdir -p "$to/machines/local/$machine"
        for one in "$from/machines/local/$machine"/*; do
            [ -h "$one" ] || btrfs -q subvolume snapshot "$one" "$to/machines/local/$machine/"
        done
        ln -s "$machine-1.1" "$to/machines/local/$machine/$machine-1"
    done"#;

/// A btrfs in a file. Dropped, all that runs on it is killed.
#[derive(Debug)]
pub struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    /// An empty one.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("crewboss-ground-").tempdir().expect("a directory");
        let ground = Self { dir };
        let image = ground.dir.path().join("image");
        run(Command::new("truncate").args(["-s", "8G"]).arg(&image));
        run(Command::new("mkfs.btrfs").arg("-q").arg(&image));
        for directory in [ground.root(), ground.dir.path().join("home")] {
            std::fs::create_dir(directory).expect("a directory");
        }
        run(Command::new("mount").args(["-o", "loop,noatime"]).arg(&image).arg(ground.root()));
        ground
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// A place with a work directory and machines of its own.
    pub fn place(&self, name: &str) -> Place {
        let root = self.root().join(name);
        // One home for all: what is sent to this computer is sent once.
        let home = self.dir.path().join("home");
        let mark = format!("{}/{name}", self.dir.path().display());
        Place { machines: root.join("machines"), work: root.join("work"), root, home, mark }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // A test that failed may have left somebody, who would keep the disk.
        for one in marked(&format!("{}/", self.dir.path().display()), true) {
            one.signal("KILL");
        }
        drop(Command::new("umount").arg("--lazy").arg(self.root()).status());
    }
}

/// A work directory, and the machines that its host has.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where both are.
    pub root: PathBuf,
    machines: PathBuf,
    work: PathBuf,
    home: PathBuf,
    mark: String,
}

impl Place {
    /// Another host with the machines of this one.
    pub fn beside(&self, name: &str) -> Self {
        Self { work: self.root.join(name), mark: format!("{}/{name}", self.mark), ..self.clone() }
    }

    /// Makes a small machine.
    pub fn make(&self, name: &str, options: &[&str]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/make-machine");
        let small = ["--compiler", "none", "--free", "256M", "--memory", "128M:128M"];
        run(Command::new(script).arg("--into").arg(&self.machines).args(small).args(options).arg(name));
    }

    /// Makes a toolchain with this script.
    pub fn toolchain(&self, name: &str, script: &str) {
        let bootstrap = self.machines.join("toolchains").join(name).join("bootstrap");
        super::write(&bootstrap, script);
        run(Command::new("chmod").arg("755").arg(bootstrap));
    }

    /// Makes the machine `name` of one that is bootstrapped, with a further line in its manifest;
    /// so is the new one then.
    pub fn variant(&self, of: &str, name: &str, line: &str) {
        let mut command = Command::new("sh");
        run(command.args(["-ec", VARIANT, "sh"]).arg(&self.machines).args([of, name, line]));
    }

    /// Copies machines of another place here.
    pub fn copy(&self, from: &Place, machines: &[&str]) {
        let mut command = Command::new("sh");
        run(command.args(["-ec", COPY, "sh"]).arg(&from.root).arg(&self.root).args(machines));
    }

    /// Has a machine forget one of the copies that it has.
    pub fn forget(&self, machine: &str, copy: &str) {
        let path = self.machines.join("local").join(machine).join(format!("{machine}-{copy}"));
        run(Command::new("btrfs").args(["-q", "subvolume", "delete"]).arg(path));
    }

    /// A crew of this host alone, with so many slots.
    pub fn crew(&self, scene: &Scene, slots: u32) -> PathBuf {
        let (work, machines) = (&self.work, &self.machines);
        scene.crew_file(&format!(
            "{LIMITS}[host.here]\nlocal = true\nslots = {slots}\naccel = \"tcg\"\nwork = {work:?}\nmachines = {machines:?}\n"
        ))
    }

    /// Marks what is started with it.
    pub fn prepare(&self, boss: Boss) -> Boss {
        boss.env("HOME", &self.home).env(MARK, &self.mark)
    }

    /// `crewboss build -v` of a project here.
    pub fn build(&self, scene: &Scene, slots: u32, options: &[&str]) -> Boss {
        let mut boss = scene.build_local().args(&["-v"]).args(options);
        boss.arg("--crew").arg(self.crew(scene, slots));
        self.prepare(boss)
    }

    /// `crewboss` with these arguments and the crew.
    pub fn crewboss(&self, scene: &Scene, arguments: &[&str]) -> Running {
        self.command(scene, arguments).called("other").start()
    }

    /// The same, not started yet.
    pub fn command(&self, scene: &Scene, arguments: &[&str]) -> Boss {
        let mut boss = self.prepare(scene.crewboss(None, arguments));
        boss.arg("--crew").arg(self.crew(scene, 1));
        boss
    }

    /// The processes that were started here.
    pub fn processes(&self) -> Vec<Process> {
        marked(&self.mark, false)
    }

    /// The records of all guests of these machines. One that is just being removed may be missing.
    pub fn records(&self) -> Vec<serde_json::Value> {
        let entries = std::fs::read_dir(self.machines.join("guests")).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        let records = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
        records.filter_map(|path| serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()).collect()
    }

    /// What is there and should not be.
    fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.processes().into_iter().map(|one| format!("process {}: {}", one.pid, one.command)).collect();
        let names = |directory: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let mut look = |directory: PathBuf, ours: &dyn Fn(&str) -> bool| {
            let found = names(&directory).into_iter().filter(|name| ours(name));
            left.extend(found.map(|name| directory.join(name).display().to_string()));
        };
        look(self.machines.join("guests"), &|_| true);
        look(self.machines.join("locks"), &|_| true);
        look(self.work.join("tasks"), &|_| true);
        for machine in names(&self.machines.join("local")) {
            // What an operator has made, the copy, and what was saved of it.
            let known = ["1", "1.1", "default", "default.saved"].map(|end| format!("{machine}-{end}"));
            let unknown = |name: &str| !known.iter().any(|one| one == name);
            look(self.machines.join("local").join(&machine), &unknown);
        }
        let sockets = run(Command::new("find").arg(&self.root).args(["-ignore_readdir_race", "-type", "s"]));
        left.extend(sockets.lines().map(|path| format!("socket {path}")));
        left
    }

    /// Waits until nothing is there that should not be; panics with what is left, and `after` which
    /// story.
    pub fn expect_clean(&self, after: &dyn std::fmt::Debug) {
        let start = Instant::now();
        let mut left = self.leftovers();
        while !left.is_empty() && start.elapsed() < SOON {
            std::thread::sleep(LOOK_EVERY);
            left = self.leftovers();
        }
        assert!(left.is_empty(), "left: {left:#?}\nafter {after:#?}");
    }
}

/// A process that carries the mark.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its command line, in words.
    pub command: String,
}

impl Process {
    /// Sends it a signal, by name. It may be gone.
    pub fn signal(&self, name: &str) {
        drop(Command::new("kill").args([format!("-{name}"), self.pid.to_string()]).output());
    }

    /// Whether it is a QEMU.
    pub fn is_qemu(&self) -> bool {
        self.command.split(' ').next().is_some_and(|program| program.contains("qemu-system"))
    }

    /// What it was started as, if it is ours.
    pub fn role(&self) -> &str {
        self.command.split(' ').nth(1).unwrap_or_default()
    }

    /// Whether it stands still.
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }
}

/// Waits until a runner of this place stands still. Returns it.
pub fn wait_for_halt(place: &Place, boss: &mut Running, within: Duration) -> Process {
    let found = super::wait_for("the runner to stand still", within, || {
        if boss.has_ended() {
            return Some(None);
        }
        let stopped = |one: &Process| one.role() == "runner" && one.is_stopped();
        place.processes().into_iter().find(stopped).map(Some)
    });
    found.unwrap_or_else(|| panic!("it ended before the step: {}", boss.story()))
}

/// The processes with this mark, or with all that begin so. The dead that nobody has waited for
/// have no variables, and are not there.
fn marked(mark: &str, begin: bool) -> Vec<Process> {
    let wanted = format!("{MARK}={mark}");
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has = |pid: &u32| {
        let variables = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut all = variables.split(|byte| *byte == 0);
        all.any(|one| if begin { one.starts_with(wanted.as_bytes()) } else { one == wanted.as_bytes() })
    };
    let process = |pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&line).replace('\0', " ");
        Some(Process { pid, command })
    };
    pids.filter(has).filter_map(process).collect()
}
