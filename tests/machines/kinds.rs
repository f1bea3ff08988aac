//! Machines of every kind that a manifest knows: started by firmware, on an image of QEMU's own, on
//! a bridge of the host, with a screen, warm with a network.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::boss::Ended;
use crate::support::machines::{A_GUEST_RUN, Kept, Site, TINY, directory, target};
use crate::support::scene::Scene;
use crate::support::{SOON, read, wait_for, write};
use serde_json::Value;

/// Restoring, booting and saving, on a machine that is busy with other things.
const A_VISIT: Duration = Duration::from_secs(600);

// ---- firmware, qcow2, screen --------------------------------------------------------------------

const UEFI: &str = "by-uefi";
const BIOS: &str = "by-bios";
const QCOW2: &str = "on-qcow2";

/// No word of ours is on a command line that a boot loader has made.
const NO_WORDS: &str = "if grep crewboss /proc/cmdline; then exit 9; fi";

/// A machine that either firmware starts, a variant of it whose guests speak TFTP, and [`TINY`] on
/// an image of QEMU's own.
fn of_all_kinds() -> Site {
    let site = Site::shared();
    let small = ["--memory", "128M:256M", "--manifest", "display = true", "--manifest", "warm_start = true"];
    site.make("host1", UEFI, &[&["--firmware", "uefi"], &small[..]].concat());
    let tftp = [
        "firmware = \"bios\"",
        "exchange = \"tftp\"",
        "network = \"user\"",
        "display = false",
        "warm_start = false",
    ];
    site.variant(UEFI, BIOS, &tftp);
    site.variant(TINY, QCOW2, &["format = \"qcow2\"", "warm_start = true"]);
    // If it has one, its disk is not of this format.
    site.on(&format!(
        "cd {}; btrfs -q subvolume delete {QCOW2}-default 2>/dev/null || true",
        directory(QCOW2)
    ));
    let disk = site.path(&format!("{}/{QCOW2}-1/disk.img", directory(QCOW2)));
    to_qcow2(&disk);
    site
}

/// Rewrites a raw image.
fn to_qcow2(disk: &Path) {
    /// Bytes of a cluster: one holds the upper table, one the counts, one the lower table of 512
    /// MiB.
    const CLUSTER: u64 = 1 << 16;
    const PER_TABLE: u64 = CLUSTER / 8;
    /// Marks a cluster that nobody shares.
    const OWN: u64 = 1 << 63;
    let raw = disk.with_extension("raw");
    fs::rename(disk, &raw).expect("another name for the image");
    let mut from = File::open(&raw).expect("the raw image");
    let mut to = File::create_new(disk).expect("a new image");
    let size = from.metadata().expect("its size").len();
    let tables = size.div_ceil(CLUSTER * PER_TABLE);
    let mut put = |cluster: u64, at: u64, bytes: &[u8]| {
        to.seek(SeekFrom::Start(cluster * CLUSTER + at)).expect("a place in a file");
        to.write_all(bytes).expect("room for an image");
    };
    // Upper table, table of counts, counts, lower tables, content.
    let mut next = 4 + tables;
    let (mut block, nothing) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    for index in 0..size.div_ceil(CLUSTER) {
        block.fill(0);
        let length = usize::try_from(CLUSTER.min(size - index * CLUSTER)).expect("a small number");
        from.read_exact(&mut block[..length]).expect("the raw image");
        if block != nothing {
            put(next, 0, &block);
            put(4 + index / PER_TABLE, index % PER_TABLE * 8, &((next * CLUSTER) | OWN).to_be_bytes());
            next += 1;
        }
    }
    for table in 0..tables {
        put(1, table * 8, &(((4 + table) * CLUSTER) | OWN).to_be_bytes());
    }
    put(2, 0, &(3 * CLUSTER).to_be_bytes());
    assert!(next * 2 <= CLUSTER, "one block of counts does not do for {next} clusters");
    (0..next).for_each(|cluster| put(3, cluster * 2, &1_u16.to_be_bytes()));
    // Magic, version 2, no backing file (offset and length), clusters of 2^16 bytes, size, no
    // encryption, the upper table's length and place, the place and length of the table of counts,
    // no snapshots (number and place).
    let words = |high: u32, low: u32| (u64::from(high) << 32) | u64::from(low);
    let magic = words(u32::from_be_bytes(*b"QFI\xfb"), 2);
    let header = [magic, 0, words(0, 16), size, tables, CLUSTER, 2 * CLUSTER, words(1, 0), 0];
    put(0, 0, &header.map(u64::to_be_bytes).concat());
    fs::remove_file(raw).expect("the raw image goes");
}

/// A command about guests.
fn command(site: &Site, scene: &Scene, words: &[&str]) -> Ended {
    let mut command = scene.crewboss(Some(site.lab()), words).called(words[0]);
    command.arg("--crew").arg(site.crew(scene, "slots = 2"));
    command.start().end(A_VISIT)
}

/// The guests that are kept, by their targets.
fn held(site: &Site, scene: &Scene) -> Vec<(String, Value)> {
    let ended = command(site, scene, &["status", "--json"]).expect_code(0);
    let hosts: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let held = hosts[0]["held"].as_array().cloned().unwrap_or_default();
    held.into_iter().map(|one| (one["target"].as_str().unwrap_or_default().to_owned(), one)).collect()
}

#[test]
fn guests_start_by_firmware_and_on_qcow2_warm_too_and_are_kept_like_any_other() {
    let site = of_all_kinds();
    let fails = |kind: &str| {
        format!("stages.build = '''{kind}; {NO_WORDS}; echo kind is right; test \"$V\" = good'''")
    };
    let build = [
        "commits = 'HEAD'\n".to_owned(),
        target("uefi", UEFI, &fails("[ -d /sys/firmware/efi ]")),
        target(
            "bios",
            BIOS,
            &format!(
                "stages.build = '''[ ! -e /sys/firmware/efi ]; {NO_WORDS}; cat number >made'''\nartifacts = ['made']"
            ),
        ),
        // More than fits in the clusters that are there, read from the disk again.
        target(
            "qcow2",
            QCOW2,
            "stages.build = '''head -c 40000000 /dev/urandom >/root/big; sum=$(md5sum </root/big); sync
                echo 3 >/proc/sys/vm/drop_caches; [ \"$sum\" = \"$(md5sum </root/big)\" ]
                echo kind is right; test \"$V\" = good'''",
        ),
    ];
    let scene = Scene::with_commits(&build.concat(), 1);
    let kept =
        Kept::of(site.build(&scene, "slots = 2").args(&["--hold"]).start().end(A_GUEST_RUN).expect_code(100));
    assert_eq!(kept.ended.outcome_of("bios"), "success", "{:#?}", kept.ended);
    assert_eq!(kept.file("bios", "artifacts/made"), "1");
    for kind in ["uefi", "qcow2"] {
        assert_eq!(kept.ended.outcome_of(kind), "failure", "{:#?}", kept.ended);
        assert!(kept.file(kind, "log").contains("kind is right"), "{:#?}", kept.ended);
        assert_eq!(kept.result(kind)["machine"]["warm"], true, "{:#?}", kept.ended);
    }
    let mut kinds: Vec<String> = held(&site, &scene).into_iter().map(|(target, _)| target).collect();
    kinds.sort();
    assert_eq!(kinds, ["qcow2", "uefi"]);

    look_at_the_screen(&site, &scene, "uefi");
    for kind in ["uefi", "qcow2"] {
        let retry = ["retry", kind, "--stage", "build", "--set", "V=good"];
        drop(command(&site, &scene, &retry).expect_code(0).expect_said("kind is right"));
        drop(command(&site, &scene, &["release", kind]).expect_code(0));
    }
    site.expect_no_guests();

    expect_the_lack_of_firmware_to_be_said(&site, &scene, "uefi");
    [UEFI, BIOS, QCOW2].iter().for_each(|name| site.remove(name));
}

fn expect_the_lack_of_firmware_to_be_said(site: &Site, scene: &Scene, kind: &str) {
    // In the mounts of the host alone.
    site.on("mount -t tmpfs none /usr/share/OVMF; mount -t tmpfs none /usr/share/qemu");
    let without = site.build(scene, "slots = 2").args(&["--force", kind]).start().end(A_GUEST_RUN);
    site.on("umount /usr/share/OVMF; umount /usr/share/qemu");
    drop(without.expect_code(102).expect_civil().expect_said("apt install ovmf"));
    site.expect_no_guests();
}

/// Enters a held guest by VNC, as a person does it, and leaves it.
fn look_at_the_screen(site: &Site, scene: &Scene, kind: &str) {
    let crew = site.crew(scene, "slots = 2");
    let line =
        format!("exec {} enter --crew {} {kind} --vnc", env!("CARGO_BIN_EXE_crewboss"), crew.display());
    let mut person = Shown::start(site, scene, "person", &line);
    // Exactly the line that is shown is what a person types.
    let forward = wait_for("the line that forwards the display", A_VISIT, || {
        read(&person.out).lines().map(str::trim).find(|line| line.contains("-N -L 5900:")).map(str::to_owned)
    });
    wait_for("the viewer's line", SOON, || {
        read(&person.out).contains("vncviewer localhost:5900").then_some(())
    });
    let mut forward = Shown::start(site, scene, "forward", &format!("exec {forward}"));
    let version = wait_for("the greeting of the display", A_VISIT, || {
        assert!(forward.child.try_wait().expect("its state").is_none(), "{}", read(&forward.out));
        let greets = "exec 3<>/dev/tcp/127.0.0.1/5900 && head -c 12 <&3";
        let found =
            site.lab().inside(Path::new("bash")).args(["-c", greets]).output().expect("bash can be started");
        (found.stdout.len() == 12).then_some(found.stdout)
    });
    assert!(version.starts_with(b"RFB 003.00") && version.ends_with(b"\n"), "{version:?}");
    drop(forward);
    person.types(b"\x1d");
    let shown = person.ends();
    assert!(shown.contains("is held for another"), "{shown}");
    let look = || {
        let found = site.on("for p in /proc/[0-9]*; do readlink $p/exe; done | grep qemu-system || true");
        found.is_empty().then_some(())
    };
    wait_for("no QEMU", SOON, look);
    let held = held(site, scene);
    let (_, guest) = held.iter().find(|(target, _)| target == kind).expect("it is still held");
    assert_eq!((&guest["memory"], &guest["entered"]), (&true.into(), &Value::Null));
}

/// A program of a person, where the hosts can be reached. Dropped, it is killed.
struct Shown {
    child: Child,
    out: PathBuf,
}

impl Shown {
    fn start(site: &Site, scene: &Scene, name: &str, line: &str) -> Self {
        let out = scene.path(name);
        let file = File::create(&out).expect("a file for what is shown");
        let mut command = site.lab().inside(Path::new("sh"));
        command
            .args(["-c", line])
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", scene.path("home"))
            .stdin(Stdio::piped())
            .stderr(file.try_clone().expect("the same file"))
            .stdout(file);
        Self { child: command.spawn().expect("a shell can be started"), out }
    }

    fn types(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().expect("a keyboard").write_all(bytes).expect("it takes it");
    }

    fn ends(mut self) -> String {
        let status = wait_for("the end of a program", A_VISIT, || self.child.try_wait().expect("its state"));
        let shown = read(&self.out);
        assert!(status.success(), "{status}: {shown}");
        shown
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // Both fail if it has ended, which is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

// ---- a bridge -----------------------------------------------------------------------------------

const BRIDGED: &str = "on-bridge";

const MAC: &str = "52:54:00:cb:0a:01";

/// A bridge of `host1`, and somebody on it who gives out addresses. They go with the test.
struct Bridge<'a> {
    site: &'a Site,
    server: Child,
    _files: tempfile::TempDir,
}

impl<'a> Bridge<'a> {
    fn new(site: &'a Site) -> Self {
        site.on("ip link add br0 address 52:54:00:cb:00:fe type bridge forward_delay 0
            ip address add 10.99.0.1/24 dev br0
            ip link set br0 up");
        let files = tempfile::tempdir().expect("a directory");
        let file = |name: &str| files.path().join(name);
        let text = format!(
            "interface br0\nstart 10.99.0.50\nend 10.99.0.99\nlease_file {}\npidfile {}\noption subnet 255.255.255.0\n",
            file("leases").display(),
            file("pid").display(),
        );
        write(&file("leases"), "");
        write(&file("conf"), text);
        let mut command = site.on_network("busybox");
        command.args(["udhcpd", "-f"]).arg(file("conf")).stdout(Stdio::null()).stderr(Stdio::null());
        let server = command.spawn().expect("nsenter, of the package util-linux, starts programs elsewhere");
        Self { site, server, _files: files }
    }

    /// What is plugged in, each with the number that no other device ever gets.
    fn plugged(&self) -> Vec<String> {
        let all = self.site.on("ip -o link show master br0");
        all.lines().filter_map(|line| line.split(':').next()).map(str::to_owned).collect()
    }
}

impl Drop for Bridge<'_> {
    fn drop(&mut self) {
        // Both fail if it has ended, which is as good.
        drop(self.server.kill());
        drop(self.server.wait());
        // After a test that failed the lab is a new one.
        if !std::thread::panicking() {
            self.site.on("ip link delete br0");
        }
    }
}

#[test]
fn a_machine_is_on_a_bridge_with_its_address_and_alone() {
    let site = Site::shared();
    site.bootstrap(&[TINY]);
    let network = ["network = \"bridge:br0\"", &format!("mac = \"{MAC}\"")];
    site.variant(TINY, BRIDGED, &network);
    site.variant(TINY, "nowhere", &["network = \"bridge:br-none\""]);
    let bridge = Bridge::new(&site);
    let look = "cat /sys/class/net/eth0/address; ip -4 -o address show dev eth0
        ping -c 1 -W 20 10.99.0.1 | grep received";
    let looks =
        |name: &str, then: &str| target(name, BRIDGED, &format!("stages.look = '''{look}\n{then}'''"));
    let build = [
        looks("one", "true"),
        looks("two", "test \"$V\" = good"),
        target("nowhere", "nowhere", "stages.look = 'true'"),
        target("stays", BRIDGED, "stages.sleep = 'echo it runs; sleep 600'"),
    ]
    .concat();
    let scene = Scene::with_commits(&format!("commits = 'HEAD'\n{build}"), 1);

    let mut running = site.build(&scene, "slots = 2").args(&["one", "two", "--hold"]).start();
    while running.is_running() {
        assert!(bridge.plugged().len() <= 1, "two guests with one address");
    }
    let ended = running.end(A_GUEST_RUN).expect_code(100);
    let ended = ended.expect_said(&format!("waits for a place in {BRIDGED}"));
    assert_eq!((ended.outcome_of("one").as_str(), ended.outcome_of("two").as_str()), ("success", "failure"));
    let is_there = |log: &str| {
        assert!(
            log.contains(MAC) && log.contains("inet 10.99.0.") && log.contains(" 1 packets received"),
            "{log}"
        );
    };
    ["one", "two"].iter().for_each(|name| is_there(&ended.results.file(name, "log")));
    assert_eq!(bridge.plugged(), Vec::<String>::new());
    // A guest that was kept is on the bridge again.
    let retry = ["retry", "two", "--stage", "look", "--set", "V=good"];
    is_there(&command(&site, &scene, &retry).expect_code(0).stdout);
    drop(command(&site, &scene, &["release", "two"]).expect_code(0));
    site.expect_no_guests();

    let ended = site.build(&scene, "slots = 2").args(&["nowhere"]).start().end(A_GUEST_RUN).expect_code(102);
    drop(ended.expect_civil().expect_said("there is no bridge br-none"));
    site.expect_no_guests();

    // Whoever is left is not asked to tidy up: the kernel does it.
    let mut running = site.build(&scene, "slots = 2").args(&["stays"]).start();
    running.wait_for_output("it runs");
    let plugged = bridge.plugged();
    assert_eq!(plugged.len(), 1);
    site.on(r#"for p in /proc/[0-9]*; do case $(readlink $p/exe) in */qemu-system*) qemu=$p ;; esac; done
        kill -KILL "$(sed -n 's/^PPid:\t//p' $qemu/status)""#);
    wait_for("the end of a TAP device", SOON, || (!bridge.plugged().contains(&plugged[0])).then_some(()));
    running.signal("INT");
    drop(running.end(SOON).expect_code(130));
    site.expect_no_guests();
    drop(bridge);
    [BRIDGED, "nowhere"].iter().for_each(|name| site.remove(name));
}

// ---- warm, with a network -----------------------------------------------------------------------

const WARM: &str = "warm_net";

/// Who the guest is, a line each: address, host name, machine id, random bytes, seconds since 1970,
/// and what the host's sshd says, which is reached over the guest's network.
const WHO: &str = r#"stages.who = '''cat /sys/class/net/eth0/address; hostname; cat /etc/machine-id
    head -c 16 /dev/urandom | sha256sum; date +%s
    nc 10.213.0.11 22 </dev/null | head -n 1; ip route | grep -c "default via 10.0.2.2"'''"#;

#[test]
fn warm_guests_with_a_network_are_themselves_and_reach_others() {
    let site = Site::shared();
    site.bootstrap(&[TINY]);
    site.variant(TINY, WARM, &["warm_start = true", "network = \"user\""]);
    let scene = Scene::with_commits(&format!("commits = 'HEAD~2..HEAD'\n{}", target("who", WARM, WHO)), 4);
    let since_1970 = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let began = since_1970();
    let ended =
        site.build(&scene, "slots = 1").start().end(A_GUEST_RUN).expect_code(0).expect_tasks(2, "success");
    let over = since_1970();
    let guests: Vec<Vec<String>> = ended
        .results
        .tasks
        .values()
        .map(|path| {
            let result: Value = serde_json::from_str(&read(&path.join("result.json"))).expect("JSON");
            assert_eq!(
                (&result["machine"]["warm"], &result["machine"]["boots"]),
                (&true.into(), &0.into()),
                "{ended:#?}"
            );
            read(&path.join("log")).lines().map(str::to_owned).collect()
        })
        .collect();
    let [one, other] = &guests[..] else { panic!("{guests:?}") };
    for (line, what) in [(0, "address"), (2, "machine id"), (3, "random numbers")] {
        assert_ne!(one[line], other[line], "the same {what}: {guests:?}");
    }
    for guest in [one, other] {
        assert!(guest[0].starts_with("52:54:00:"), "{guests:?}");
        // The name that the machine has when it boots, as far as host names go.
        assert_eq!(guest[1], "warm-net", "{guests:?}");
        assert_eq!(guest[2].len(), 32, "{guests:?}");
        let time = Duration::from_secs(guest[4].parse().expect("seconds"));
        let second = Duration::from_secs(1);
        assert!((began - second..=over + second).contains(&time), "a wrong clock: {guests:?}");
        assert!(guest[5].starts_with("SSH-2.0") && guest[6] == "1", "no network: {guests:?}");
    }
    site.expect_no_guests();
    site.remove(WARM);
}
