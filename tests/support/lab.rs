//! Labs: several hosts on this machine, see `scripts/lab`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::{A_RUN, SOON, output, read, run, wait_for};

/// A lab that is up. It goes down when this is dropped, and also when this process ends in any
/// other way: it lives only as long as the other end of its standard input is open.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    holder: Child,
}

/// Who logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// The administrator.
    Root,
    /// The plain user `builder`.
    Plain,
}

impl User {
    /// Both, for tests that must hold for either.
    pub const BOTH: [User; 2] = [User::Root, User::Plain];

    /// The name to log in with.
    pub fn name(self) -> &'static str {
        match self {
            User::Root => "root",
            User::Plain => "builder",
        }
    }

    /// Where crewboss keeps its files on a host.
    pub fn work(self) -> &'static str {
        match self {
            User::Root => "/srv/crewboss",
            User::Plain => "/srv/builder",
        }
    }
}

/// The script that does everything.
fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lab")
}

impl Lab {
    /// Starts a lab, with the options of `scripts/lab up`. Needs root, and fails with the script's
    /// words without.
    pub fn up(options: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("crewboss-lab-")
            .tempdir()
            .expect("a directory for the lab")
            .keep();
        let log = dir.with_extension("log");
        let file = std::fs::File::create(&log).expect("a file for what the lab says");
        let holder = Command::new(script())
            .arg("up")
            .arg("--dir")
            .arg(&dir)
            .args(options)
            .arg("--hold")
            .stdin(Stdio::piped())
            .stdout(file.try_clone().expect("the same file"))
            .stderr(file)
            .spawn()
            .expect("scripts/lab can be started");
        let mut lab = Self { dir, holder };
        wait_for("the lab to come up", A_RUN, || {
            let ended = lab.holder.try_wait().expect("the lab's state");
            assert!(ended.is_none(), "the lab did not come up: {}", read(&log));
            read(&log).contains("lab up").then_some(())
        });
        std::fs::remove_file(&log).expect("the log is there");
        lab
    }

    /// The one lab of this test program, for one test at a time. Two hosts, both with btrfs. After
    /// a test that failed the next one gets a new lab, since the old one may be in any state.
    pub fn shared() -> MutexGuard<'static, Lab> {
        static LAB: OnceLock<Mutex<Lab>> = OnceLock::new();
        let cell = LAB.get_or_init(|| Mutex::new(Lab::up(&["2"])));
        match cell.lock() {
            Ok(lab) => lab,
            Err(poisoned) => {
                cell.clear_poison();
                let mut lab = PoisonError::into_inner(poisoned);
                *lab = Lab::up(&["2"]);
                lab
            }
        }
    }

    /// Where the lab keeps its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The outermost process of the lab; with it everything ends.
    pub fn owner(&self) -> u32 {
        pid(&self.dir.join("owner"))
    }

    /// `scripts/lab WHAT --dir ... ARGUMENTS...`, to be run.
    pub fn command(&self, what: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(script());
        command.arg(what).arg("--dir").arg(&self.dir).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs `scripts/lab WHAT --dir ... ARGUMENTS...`, which must succeed.
    pub fn lab(&self, what: &str, arguments: &[&str]) -> String {
        run(&mut self.command(what, arguments))
    }

    /// Runs a shell line on a host as root, not over ssh. It must succeed.
    pub fn on(&self, host: &str, line: &str) -> String {
        self.lab("exec", &[host, "sh", "-c", line])
    }

    /// Runs a shell line on a host over ssh.
    pub fn ssh(&self, user: User, host: &str, line: &str) -> Output {
        output(&mut self.command("ssh", &[&format!("{}@{host}", user.name()), line]))
    }

    /// The network in which the hosts can be reached.
    pub fn network(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", pid(&self.dir.join("keeper"))))
    }

    /// A program that will run where the hosts can be reached. Its process is this command's own.
    pub fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.network().display())).arg("--").arg(program);
        command
    }

    /// Lets go of the lab, as the end of this process would, and does not call `down`.
    pub fn let_go(&mut self) {
        drop(self.holder.stdin.take());
    }

    /// Everything on a host that is not there when nobody uses it, one a line; empty if all is
    /// clean. Sources and warm build directories are kept on purpose and do not count.
    pub fn leftovers(&self, host: &str) -> String {
        self.on(host, LEFTOVERS)
    }

    /// Waits until nothing is left on any of the hosts, nor of the boss's connections; panics with
    /// what is left.
    pub fn expect_clean(&self, hosts: &[&str]) {
        let mut left = String::new();
        let look = || {
            left = hosts.iter().map(|host| self.leftovers(host)).collect::<String>() + &self.masters();
            left.is_empty().then_some(())
        };
        let found =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for("a clean lab", SOON, look)));
        assert!(found.is_ok(), "left behind:\n{left}");
    }

    /// Prints what may explain why a test failed: the logs, and what runs on the hosts and what it
    /// waits for.
    pub fn testify(&self) {
        for name in ["lab.log", "host1/sshd.log", "host2/sshd.log"] {
            let text = std::fs::read_to_string(self.dir.join(name)).unwrap_or_default();
            eprintln!("---- {name}\n{text}");
        }
        for host in ["host1", "host2"].into_iter().filter(|host| self.dir.join(host).exists()) {
            let list = ["ps", "-eo", "pid,ppid,sid,tty,stat,etimes,wchan:20,args", "--forest", "-ww"];
            let listed = self.command("exec", &[&[host][..], &list].concat()).output();
            let listed = listed.map_or_else(|error| error.to_string().into_bytes(), |output| output.stdout);
            eprintln!("---- processes of {host}\n{}", String::from_utf8_lossy(&listed));
        }
    }

    /// Connections to the lab's hosts that are still open on the boss's side, one a line.
    fn masters(&self) -> String {
        let network = std::fs::read_link(self.network()).expect("the lab's network");
        let processes = std::fs::read_dir("/proc").expect("/proc");
        let mut found = String::new();
        for process in processes.flatten() {
            let path = process.path();
            let is_ssh = std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "ssh");
            if is_ssh && std::fs::read_link(path.join("ns/net")).is_ok_and(|other| other == network) {
                let words =
                    std::fs::read_to_string(path.join("cmdline")).unwrap_or_default().replace('\0', " ");
                found += &format!("boss: process {}\n", words.trim());
            }
        }
        found
    }
}

/// A first process, its sshd and what it waits with belong to the host. So do a shell that looks
/// around, and its children.
const LEFTOVERS: &str = r#"
name=$(hostname)
for p in /proc/[0-9]*; do
    id=${p#/proc/}
    read -r _ _ _ parent _ <"$p/stat" 2>/dev/null || continue
    case $id:$parent in
        1:*|$$:*|*:$$) continue ;;
    esac
    words=$(tr '\0' ' ' <"$p/cmdline" 2>/dev/null)
    case $words in *'sshd -D -e'*|'sleep 0.05 '|'') continue ;; esac
    echo "$name: process $id of $parent: $words"
done
for work in /srv/crewboss /srv/builder; do
    [ ! -d "$work/tasks" ] || find "$work/tasks" -mindepth 1 -maxdepth 1 -printf "$name: session %p\n"
    for lock in "$work"/locks/*; do
        [ ! -f "$lock" ] || flock -n "$lock" true || echo "$name: lock $lock is held"
    done
done
btrfs subvolume list /srv 2>/dev/null | grep -F /tasks/ | sed "s/^/$name: /"
find /sys/fs/cgroup -mindepth 1 -maxdepth 1 -type d -name '*crewboss*' -printf "$name: cgroup %p\n" 2>/dev/null
true
"#;

/// The pid in one of the lab's records.
fn pid(file: &Path) -> u32 {
    let text = read(file);
    text.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("a pid and a start time")
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.testify();
        }
        drop(self.holder.stdin.take());
        // It takes itself down; if it was killed, that is left to `down`.
        if let Err(error) = self.holder.wait() {
            eprintln!("cannot wait for the lab: {error}");
        }
        let down = self.command("down", &[]).output();
        if !down.is_ok_and(|output| output.status.success()) {
            eprintln!("the lab in {} could not be taken down", self.dir.display());
        }
    }
}
