//! Machines on the hosts of a lab: made from Debian packages by `scripts/make-machine`, changed by
//! editing a revision, and looked over for what guests have left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::MutexGuard;
use std::time::Duration;

use serde_json::Value;

use super::boss::{Boss, Ended};
use super::lab::{Lab, User};
use super::scene::Scene;
use super::{SOON, read, run, wait_for, write};

/// Where the hosts of a lab have their machines: the default below the work directory of root.
pub const MACHINES: &str = "/srv/crewboss/machines";

/// A machine whose guests are talked to by the agent's port. On `host1` only.
pub const TINY: &str = "tiny";

/// A machine whose guests speak TFTP, with the agent that is a shell script. On `host1` only.
pub const PLAIN: &str = "plain";

/// Long enough for a run with bootstraps, on a machine that is busy with other things and has no
/// KVM.
pub const A_GUEST_RUN: Duration = Duration::from_secs(900);

/// What every machine of the tests is made with: busybox alone, which takes seconds.
const SMALL: [&str; 4] = ["--compiler", "none", "--free", "256M"];

/// Arguments: the machine directory, the machine that is there, the new one, lines of its manifest.
const VARIANT: &str = r#"
cd "$1/local"
of=$2 name=$3
shift 3
edit() { # edit DIRECTORY LINE...
    sed -i -e "s/^name = .*/name = \"$name\"/" -e "s/^id = .*/id = \"$name-of-$of-$n\"/" "$1/manifest.toml"
    manifest=$1/manifest.toml
    shift
    for line; do
        sed -i "/^${line%%[ =]*} =/d" "$manifest"
        printf '%s\n' "$line" >>"$manifest"
    done
}
mkdir -p "$name"
n=1
while [ -e "$name/$name-1.$n" ]; do n=$((n + 1)); done
btrfs -q subvolume snapshot "$of/$(readlink "$of/$of-1")" "$name/$name-1.$n"
edit "$name/$name-1.$n" "$@"
if [ -e "$of/$of-default" ] && [ ! -e "$name/$name-default" ]; then
    btrfs -q subvolume snapshot "$of/$of-default" "$name/$name-default"
    edit "$name/$name-default" "$@"
    sed -i 's/"machine_id":"[^"]*"/"machine_id":"'"$name-of-$of-$n"'"/' "$name/$name-default/bootstrapped.json"
fi
ln -sfn "$name-1.$n" "$name/$name-1"
"#;

/// Stands for `size` in the guests, which busybox does not have.
const SIZE: &str = "#!/bin/sh\necho text data bss\nfor file; do echo 7 8 9 $file; done\n";

/// The one lab of this test program, with machines on `host1`; for one test at a time.
#[derive(Debug)]
pub struct Site {
    lab: MutexGuard<'static, Lab>,
}

impl Site {
    /// The shared lab with the machines [`TINY`] and [`PLAIN`]. They are made once; whoever first
    /// uses one bootstraps it.
    pub fn shared() -> Self {
        let site = Self { lab: Lab::shared() };
        // After a test that failed the lab is a new one.
        if !site.has(TINY) {
            let files = site.lab.dir().join("files");
            write(&files.join("usr/bin/size"), SIZE);
            run(Command::new("chmod").arg("755").arg(files.join("usr/bin/size")));
            let files = files.display().to_string();
            let common = ["--memory", "128M:256M", "--files", &files];
            site.make("host1", TINY, &common);
            site.make("host1", PLAIN, &[&common[..], &["--exchange", "tftp"]].concat());
        }
        site
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Runs a shell line on `host1` as root.
    pub fn on(&self, line: &str) -> String {
        self.lab.on("host1", line)
    }

    /// What `/proc` has of the first process of `host1`.
    fn first_process(&self) -> String {
        let record = read(&self.lab.dir().join("host1/pid"));
        format!("/proc/{}", record.split_whitespace().next().expect("the number of a process"))
    }

    /// Where a file of `host1` is for this program.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("{}/root{path}", self.first_process()))
    }

    /// The network of `host1`.
    pub fn network(&self) -> PathBuf {
        PathBuf::from(format!("{}/ns/net", self.first_process()))
    }

    /// A command that is on the network of `host1`, and in nothing else of it.
    pub fn on_network(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.network().display())).arg(program);
        command
    }

    /// Whether `host1` has this machine.
    pub fn has(&self, name: &str) -> bool {
        self.on(&format!("[ ! -L {}/{name}-1 ] || echo there", directory(name))).contains("there")
    }

    /// Makes a machine on a host, or a new revision of it.
    pub fn make(&self, host: &str, name: &str, options: &[&str]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/make-machine");
        let mut command = self.at_disk(host);
        command.arg(script).arg("--into").arg("crewboss/machines").arg(name).args(SMALL).args(options);
        run(&mut command);
    }

    /// A command that runs beside the hosts, where the packages are kept, in a host's `/srv`. A
    /// second mount of its disk is seen by this command alone, so it goes with it.
    fn at_disk(&self, host: &str) -> Command {
        let image = self.lab.dir().join(host).join("disk.img");
        let device = run(Command::new("losetup")
            .args(["--noheadings", "--output", "NAME", "--associated"])
            .arg(&image));
        let place = self.lab.dir().join(format!("{host}.srv"));
        std::fs::create_dir_all(&place).expect("a directory to mount at");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-ec", r#"mount "$1" "$2"; cd "$2"; shift 2; exec "$@""#, "sh"])
            .arg(device.trim())
            .arg(place);
        command
    }

    /// Publishes a new revision of the machine `name`, made of the current one of `of`, which may
    /// be the same. Lines of `manifest` replace those with the same key. If `of` has a copy for the
    /// default toolchain and `name` has none, it gets a copy of that, which saves the bootstrap.
    pub fn variant(&self, of: &str, name: &str, manifest: &[&str]) {
        let mut words = vec!["host1", "sh", "-ec", VARIANT, "sh", MACHINES, of, name];
        words.extend(manifest);
        self.lab.lab("exec", &words);
    }

    /// The kernel's command line of a machine.
    pub fn append_of(&self, name: &str) -> String {
        let line =
            format!("sed -n 's/^append = \"\\(.*\\)\"$/\\1/p' {0}/{name}-1/manifest.toml", directory(name));
        self.on(&line).trim().to_owned()
    }

    /// Removes a machine with all its revisions and copies.
    pub fn remove(&self, name: &str) {
        let directory = directory(name);
        self.on(&format!(
            "cd {directory} 2>/dev/null || exit 0
            rm -f {name}-1
            for sub in */; do btrfs -q subvolume delete \"$sub\" || rm -rf \"$sub\"; done
            rm -rf {directory}"
        ));
    }

    /// A crew of `host1` alone, with further lines for it. Guests are emulated.
    pub fn crew(&self, scene: &Scene, more: &str) -> PathBuf {
        scene.crew(&self.lab, User::Root, &[("host1", &format!("accel = \"tcg\"\n{more}"))])
    }

    /// `crewboss build -v` on that crew.
    pub fn build(&self, scene: &Scene, more: &str) -> Boss {
        let crew = self.crew(scene, more);
        scene.build(&self.lab, &crew).args(&["-v"])
    }

    /// Runs that to its end.
    #[must_use = "what it came to is what is tested"]
    pub fn run(&self, scene: &Scene) -> Ended {
        self.build(scene, "slots = 2").start().end(A_GUEST_RUN)
    }

    /// Has machines of `host1` bootstrapped, unless they are.
    pub fn bootstrap(&self, names: &[&str]) {
        let missing = |name: &&&str| {
            self.on(&format!("ls {} | grep -x {name}-default || true", directory(name))).is_empty()
        };
        let missing: Vec<&&str> = names.iter().filter(missing).collect();
        if !missing.is_empty() {
            let targets: String =
                missing.iter().map(|name| target(name, name, "stages.run = 'true'")).collect();
            let scene = Scene::with_commits(&format!("commits = 'HEAD'\n{targets}"), 1);
            drop(self.run(&scene).expect_code(0));
        }
    }

    /// What `crewboss machines` says of `host1`.
    #[must_use = "what it came to is what is tested"]
    pub fn machines(&self, scene: &Scene, arguments: &[&str]) -> Ended {
        let crew = self.crew(scene, "");
        let mut boss = scene.crewboss(Some(&self.lab), &["machines", "--crew"]);
        boss.arg(crew);
        boss.args(arguments).called("machines").run().expect_code(0)
    }

    /// What it says of all machines to a program.
    pub fn all_shown(&self, scene: &Scene) -> Vec<Value> {
        let ended = self.machines(scene, &["--json"]);
        let hosts: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        hosts[0]["machines"].as_array().cloned().unwrap_or_default()
    }

    /// What it says of one machine to a program.
    pub fn shown(&self, scene: &Scene, name: &str) -> Value {
        let all = self.all_shown(scene);
        let found = all.iter().find(|machine| machine["name"] == name).cloned();
        found.unwrap_or_else(|| panic!("no machine {name} in {all:#?}"))
    }

    /// Waits until nothing of any guest is left on `host1`, nor anything else of ours; panics with
    /// what is left.
    pub fn expect_no_guests(&self) {
        let mut left = String::new();
        let look = || {
            left = self.on(GUEST_LEFTOVERS);
            left.is_empty().then_some(())
        };
        let found =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for("no guests", SOON, look)));
        assert!(found.is_ok(), "left of guests:\n{left}");
        self.lab.expect_clean(&["host1"]);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.lab.testify();
        }
    }
}

/// A run that ended, and everything in its result directory, for several tests to look at.
#[derive(Debug)]
pub struct Kept {
    /// How it ended. The result directory is gone.
    pub ended: Ended,
    files: BTreeMap<String, String>,
}

impl Kept {
    /// Reads everything.
    pub fn of(ended: Ended) -> Self {
        let mut files = BTreeMap::new();
        for directory in ended.results.tasks.values() {
            let target = directory.file_name().expect("a name").to_string_lossy();
            let all = run(Command::new("find").arg(directory).args(["-type", "f", "-printf", "%P\n"]));
            for name in all.lines() {
                files.insert(format!("{target}/{name}"), read(&directory.join(name)));
            }
        }
        Self { ended, files }
    }

    /// A file of a target's only task.
    pub fn file(&self, target: &str, name: &str) -> &str {
        self.find(target, name).unwrap_or_else(|| {
            panic!("{target} has no {name}, it has {:?}\n{:#?}", self.names(target), self.ended)
        })
    }

    /// A file of a target's only task, if it is there.
    pub fn find(&self, target: &str, name: &str) -> Option<&str> {
        self.files.get(&format!("{target}/{name}")).map(String::as_str)
    }

    /// The names of all files of a target's only task.
    pub fn names(&self, target: &str) -> Vec<&str> {
        self.files.keys().filter_map(|name| name.strip_prefix(target)?.strip_prefix('/')).collect()
    }

    /// The `result.json` of a target's only task.
    pub fn result(&self, target: &str) -> Value {
        serde_json::from_str(self.file(target, "result.json")).expect("JSON")
    }
}

/// The directory of a machine.
pub fn directory(name: &str) -> String {
    format!("{MACHINES}/local/{name}")
}

/// A target of a build file that runs in a machine.
pub fn target(name: &str, machine: &str, lines: &str) -> String {
    format!("[target.{name}]\nenvironment = {{ machine = '{machine}' }}\n{lines}\n")
}

/// What was shown of a target's only task while it ran.
pub fn live(ended: &Ended, target: &str) -> String {
    let at = ended.of_kind("task_started").into_iter().find(|event| event["target"] == target);
    let at =
        at.map(|event| event["at"].clone()).unwrap_or_else(|| panic!("{target} never started: {ended:#?}"));
    let pieces = ended.of_kind("task_output").into_iter().filter(|event| event["at"] == at);
    pieces.filter_map(|event| event["text"].as_str()).collect()
}

/// Processes, snapshots, records, locks and devices of guests.
const GUEST_LEFTOVERS: &str = r#"
cd /srv/crewboss/machines || exit
for p in /proc/[0-9]*; do
    case $(readlink "$p/exe") in */qemu-system*) echo "process $(tr '\0' ' ' <"$p/cmdline")" ;; esac
done
ls guests 2>/dev/null | sed 's/^/record /'
# A guest is called NAME-TOOLCHAIN-XXXXXX.
for d in */*/*-*-??????; do [ ! -e "$d" ] || echo "snapshot $d"; done
# Copies and templates have the variables that their firmware wrote.
find . -name .making -o -name 'uefi-variables' ! -path '*-default/*' ! -path '*-default.saved/*' -o -name 'put' | sed 's/^/file /'
for lock in locks/*; do
    [ ! -f "$lock" ] || flock -n "$lock" true || echo "lock $lock is held"
done
# In /sys are those of another network.
ip -o link show type tun | sed 's/^/device /'
true
"#;
