//! Whoever is killed at whatever step of a guest's life: the run ends right, and the next worker or `kill-workers` leaves
//! nothing on the host.
//!
//! Each case has a work directory and machines of its own on one btrfs, and a host that is this computer, so that variables
//! reach the runner: it stands still at a step, as if that took for ever, until somebody has been killed.

mod support;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use support::boss::{Boss, Ended, Running};
use support::scene::{FAST_LIMITS, Scene};
use support::{run, wait_for};

/// Steps of a task's guest.
const OF_A_TASK: [&str; 7] =
    ["planned", "copied", "booting", "preparing", "running", "collecting", "stopping"];

/// The step that only a bootstrap has.
const OF_A_BOOTSTRAP: &str = "bootstrapping";

/// Until these steps there is no QEMU.
const WITHOUT_QEMU: [&str; 2] = ["planned", "copied"];

/// At this step the run goes on to its end after somebody was killed whom it can do without; at the others it is stopped as
/// soon as the task is to be run again, which saves a boot.
const TO_THE_END: &str = "running";

/// As many cases at once: most of their time they wait.
const AT_ONCE: usize = 3;

/// Long enough for a boot or two, beside other cases, on a machine that is busy with other things and has no KVM.
const A_WHILE: Duration = Duration::from_secs(240);

/// Everything of a case carries this variable, with the case's name.
const MARK: &str = "CREWBOSS_TEST_CASE";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The runner, which is the TFTP server as well.
    Runner,
    Qemu,
    Worker,
    Guardian,
    Boss,
    All,
}

const VICTIMS: [Victim; 6] =
    [Victim::Runner, Victim::Qemu, Victim::Worker, Victim::Guardian, Victim::Boss, Victim::All];

#[derive(Debug, Clone, Copy)]
struct Case {
    machine: &'static str,
    step: &'static str,
    victim: Victim,
}

fn cases() -> VecDeque<Case> {
    let steps = OF_A_TASK.into_iter().chain([OF_A_BOOTSTRAP]);
    let of = |step| VICTIMS.map(|victim| Case { machine: "tiny", step, victim });
    let table = steps.flat_map(of);
    let there = |case: &Case| case.victim != Victim::Qemu || !WITHOUT_QEMU.contains(&case.step);
    // Over TFTP the runner serves files as well.
    let plain =
        [Victim::Runner, Victim::All].map(|victim| Case { machine: "plain", step: "running", victim });
    table.filter(there).chain(plain).collect()
}

/// A btrfs in a file, with machines that are bootstrapped.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let disk =
            Self { dir: tempfile::Builder::new().prefix("crewboss-kill-").tempdir().expect("a directory") };
        let image = disk.dir.path().join("image");
        run(Command::new("truncate").args(["-s", "8G"]).arg(&image));
        run(Command::new("mkfs.btrfs").arg("-q").arg(&image));
        std::fs::create_dir(disk.root()).expect("a directory");
        run(Command::new("mount").args(["-o", "loop,noatime"]).arg(&image).arg(disk.root()));
        for (name, exchange) in [("tiny", "agent"), ("plain", "tftp")] {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/make-machine");
            let small = ["--compiler", "none", "--free", "64M", "--memory", "128M:128M"];
            let mut command = Command::new(script);
            command.arg("--into").arg(disk.root().join("base/machines")).args(small);
            run(command.args(["--exchange", exchange, name]));
        }
        let place = Place { root: disk.root().join("base"), home: disk.home(), name: "base".to_owned() };
        std::fs::create_dir(disk.home()).expect("a home");
        drop(
            place.crewboss(&Scene::new(""), &["machines", "bootstrap", "--crew"]).end(A_WHILE).expect_code(0),
        );
        disk
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// One for all cases: what is sent to the host is sent once.
    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Machines as at the beginning, for one case. A bootstrap finds no copy.
    fn place(&self, case: &Case) -> Place {
        let name = format!("{}-{}-{:?}", case.machine, case.step, case.victim);
        let place = Place { root: self.root().join(&name), home: self.home(), name };
        let script = r#"
            mkdir -p "$2/work" "$2/machines/local/$3"
            cp "$1"/work/*.json "$2/work/"
            cd "$1/machines/local/$3"
            for one in "$3-1.1" $4; do btrfs -q subvolume snapshot "$one" "$2/machines/local/$3/$one"; done
            ln -s "$3-1.1" "$2/machines/local/$3/$3-1""#;
        let copy =
            if case.step == OF_A_BOOTSTRAP { String::new() } else { format!("{}-default", case.machine) };
        let mut command = Command::new("sh");
        command.args(["-ec", script, "sh"]).arg(self.root().join("base")).arg(&place.root);
        run(command.arg(case.machine).arg(copy));
        place
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A case that failed may have left somebody, who would keep the disk.
        for one in marked("") {
            one.signal("KILL");
        }
        drop(Command::new("umount").arg("--lazy").arg(self.root()).status());
    }
}

/// Where a case happens.
struct Place {
    root: PathBuf,
    home: PathBuf,
    name: String,
}

impl Place {
    fn machines(&self) -> PathBuf {
        self.root.join("machines")
    }

    fn crew(&self, scene: &Scene) -> PathBuf {
        let (work, machines) = (self.root.join("work"), self.machines());
        scene.crew_file(&format!(
            "{FAST_LIMITS}[host.here]\nlocal = true\nslots = 1\naccel = \"tcg\"\nwork = {work:?}\nmachines = {machines:?}\n"
        ))
    }

    fn prepare(&self, boss: Boss) -> Boss {
        boss.env("HOME", &self.home).env(MARK, &self.name)
    }

    /// `crewboss` with these arguments and the crew.
    fn crewboss(&self, scene: &Scene, arguments: &[&str]) -> Running {
        let mut boss = self.prepare(scene.crewboss(None, arguments));
        boss.arg(self.crew(scene));
        boss.called("other").start()
    }

    /// What is to be killed while it is at it: a build, or a bootstrap ahead of time.
    fn start(&self, scene: &Scene, step: &str) -> Running {
        let halt = format!("{step}={}", self.root.join("halted").display());
        let words = ["machines", "bootstrap", "--crew"];
        let mut boss = if step == OF_A_BOOTSTRAP {
            scene.crewboss(None, &words)
        } else {
            let mut boss = scene.build_local().args(&["-v"]);
            boss.arg("--crew");
            boss
        };
        boss.arg(self.crew(scene));
        self.prepare(boss).env("CREWBOSS_HALT_AT", halt).start()
    }

    /// What is there and should not be.
    fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = marked(&self.name)
            .into_iter()
            .map(|one| format!("process {}: {}", one.pid, one.command))
            .collect();
        let mut look = |directory: PathBuf, ours: &dyn Fn(&str) -> bool| {
            let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            left.extend(
                names.filter(|name| ours(name)).map(|name| directory.join(name).display().to_string()),
            );
        };
        look(self.machines().join("guests"), &|_| true);
        look(self.machines().join("locks"), &|_| true);
        look(self.root.join("work/tasks"), &|_| true);
        for machine in ["tiny", "plain"] {
            // What an operator has made, and the copy.
            let known = ["1", "1.1", "default"].map(|end| format!("{machine}-{end}"));
            look(self.machines().join("local").join(machine), &|name| !known.iter().any(|one| one == name));
        }
        left
    }
}

/// A process that carries the mark.
#[derive(Debug)]
struct Process {
    pid: u32,
    command: String,
}

impl Process {
    fn signal(&self, name: &str) {
        // It may be gone.
        drop(Command::new("kill").args([format!("-{name}"), self.pid.to_string()]).output());
    }

    fn is(&self, victim: Victim) -> bool {
        let words: Vec<&str> = self.command.split(' ').collect();
        let role = words.get(1).copied().unwrap_or_default();
        match victim {
            Victim::Runner => role == "runner",
            Victim::Qemu => words[0].contains("qemu-system"),
            Victim::Worker => role == "worker" && words.contains(&"--proper"),
            Victim::Guardian => role == "worker" && !words.contains(&"--proper"),
            Victim::Boss => matches!(role, "build" | "machines"),
            Victim::All => true,
        }
    }

    fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }
}

/// The processes of a case, or of all of them. The dead that nobody has waited for have no variables, and are not there.
fn marked(case: &str) -> Vec<Process> {
    let wanted = format!("{MARK}={case}");
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has = |pid: &u32| {
        let variables = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut all = variables.split(|byte| *byte == 0);
        all.any(
            |one| if case.is_empty() { one.starts_with(wanted.as_bytes()) } else { one == wanted.as_bytes() },
        )
    };
    let process = |pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&line).replace('\0', " ");
        Some(Process { pid, command })
    };
    pids.filter(has).filter_map(process).collect()
}

/// Waits until the runner stands still. Returns it.
fn wait_for_halt(place: &Place, boss: &mut Running) -> Process {
    let found = wait_for("the runner to stand still", A_WHILE, || {
        if boss.has_ended() {
            return Some(None);
        }
        let stopped = |one: &Process| one.is(Victim::Runner) && one.is_stopped();
        marked(&place.name).into_iter().find(stopped).map(Some)
    });
    found.unwrap_or_else(|| panic!("it ended before the step: {}", boss.story()))
}

fn recorded_step(place: &Place) -> String {
    let entries = std::fs::read_dir(place.machines().join("guests")).expect("records").flatten();
    let record =
        entries.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "json"));
    let text = std::fs::read_to_string(record.expect("a record")).expect("a record");
    let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    record["step"].as_str().unwrap_or_default().to_owned()
}

fn kill(place: &Place, victim: Victim, runner: &Process) {
    let victims: Vec<Process> = marked(&place.name).into_iter().filter(|one| one.is(victim)).collect();
    assert!(!victims.is_empty(), "there is no {victim:?} to be killed");
    for one in &victims {
        one.signal("KILL");
    }
    // Whoever is left goes on from here.
    runner.signal("CONT");
}

fn try_case(disk: &Disk, case: &Case) {
    let place = disk.place(case);
    let build = format!(
        "commits = 'HEAD'\n[target.t]\nenvironment = {{ machine = '{}' }}\nartifacts = ['made']\n\
         stages.run = 'echo ran; echo 1 >made'\n",
        case.machine
    );
    let scene = Scene::with_commits(&build, 1);
    let mut boss = place.start(&scene, case.step);
    let runner = wait_for_halt(&place, &mut boss);
    assert_eq!(recorded_step(&place), case.step);
    kill(&place, case.victim, &runner);
    match case.victim {
        // Its host finds out by itself.
        Victim::Boss => {
            wait_for("the worker to end", A_WHILE, || marked(&place.name).is_empty().then_some(()))
        }
        Victim::All => {}
        _ if case.step == OF_A_BOOTSTRAP => expect_end_of_bootstrap(case, boss.end(A_WHILE)),
        Victim::Qemu => expect_end_without_qemu(case, boss.end(A_WHILE)),
        // The worker ends in order then, and what is done is told.
        Victim::Guardian if case.step == "stopping" => {
            drop(boss.end(A_WHILE).expect_code(0).expect_tasks(1, "success"));
        }
        Victim::Runner | Victim::Worker | Victim::Guardian => expect_another_attempt(case, boss),
    }
    // The next worker start does as well as `kill-workers`.
    let words = match case.victim {
        Victim::All | Victim::Runner if case.step != OF_A_BOOTSTRAP => {
            ["machines", "bootstrap", "--crew"].as_slice()
        }
        _ => ["kill-workers", "--crew"].as_slice(),
    };
    let ended = place.crewboss(&scene, words).end(A_WHILE).expect_code(0);
    let left = wait_until_clean(&place);
    assert!(left.is_empty(), "left: {left:#?}\nafter {words:?}: {ended:#?}");
}

fn wait_until_clean(place: &Place) -> Vec<String> {
    let mut left = place.leftovers();
    for _ in 0..200 {
        if left.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
        left = place.leftovers();
    }
    left
}

fn expect_another_attempt(case: &Case, mut boss: Running) {
    boss.wait_for_event_within("task_retried", A_WHILE, |_| true);
    if case.step == TO_THE_END {
        drop(boss.end(A_WHILE).expect_code(0).expect_civil().expect_tasks(1, "success"));
    } else {
        boss.signal("TERM");
        drop(boss.end(A_WHILE).expect_code(130).expect_civil());
    }
}

fn expect_end_without_qemu(case: &Case, ended: Ended) {
    match case.step {
        // A boot is tried again, and at the end it is not needed any more.
        "booting" | "stopping" => drop(ended.expect_code(0).expect_tasks(1, "success")),
        _ => drop(ended.expect_code(100).expect_tasks(1, "abnormal").expect_said("signal 9")),
    }
}

fn expect_end_of_bootstrap(case: &Case, ended: Ended) {
    let ended = ended.expect_civil();
    match case.victim {
        Victim::Qemu => drop(ended.expect_code(0).expect_said("try 1 of 3").expect_said("bootstrapped in")),
        Victim::Runner => drop(ended.expect_code(102).expect_said("its runner was killed")),
        // The worker ends in order then, or its session is lost.
        _ => drop(ended.expect_code(102)),
    }
}

#[test]
fn whoever_is_killed_at_whatever_step_nothing_is_left() {
    let disk = Disk::new();
    let open = Mutex::new(cases());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let case = open.lock().expect("the cases").pop_front();
                    let Some(case) = case else { return };
                    let begun = std::time::Instant::now();
                    if catch_unwind(AssertUnwindSafe(|| try_case(&disk, &case))).is_err() {
                        failed.lock().expect("the failed").push(case);
                    }
                    eprintln!("{case:?} took {:.1} s", begun.elapsed().as_secs_f64());
                }
            });
        }
    });
    let failed = failed.into_inner().expect("the failed");
    assert!(failed.is_empty(), "these failed, see above: {failed:#?}");
}
