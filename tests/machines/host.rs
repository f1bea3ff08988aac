//! Hosts whose machines lie, whose QEMU is none, and whose disk is no good: the words that a person
//! gets, and that all else goes on.

use crate::support::boss::Ended;
use crate::support::gate::Gate;
use crate::support::lab::User;
use crate::support::machines::{A_GUEST_RUN, PLAIN, Site, TINY, directory, live, target};
use crate::support::scene::Scene;
use crate::support::{SOON, wait_for};

const BUILD: &str = "commits = 'HEAD'\nhold = '0'\n";

/// A task that must come to a good end whatever becomes of the others.
const HARMLESS: &str = "[target.here]\nstages.run = 'cat number'\n";

/// A disk beside the one that everything else is on, so that only machines suffer.
const SECOND: &str = "/srv/second";

/// What is wrong with a machine: its name, what makes it so (in its directory), and the words for
/// it.
const LIES: [(&str, &str, &str); 26] = [
    ("id-empty", "sed -i 's/^id = .*/id = \"\"/' $m", "id"),
    ("id-strange", r#"sed -i 's/^id = .*/id = "a\\u001b[2Jb"/' $m"#, "id"),
    ("name-of-another", "sed -i 's/^name = .*/name = \"tiny\"/' $m", "the machine's directory is called"),
    (
        "memory-swapped",
        "sed -i 's/^memory = .*/memory = { min = \"2 GiB\", max = \"1 GiB\" }/' $m",
        "less than the minimum",
    ),
    ("memory-huge", "sed -i 's/^memory = .*/memory = { min = \"1024 GiB\" }/' $m", "memory"),
    ("disk-missing", "rm $r/disk.img", "is not there"),
    ("disk-empty", ": >$r/disk.img", "is empty"),
    ("disk-link", "ln -sf /etc/passwd $r/disk.img", "symbolic link"),
    ("disk-pipe", "rm $r/disk.img; mkfifo $r/disk.img", "not a regular file"),
    ("disk-elsewhere", "sed -i 's|^disk = .*|disk = \"../../../x\"|' $m", "disk"),
    ("disk-format", "echo 'format = \"qcow2\"' >>$m", "no qcow2 image"),
    ("kernel-missing", "rm $r/vmlinuz", "is not there"),
    ("key-unknown", "echo 'memmory = 1' >>$m", "memmory"),
    ("protocol-next", "sed -i 's/^protocol = .*/protocol = 2/' $m", "protocol"),
    ("exchange-alone", "sed -i -e '/^exchange/d' -e '1i exchange = \"tftp\"' $m", "network"),
    ("manifest-missing", "rm $m", "manifest.toml"),
    ("manifest-link", "ln -sf /etc/passwd $m", "manifest.toml"),
    ("manifest-pipe", "rm $m; mkfifo $m", "not a regular file"),
    ("manifest-binary", "head -c 1000 /dev/urandom >$m", "manifest.toml"),
    ("manifest-huge", "head -c 100000 /dev/zero | tr '\\0' '#' >$m", "longer than"),
    ("link-nowhere", "ln -sfn $n-1.99 $n-1", "leads nowhere"),
    ("link-outside", "ln -sfn ../tiny/tiny-1.1 $n-1", "outside of the machine's directory"),
    ("link-absolute", "ln -sfn /etc $n-1", "an absolute path"),
    ("link-itself", "ln -sfn $n-1 $n-1", "a revision is called"),
    ("link-loop", "ln -s $n-1.6 $n-1.5; ln -s $n-1.5 $n-1.6; ln -sfn $n-1.5 $n-1", "a link again"),
    ("link-directory", "rm $n-1; mkdir $n-1", "is not a symbolic link"),
];

#[test]
fn machines_that_lie_are_shown_with_the_reason_and_refused() {
    let site = Site::shared();
    let mut build = BUILD.to_owned();
    for (name, make, _) in LIES {
        site.variant(TINY, name, &[]);
        site.on(&format!("cd {}; n={name} r={name}-1.1 m={name}-1.1/manifest.toml; {make}", directory(name)));
        build += &target(name, name, "stages.run = 'true'");
    }
    site.on(&format!("mkdir -p {0}/no-subvolume-1.1; cp {1}/tiny-1/manifest.toml {0}/no-subvolume-1.1/; ln -s no-subvolume-1.1 {0}/no-subvolume-1", directory("no-subvolume"), directory(TINY)));
    build += &target("no-subvolume", "no-subvolume", "stages.run = 'true'");
    let lies: Vec<(&str, &str)> = LIES
        .iter()
        .map(|(name, _, word)| (*name, *word))
        .chain([("no-subvolume", "not a btrfs subvolume")])
        .collect();
    let scene = Scene::with_commits(&(build + HARMLESS), 1);
    let shown = site.all_shown(&scene);
    for (name, word) in &lies {
        let state =
            shown.iter().find(|machine| machine["name"] == *name).map(|machine| machine["state"].to_string());
        let state = state.unwrap_or_else(|| panic!("{name} is not shown: {shown:#?}"));
        assert!(state.contains(word), "{name}: {word:?} is not in {state}");
        assert!(!state.contains('\u{1b}'), "{name}: {state:?}");
    }
    let dry = site.build(&scene, "slots = 1").args(&["--dry-run"]).run().expect_civil();
    let ended = site.run(&scene).expect_code(102).expect_civil();
    assert_eq!(ended.outcome_of("here"), "success");
    for (name, _) in &lies {
        assert_eq!(ended.outcome_of(name), "infrastructure", "{name}");
        let word = format!("machine {name}");
        assert!(dry.stdout.contains(&word), "{name} is not refused: {}", dry.stdout);
        site.remove(name);
    }
    site.expect_no_guests();
}

/// A run with one task in a guest, which cannot be, and a harmless one, which must.
fn refused(site: &Site, scene: &Scene, more: &str) -> Ended {
    let ended = site.build(scene, more).start().end(A_GUEST_RUN).expect_code(102).expect_civil();
    assert_eq!(ended.outcome_of("here"), "success", "unharmed: {ended:#?}");
    assert_eq!(ended.outcome_of("guest"), "infrastructure", "{ended:#?}");
    ended
}

fn scene(machine: &str) -> Scene {
    Scene::with_commits(
        &format!("{BUILD}{}{HARMLESS}", target("guest", machine, "stages.run = 'cat number'")),
        1,
    )
}

#[test]
fn qemu_that_is_missing_too_old_or_refuses_is_said_as_such() {
    let site = Site::shared();
    for (fake, word) in [
        ("/dev/null", "there is no qemu-system-x86_64 on PATH"),
        ("/tmp/old-qemu", "is QEMU 5.2.0; the oldest that will do is 7.2.0"),
        ("/tmp/no-qemu", "does not say its version as QEMU does"),
    ] {
        site.on("printf '#!/bin/sh\\necho QEMU emulator version 5.2.0\\n' >/tmp/old-qemu; printf '#!/bin/sh\\necho hello\\n' >/tmp/no-qemu; chmod 755 /tmp/*-qemu");
        let scene = scene(TINY);
        site.on(&format!("mount --bind {fake} /usr/bin/qemu-system-x86_64"));
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| refused(&site, &scene, "")));
        let machines = site.machines(&scene, &[]);
        site.on("umount /usr/bin/qemu-system-x86_64");
        ended.expect("it ends as it should").expect_said(word);
        machines.expect_said("no QEMU that can be used").expect_said(&word[..10]);
    }
    site.bootstrap(&[TINY]);
    site.variant(TINY, "refuses", &["options = [\"-nonsense\"]"]);
    let ended = refused(&site, &scene("refuses"), "slots = 1");
    ended.expect_said("-nonsense").expect_said("invalid option");
    site.remove("refuses");
    site.expect_no_guests();
}

#[test]
fn packets_from_elsewhere_are_no_part_of_a_transfer_and_are_told() {
    let site = Site::shared();
    site.bootstrap(&[PLAIN]);
    let gate = Gate::new(&site);
    let lines = format!("stages.run = 'echo it runs; {}'", gate.line());
    let scene = Scene::with_commits(&format!("{BUILD}{}", target("t", PLAIN, &lines)), 1);
    let mut running = site.build(&scene, "slots = 1").start();
    running.wait_for_output("it runs");
    let port = site.on("tr '\\0' '\\n' <\"/proc/$(pgrep -xo qemu-system-x86)/cmdline\" | sed -n 's/.*crewboss.tftp=10.0.2.2:\\([0-9]*\\).*/\\1/p'");
    let port = port.trim();
    assert!(port.parse::<u16>().is_ok(), "{port:?}");
    // A request for what is there, one for what may be put, and rubbish.
    let got = site.on(&format!(
        "cd /tmp; echo evil >evil
        timeout 3 busybox tftp -g -r task -l got 127.0.0.1 {port} 2>&1 || echo no answer
        timeout 3 busybox tftp -p -r result -l evil 127.0.0.1 {port} 2>&1 || echo no answer
        bash -c 'head -c 1000 /dev/urandom >/dev/udp/127.0.0.1/{port}' && echo rubbish; ls got 2>/dev/null || echo nothing"
    ));
    assert!(got.matches("no answer").count() == 2 && got.contains("rubbish"), "{got}");
    gate.open();
    let ended = running.end(A_GUEST_RUN).expect_code(0).expect_tasks(1, "success");
    let log = ended.results.file("t", "log");
    assert!(log.contains("which is not the guest") && log.contains("127.0.0.1"), "{log}");
    assert!(live(&ended, "t").contains("it runs"));
    site.expect_no_guests();
}

/// Makes the second disk with the machine [`TINY`], bootstrapped, on it.
fn make_second(site: &Site) {
    site.bootstrap(&[TINY]);
    site.on(&format!(
        "set -e
        truncate -s 700M /srv/second.img; mkfs.btrfs -q /srv/second.img
        mkdir -p {SECOND}; mount -o loop /srv/second.img {SECOND}
        to={SECOND}/machines/local/tiny; mkdir -p $to
        cd {}
        for one in $(readlink tiny-1) tiny-default; do
            btrfs -q subvolume create $to/$one; cp -a --sparse=always $one/. $to/$one/
        done
        ln -s $(readlink tiny-1) $to/tiny-1",
        directory(TINY)
    ));
}

fn remove_second(site: &Site) {
    site.on(&format!("umount {SECOND}; rm -r {SECOND} /srv/second.img"));
    site.expect_no_guests();
}

/// What is left of guests on the second disk.
fn left(site: &Site) -> String {
    site.on(&format!(
        "cd {SECOND}/machines; ls guests locks; ls -d local/tiny/tiny-default-?????? 2>/dev/null || true"
    ))
}

const NOTHING: &str = "guests:\n\nlocks:\n";

#[test]
fn a_disk_that_is_full_or_read_only_or_gone_is_named_and_left_as_it_was() {
    let site = Site::shared();
    make_second(&site);
    let machines = format!("slots = 1\nmachines = \"{SECOND}/machines\"");
    let scene = scene(TINY);
    // The first writes make the directories, so that all the rest is about the disk.
    let good = site.build(&scene, &machines).start().end(A_GUEST_RUN).expect_code(0);
    drop(good.expect_tasks(2, "success"));

    for (make, word, undo) in [
        (
            format!(
                "dd if=/dev/zero of={SECOND}/filler bs=1M 2>/dev/null; i=0; while echo >{SECOND}/machines/guests/.$i; do i=$((i+1)); done 2>/dev/null; sync"
            ),
            "No space left on device",
            format!("rm -f {SECOND}/filler {SECOND}/machines/guests/.[0-9]*; sync"),
        ),
        (
            format!("mount -o remount,ro {SECOND}"),
            "Read-only file system",
            format!("mount -o remount,rw {SECOND}"),
        ),
        (
            format!("umount {SECOND}"),
            "no machine tiny (has: none)",
            format!("mount -o loop /srv/second.img {SECOND}"),
        ),
    ] {
        site.on(&format!("{make}; true"));
        let boss = site.build(&scene, &machines).args(&["--force"]);
        let ended = boss.start().end(A_GUEST_RUN);
        site.on(&undo);
        let ended = ended.expect_code(102).expect_civil().expect_said(word);
        assert_eq!(ended.outcome_of("here"), "success", "unharmed: {ended:#?}");
        assert_eq!(ended.outcome_of("guest"), "infrastructure", "{ended:#?}");
        assert_eq!(left(&site), NOTHING, "after {word}");
    }
    let again = site.build(&scene, &machines).args(&["--force"]).start().end(A_GUEST_RUN);
    drop(again.expect_code(0).expect_tasks(2, "success"));
    remove_second(&site);
}

#[test]
fn a_disk_that_is_unmounted_mid_build_is_swept_when_it_is_back() {
    let site = Site::shared();
    make_second(&site);
    let machines = format!("slots = 2\nmachines = \"{SECOND}/machines\"");
    site.on(&format!(
        "sed -i 's/^network = .*/network = \"user\"/' {SECOND}/machines/local/tiny/tiny-[1d]*/manifest.toml"
    ));
    let gate = Gate::new(&site);
    let guest = format!(
        "stages.run = 'echo it runs; {}; echo made >$CREWBOSS_OUT/made'\nartifacts = ['made']",
        gate.line()
    );
    let here = "[target.here]\nstages.run = 'until [ -e /srv/unmounted ]; do sleep 0.1; done'\n";
    let build = format!("{BUILD}{}{here}", target("guest", TINY, &guest));
    let scene = Scene::with_commits(&build, 1);
    let mut running = site.build(&scene, &machines).start();
    running.wait_for_output("it runs");
    site.on(&format!("umount -l {SECOND}; touch /srv/unmounted"));
    gate.open();
    let ended = running.end(A_GUEST_RUN).expect_code(102).expect_civil();
    assert_eq!(ended.outcome_of("here"), "success", "unharmed: {ended:#?}");
    assert_eq!(ended.outcome_of("guest"), "infrastructure", "{ended:#?}");
    // The loop device goes with the last who has a file there open.
    wait_for("the loop device to go", SOON, || {
        site.on("losetup -a | grep second || true").is_empty().then_some(())
    });
    site.on(&format!("mount -o loop /srv/second.img {SECOND}"));
    let again = site.build(&scene, &machines).args(&["--force"]).start().end(A_GUEST_RUN);
    drop(again.expect_code(0).expect_tasks(2, "success"));
    assert_eq!(left(&site), NOTHING);
    site.on("rm /srv/unmounted");
    remove_second(&site);
}

#[test]
fn a_guest_that_finds_the_disk_of_the_host_full_is_ended_and_the_host_is_named() {
    let site = Site::shared();
    make_second(&site);
    let machines = format!("slots = 2\nmachines = \"{SECOND}/machines\"");
    let lines = "stages.run = 'echo it runs; dd if=/dev/urandom of=/big bs=1M count=100 && sync'";
    let scene = Scene::with_commits(&format!("{BUILD}{}{HARMLESS}", target("guest", TINY, lines)), 1);
    // Enough is left for a guest to come up, and less than it will write.
    site.on(&format!(
        "dd if=/dev/zero of={SECOND}/filler bs=1M 2>/dev/null; truncate -s -40M {SECOND}/filler; sync"
    ));
    let ended = site.build(&scene, &machines).start().end(A_GUEST_RUN).expect_code(102).expect_civil();
    assert!(live(&ended, "guest").contains("it runs"), "{ended:#?}");
    site.on(&format!("rm {SECOND}/filler"));
    assert_eq!(ended.outcome_of("here"), "success", "unharmed: {ended:#?}");
    assert_eq!(ended.outcome_of("guest"), "infrastructure", "{ended:#?}");
    ended.expect_said(
        "the host has no room for what a guest writes to its disk (write: No space left on device)",
    );
    assert_eq!(left(&site), NOTHING);
    remove_second(&site);
}

#[test]
fn machines_on_another_file_system_than_btrfs_are_refused() {
    let site = Site::shared();
    site.on(&format!("mkdir -p /tmp/machines/local/tiny; cp -r --sparse=always {}/$(readlink {0}/tiny-1) /tmp/machines/local/tiny/tiny-1.1; ln -s tiny-1.1 /tmp/machines/local/tiny/tiny-1", directory(TINY)));
    let ended = refused(&site, &scene(TINY), "machines = \"/tmp/machines\"");
    site.on("rm -r /tmp/machines");
    ended.expect_said("is not a btrfs subvolume");
    site.expect_no_guests();
}

#[test]
fn machines_of_somebody_else_are_refused_to_a_plain_user() {
    let site = Site::shared();
    site.bootstrap(&[TINY]);
    let scene = scene(TINY);
    let crew = scene.crew(
        site.lab(),
        User::Plain,
        &[("host1", "slots = 1\naccel = \"tcg\"\nmachines = \"/srv/crewboss/machines\"")],
    );
    let ended = scene.build(site.lab(), &crew).start().end(A_GUEST_RUN).expect_code(102).expect_civil();
    assert_eq!(ended.outcome_of("here"), "success", "{ended:#?}");
    ended.expect_said("Permission denied");
    site.expect_no_guests();
}
