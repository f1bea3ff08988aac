//! The boss's computer loses power while results come in: what the journal then names is on the
//! disk, whole.
//!
//! The disk is a file behind a loop device. That file is copied at random moments, in one piece and
//! without a word to the filesystem in it: what had not been written yet is not in the copy, as it
//! would not be on a disk without power. `CREWBOSS_TEST_CUTS` asks for more cuts than the few of
//! every day.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::thread::UnshareFlags;
use serde_json::Value;
use support::boss::{Boss, Results};
use support::scene::Scene;
use support::{A_RUN, SOON, read, run, wait_for};

/// Cuts for each filesystem, unless it is asked for more.
const CUTS: usize = 16;

/// Of which so many are built on.
const BUILT_ON: usize = 2;

const TARGETS: usize = 40;

/// Longest time between two cuts.
const PAUSE_MS: u64 = 60;

#[test]
fn what_the_journal_names_is_whole_after_a_power_cut_on_ext4() {
    lose_power("ext4");
}

#[test]
fn what_the_journal_names_is_whole_after_a_power_cut_on_btrfs() {
    lose_power("btrfs");
}

fn lose_power(filesystem: &'static str) {
    assert!(rustix::process::geteuid().is_root(), "this test needs root, to mount filesystems");
    let cuts = std::env::var("CREWBOSS_TEST_CUTS").map_or(CUTS, |text| text.parse().expect("a number"));
    // A thread and what it starts have mounts of their own, which end with them, however that is.
    let test = std::thread::spawn(move || {
        // SAFETY: no memory or descriptor is unshared, only the view of mounts, and that of this
        // new thread alone.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.expect("mounts of its own");
        run(Command::new("mount").args(["--make-rprivate", "/"]));
        let power = Power::new(filesystem);
        let announced = power.cut_while_building(cuts);
        for (number, announced) in announced.iter().enumerate() {
            power.look(number, announced, number < BUILT_ON);
        }
    });
    test.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// What was announced before a cut: tasks of this run, and how many runs had begun.
#[derive(Debug)]
struct Announced {
    targets: BTreeSet<String>,
    runs: usize,
}

struct Power {
    scene: Scene,
    filesystem: &'static str,
}

impl Power {
    /// A project whose results go to a disk of their own.
    fn new(filesystem: &'static str) -> Self {
        let target = |number| {
            // The logs of some are too long to come with the news of their end, and some have
            // nothing to be fetched.
            let (log, artifacts) = match number % 3 {
                0 => ("echo done", ""),
                1 => ("seq 1 20000", "artifacts = [\"a\", \"deep/er/b\"]"),
                _ => ("seq 1 300", "artifacts = [\"a\", \"deep/er/b\"]"),
            };
            format!(
                "[target.t{number}]\nstages.build = '{log}; mkdir -p $CREWBOSS_OUT/deep/er; echo artifact-{number} | tee \
                 $CREWBOSS_OUT/deep/er/b >$CREWBOSS_OUT/a'\n{artifacts}\n"
            )
        };
        let scene = Scene::with_commits(&(0..TARGETS).map(target).collect::<String>(), 1);
        let power = Self { scene, filesystem };
        // A copy on btrfs is one moment of the file, and made at once.
        let shelf = power.scene.path("shelf-image");
        run(Command::new("truncate").args(["-s", "16G"]).arg(&shelf));
        run(Command::new("mkfs.btrfs").arg("-q").arg(&shelf));
        power.mount(&shelf, "shelf");
        run(Command::new("truncate").args(["-s", "300M"]).arg(power.image()));
        run(Command::new(format!("mkfs.{filesystem}")).arg("-q").arg(power.image()));
        power.mount(&power.image(), "disk");
        power
    }

    fn image(&self) -> PathBuf {
        self.scene.path("shelf/image")
    }

    fn copy(&self, number: usize) -> PathBuf {
        self.scene.path(&format!("shelf/cut-{number}"))
    }

    fn mount(&self, image: &Path, at: &str) {
        let at = self.scene.path(at);
        std::fs::create_dir_all(&at).expect("a directory to mount on");
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at));
    }

    fn unmount(&self, at: &str) {
        // What the other test is just starting has our open files as well, until it is executed.
        let unmounted =
            || Command::new("umount").arg(self.scene.path(at)).status().is_ok_and(|status| status.success());
        wait_for("nobody to use a disk", SOON, || unmounted().then_some(()));
    }

    fn build(&self, disk: &str) -> Boss {
        let crew = format!("[host.here]\nlocal = true\nslots = 4\nwork = {:?}\n", self.scene.path("work"));
        let arguments = ["build", "--commits", "HEAD"];
        let mut boss = self.scene.crewboss(None, &arguments);
        boss.arg("--crew").arg(self.scene.crew_file(&crew));
        boss.arg("--file").arg(self.scene.repo().join("build.toml"));
        boss.arg("--out").arg(self.scene.path(disk).join("out"));
        boss.events(self.scene.path("events.jsonl"));
        boss
    }

    /// Builds everything again and again, and copies the disk at random moments.
    fn cut_while_building(&self, cuts: usize) -> Vec<Announced> {
        let mut announced = Vec::new();
        let mut random = u64::from(SystemTime::UNIX_EPOCH.elapsed().expect("a time").subsec_nanos()) | 1;
        let mut runs = 0;
        while announced.len() < cuts {
            runs += 1;
            let mut boss = self.build("disk").args(&["--force"]).start();
            boss.wait_for_event("run_started", |_| true);
            while announced.len() < cuts && boss.is_running() {
                // xorshift
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                std::thread::sleep(Duration::from_millis(random % PAUSE_MS));
                let targets = self.announced();
                run(Command::new("cp")
                    .arg("--reflink=always")
                    .arg(self.image())
                    .arg(self.copy(announced.len())));
                announced.push(Announced { targets, runs });
            }
            boss.end(A_RUN).expect_code(0).expect_tasks(TARGETS, "success");
        }
        self.unmount("disk");
        announced
    }

    /// The tasks whose results the boss has told of.
    fn announced(&self) -> BTreeSet<String> {
        let text = read(&self.scene.path("events.jsonl"));
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let events = whole.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let done = events.filter(|event| event["event"] == "task_done");
        done.map(|event| event["target"].as_str().expect("a target").to_owned()).collect()
    }

    /// Looks at a disk that has lost its power; builds on there if `on`.
    fn look(&self, number: usize, announced: &Announced, on: bool) {
        self.mount(&self.copy(number), "lost");
        let out = self.scene.path("lost/out");
        let context = format!("cut {number} on {}, {announced:?}", self.filesystem);
        let text = std::fs::read_to_string(out.join("run.jsonl")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let records: Vec<Value> = whole
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{context}: {error}: {line}"))
            })
            .collect();
        let runs = records.iter().filter(|record| record.get("run").is_some()).count();
        assert!(runs >= announced.runs, "{context}: {runs} runs are recorded");
        let run_begins = records.iter().rposition(|record| record.get("run").is_some()).unwrap_or(0);
        // If the next run had begun just before the cut, all of this one is there.
        let mut now: BTreeSet<&str> = BTreeSet::new();
        for (index, record) in records.iter().enumerate() {
            let Some(result) = record.get("result") else { continue };
            let target = result["target"].as_str().expect("a target");
            let place = out.join(result["path"].as_str().expect("a path"));
            expect_whole(&place, target, &context);
            if index > run_begins {
                now.insert(target);
            }
        }
        let lost: Vec<&String> =
            announced.targets.iter().filter(|target| !now.contains(target.as_str())).collect();
        assert!(runs > announced.runs || lost.is_empty(), "{context}: announced and not recorded: {lost:?}");
        if on {
            let ended = self.build("lost").run().expect_code(0);
            let started = ended.of_kind("task_started").len();
            assert!(started + now.len() <= TARGETS, "{context}: {started} of {} are built again", now.len());
            for (_, place) in Results::read(&out).tasks {
                expect_whole(&place, &place.file_name().expect("a name").to_string_lossy(), &context);
            }
        }
        self.unmount("lost");
        std::fs::remove_file(self.copy(number)).expect("a copy");
    }
}

impl Drop for Power {
    /// Also after a failure: what is mounted could not be removed with the scene.
    fn drop(&mut self) {
        for at in ["lost", "disk", "shelf"] {
            drop(Command::new("umount").arg("--lazy").arg(self.scene.path(at)).output());
        }
    }
}

fn expect_whole(place: &Path, target: &str, context: &str) {
    let number: usize = target[1..].parse().expect("the number of a target");
    let lines = [1, 20_000, 300][number % 3];
    let log =
        if lines == 1 { "done\n".to_owned() } else { (1..=lines).map(|line| format!("{line}\n")).collect() };
    let artifact = format!("artifact-{number}\n");
    let mut files = vec![("done", "0\n"), ("log", &*log)];
    if lines > 1 {
        files.extend([("artifacts/a", &*artifact), ("artifacts/deep/er/b", &*artifact)]);
    }
    for (name, expected) in files {
        let found = std::fs::read_to_string(place.join(name));
        let found = found.unwrap_or_else(|error| panic!("{context}: {target}: {name}: {error}"));
        assert!(
            found == expected,
            "{context}: {target}: {name} has {} bytes, not {}",
            found.len(),
            expected.len()
        );
    }
    let result: Value = serde_json::from_str(&read(&place.join("result.json"))).expect("JSON");
    assert_eq!(result["outcome"], "success", "{context}: {target}");
}
