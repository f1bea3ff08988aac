//! The lab itself: the other tests are worth nothing if its hosts are not what they seem.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use support::lab::{Lab, User};
use support::{SOON, output, run, wait_for};

/// Loop devices whose file lies in this directory.
fn loops(dir: &Path) -> String {
    let all = run(Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"]));
    all.lines().filter(|line| line.contains(&*dir.to_string_lossy())).collect()
}

/// Processes that name this directory, other than this one.
fn processes(dir: &Path) -> Vec<String> {
    let all = run(Command::new("ps").args(["-eo", "args"]));
    all.lines().filter(|line| line.contains(&*dir.to_string_lossy())).map(str::to_owned).collect()
}

#[test]
fn hosts_are_computers_of_their_own() {
    let lab = Lab::shared();
    for (user, directory) in [(User::Root, "/root"), (User::Plain, "/home/builder")] {
        for host in ["host1", "host2"] {
            let said = lab.ssh(
                user,
                host,
                "id -un; hostname; pwd; ps -e | wc -l; touch /usr/x 2>/dev/null || echo read-only",
            );
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            let lines: Vec<&str> = said.lines().collect();
            assert_eq!(lines[..3], [user.name(), host, directory], "{said}");
            assert!(lines[3].trim().parse::<u32>().expect("a number") < 20, "a PID view of its own: {said}");
            assert_eq!(lines[4], "read-only", "{said}");
        }
    }
    lab.expect_clean(&["host1", "host2"]);
}

#[test]
fn disks_are_btrfs_and_one_lets_plain_users_remove_subvolumes() {
    let lab = Lab::shared();
    let line =
        "cd /srv/builder && btrfs subvolume create x >/dev/null && btrfs subvolume delete x >/dev/null";
    assert!(lab.ssh(User::Plain, "host1", line).status.success());
    assert!(!lab.ssh(User::Plain, "host2", line).status.success());
    assert!(lab.ssh(User::Plain, "host2", "rmdir /srv/builder/x").status.success());
    assert!(lab.ssh(User::Root, "host2", &line.replace("builder", "crewboss")).status.success());
}

#[test]
fn a_cut_link_is_silent_and_heals() {
    let lab = Lab::shared();
    lab.lab("cut", &["host2"]);
    let mut command = lab.command("ssh", &["-o", "ConnectTimeout=1", "host2", "true"]);
    assert_eq!(output(&mut command).status.code(), Some(255));
    assert!(lab.lab("status", &[]).contains("host2 cut"));
    assert_eq!(lab.on("host2", "hostname"), "host2\n", "cut off, not dead");
    lab.lab("heal", &["host2"]);
    assert!(lab.ssh(User::Root, "host2", "true").status.success());
}

#[test]
fn a_killed_sshd_ends_connections_and_comes_back() {
    let lab = Lab::shared();
    let mut session = lab
        .command("ssh", &["host1", "echo there; exec sleep 600"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("ssh can be started");
    wait_for("the session", SOON, || {
        lab.on("host1", "pgrep -x sleep -a || true").contains("600").then_some(())
    });
    lab.lab("kill-sshd", &["host1"]);
    let ended = wait_for("the end of the session", SOON, || session.try_wait().expect("its state"));
    assert_eq!(ended.code(), Some(255));
    assert!(lab.leftovers("host1").contains("sleep 600"), "what ran there goes on, and is seen as left over");
    lab.on("host1", "pkill -f '[s]leep 600'");
    lab.lab("start-sshd", &["host1"]);
    assert!(lab.ssh(User::Root, "host1", "true").status.success());
    lab.expect_clean(&["host1"]);
}

#[test]
fn one_host_reaches_another_by_way_of_a_third() {
    let lab = Lab::shared();
    assert_eq!(lab.ssh(User::Root, "host2-via-host1", "hostname").stdout, b"host2\n");
}

#[test]
fn a_full_disk_refuses_and_can_be_emptied() {
    let lab = Lab::shared();
    lab.lab("fill", &["host1"]);
    let write = "dd if=/dev/zero of=/srv/crewboss/file bs=1M count=16 2>&1; rm -f /srv/crewboss/file";
    assert!(lab.on("host1", write).contains("No space left"));
    lab.lab("unfill", &["host1"]);
    assert!(!lab.on("host1", &format!("{write}; sync")).contains("No space left"));
}

#[test]
fn several_labs_at_once_know_nothing_of_each_other() {
    let labs: Vec<Lab> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..3).map(|_| scope.spawn(|| Lab::up(&["1", "--plain", "1"]))).collect();
        starting.into_iter().map(|thread| thread.join().expect("a lab")).collect()
    });
    for (number, lab) in labs.iter().enumerate() {
        lab.on("host1", &format!("echo {number} >/root/mark"));
    }
    for (number, lab) in labs.iter().enumerate() {
        assert_eq!(lab.ssh(User::Root, "host1", "cat /root/mark").stdout, format!("{number}\n").as_bytes());
    }
    let dirs: Vec<_> = labs.iter().map(|lab| lab.dir().to_owned()).collect();
    drop(labs);
    for dir in dirs {
        assert!(!dir.exists(), "{} is gone", dir.display());
    }
}

#[test]
fn a_lab_that_is_killed_leaves_nothing_running() {
    let lab = Lab::up(&["2"]);
    let dir = lab.dir().to_owned();
    assert!(!loops(&dir).is_empty(), "its disks are there while it is up");
    run(Command::new("kill").args(["-9", &lab.owner().to_string()]));
    wait_for("the kernel to take it down", SOON, || {
        let hosts = processes(&dir).iter().any(|words| words.contains("lab host") || words.contains("sshd"));
        (loops(&dir).is_empty() && !hosts).then_some(())
    });
    drop(lab);
    assert!(!dir.exists());
}

#[test]
fn a_lab_goes_down_with_whoever_holds_it() {
    let mut lab = Lab::up(&["1"]);
    lab.let_go();
    wait_for("the lab to take itself down", SOON, || (!lab.dir().exists()).then_some(()));
    assert_eq!(loops(lab.dir()), "");
}

#[test]
fn a_directory_that_is_not_a_lab_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("precious"), "x").unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lab");
    for what in ["up", "down"] {
        output(Command::new(&script).arg(what).arg("--dir").arg(dir.path()));
        assert!(dir.path().join("precious").exists(), "after {what}");
    }
}
