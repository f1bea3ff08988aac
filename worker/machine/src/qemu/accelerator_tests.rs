use crewboss_host::testing::write_script;

use super::*;
use std::fs;

/// Answers to `--version` as QEMU does; `$fd` is the trial's console in the rest.
const FAKE: &str = r#"#!/bin/bash
case "$1" in --version) echo run >>"$0.runs"; echo "QEMU emulator version ${VERSION:-7.2.22} (fake)"; exit;; esac
fd=$(printf '%s' "$*" | sed -n 's/.*id=console,fd=\([0-9]*\).*/\1/p')
kvm=false; case "$*" in *"-accel kvm"*) kvm=true;; esac
echo trial >>"$0.runs"
"#;

/// Only what hangs reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    directory: tempfile::TempDir,
    host: Host,
}

impl Scene {
    /// A host with a QEMU that does this, and with a KVM that opens.
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let program = at("qemu-system-x86_64");
        write_script(&program, &format!("{FAKE}{script}\n"));
        fs::write(at("kvm"), "").unwrap();
        let program = Program::find_on(directory.path().as_os_str(), Path::new("/nowhere")).unwrap();
        let host = Host { program, kvm: at("kvm"), limits: (PATIENCE, PATIENCE) };
        Self { directory, host }
    }

    /// One whose QEMU hangs with KVM, once it has said what it says.
    fn hangs(script: &str) -> Self {
        let mut scene = Self::new(script);
        scene.host.limits.0 = Duration::from_secs(3);
        scene
    }

    fn find(&self, choice: AccelChoice, refresh: bool) -> Result<Emulator, QemuError> {
        self.host.find(&self.directory.path().join("cache"), choice, refresh)
    }

    fn auto(&self) -> Result<Emulator, QemuError> {
        self.find(AccelChoice::Auto, false)
    }

    /// How often QEMU was started.
    fn runs(&self) -> usize {
        let runs = fs::read_to_string(self.directory.path().join("qemu-system-x86_64.runs"));
        runs.unwrap_or_default().lines().count()
    }
}

/// What it does for KVM and for emulation, in bash, which knows descriptors above 9; `say` prints
/// on the console.
fn script(kvm: &str, tcg: &str) -> String {
    format!("say() {{ printf \"$1\" | cat >&3; }}\nexec 3>&$fd\nif $kvm; then {kvm}; else {tcg}; fi")
}

const ALL: &str = "say 'rplwhcmeftasu\\n'; exec sleep 1000";

#[test]
fn a_guest_that_runs_decides_for_kvm_and_is_not_asked_again() {
    let scene = Scene::new(&script(ALL, "exit 1"));
    let found = scene.auto().unwrap();
    assert_eq!((found.accelerator, found.version.as_str()), (Accelerator::Kvm, "7.2.22"));
    assert!(found.why.starts_with("a trial guest ran in it"), "{}", found.why);
    assert_eq!(scene.runs(), 2, "its version and one trial");
    assert_eq!(scene.auto().unwrap(), found);
    assert_eq!(scene.runs(), 2, "it was kept");
    scene.find(AccelChoice::Auto, true).unwrap();
    assert_eq!(scene.runs(), 4, "it was asked to look again");
}

fn expect_emulation(scene: &Scene, why: &str) {
    let found = scene.auto().unwrap();
    assert_eq!(found.accelerator, Accelerator::Tcg, "{why}");
    assert!(found.why.contains(why), "{why}: {}", found.why);
}

#[test]
fn a_kvm_that_hangs_is_told_and_emulation_taken() {
    let cases = [
        ("say rpl; exec sleep 1000", "kvm opens, but a trial guest hung after step 3 (long mode) for 3 s"),
        ("say r; sleep 1000", "a trial guest hung after step 1 (real mode)"),
        ("exec sleep 1000", "a trial guest hung before step 1"),
        ("yes >&2", "hung before step 1 (real mode) for 3 s: y"),
    ];
    // Most of their time they wait.
    std::thread::scope(|scope| {
        for (kvm, why) in cases {
            scope.spawn(move || expect_emulation(&Scene::hangs(&script(kvm, ALL)), why));
        }
    });
}

#[test]
fn whatever_kvm_does_instead_is_told_and_emulation_taken() {
    for (kvm, why) in [
        ("echo 'failed to set MSR 0x10a' >&2; kill -ABRT $$", "by signal 6: failed to set MSR 0x10a"),
        ("say rp; exit 0", "QEMU ended after step 2 (protected mode) of a trial guest by exit code 0"),
        ("say rXYZ; exec sleep 1000", "a trial guest printed \"rXYZ\" after step 1"),
        ("while say 'login: '; do :; done", "a trial guest printed \"login: "),
    ] {
        expect_emulation(&Scene::new(&script(kvm, ALL)), why);
    }
}

#[test]
fn a_kvm_that_did_not_work_is_tried_again_after_an_hour_and_one_that_does_is_not() {
    for (kvm, runs) in [("exit 1", [3, 3, 5]), (ALL, [2, 2, 2])] {
        let scene = Scene::new(&script(kvm, ALL));
        let cache = scene.directory.path().join("cache");
        let mut seen = Vec::new();
        for age in [0, 3500, 3700] {
            if let Some(mut known) = Known::load(&cache) {
                known.tried -= age;
                known.store(&cache).unwrap();
            }
            scene.auto().unwrap();
            seen.push(scene.runs());
        }
        assert_eq!(seen, runs);
    }
}

#[test]
fn a_kvm_that_does_not_open_is_not_tried_until_it_does() {
    let scene = Scene::new(&script(ALL, ALL));
    let kvm = scene.directory.path().join("kvm");
    fs::remove_file(&kvm).unwrap();
    let found = scene.auto().unwrap();
    assert_eq!(found.accelerator, Accelerator::Tcg);
    assert!(found.why.contains("cannot be opened: No such file"), "{}", found.why);
    fs::write(&kvm, "").unwrap();
    assert_eq!(scene.auto().unwrap().accelerator, Accelerator::Kvm);
}

#[test]
fn what_the_crew_file_says_is_taken_without_a_trial() {
    let scene = Scene::new(&script("exit 1", "exit 1"));
    for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
        let found = scene.find(AccelChoice::Only(accelerator), false).unwrap();
        assert_eq!((found.accelerator, found.why.as_str()), (accelerator, "set in the crew file"));
    }
    assert_eq!(scene.runs(), 1, "only its version was asked for, and once");
}

#[test]
fn a_qemu_that_runs_nothing_is_an_error_that_says_what_was_tried() {
    let scene = Scene::new(&script("say rp; exit 0", "echo 'unknown option' >&2; exit 1"));
    let error = scene.auto().unwrap_err().to_string();
    assert!(error.contains("by exit code 1: unknown option under emulation, and"), "{error}");
    assert!(error.contains("after step 2 (protected mode)"), "{error}");
}

#[test]
fn a_program_that_is_no_qemu_or_too_old_or_missing_is_told() {
    let fake = |text: &str| {
        let scene = Scene::new("");
        write_script(scene.host.program.path(), text);
        scene.auto().unwrap_err().to_string()
    };
    let old = fake("#!/bin/sh\necho QEMU emulator version 5.2.0\n");
    assert!(old.contains("is QEMU 5.2.0; the oldest that will do is 7.2.0"), "{old}");
    let other = fake("#!/bin/sh\necho hello\n");
    assert!(other.contains("does not say its version as QEMU does: \"hello\\n\""), "{other}");
    let broken = fake("#!/nowhere\n");
    assert!(broken.contains("cannot start"), "{broken}");
    let empty = tempfile::tempdir().unwrap();
    let missing = Program::find_on(empty.path().as_os_str(), Path::new("/nowhere")).unwrap_err().to_string();
    assert!(missing.contains("apt install qemu-system-x86"), "{missing}");
    fs::write(empty.path().join("qemu-system-x86_64"), "").unwrap();
    assert!(Program::find_on(empty.path().as_os_str(), Path::new("/nowhere")).is_err(), "not executable");
}

#[test]
fn a_garbled_cache_is_no_cache() {
    let scene = Scene::new(&script(ALL, ALL));
    let cache = scene.directory.path().join("cache");
    for text in ["", "{", "[1]", "{\"program\": 3}"] {
        fs::write(&cache, text).unwrap();
        assert_eq!(scene.auto().unwrap().accelerator, Accelerator::Kvm, "{text:?}");
    }
}

#[test]
fn a_real_qemu_takes_every_step_under_emulation() {
    let limits = (KVM_LIMIT, TCG_LIMIT);
    let host = Host { program: Program::find().unwrap(), kvm: KVM.into(), limits };
    let took = host.trial(Accelerator::Tcg, default_cpu(Accelerator::Tcg)).unwrap();
    assert!(took.is_ok(), "{took:?}");
    let refused = host.trial(Accelerator::Tcg, "no-such-cpu").unwrap().unwrap_err();
    assert!(refused.contains("before step 1") && refused.contains("no-such-cpu"), "{refused}");
}

#[test]
fn a_host_without_a_machine_directory_is_not_even_asked_for_qemu() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path().join("work"));
    let hello = r#"{"protocol": 1, "build": "x", "boss": "a@b", "run": "r", "session": "r.1", "host": "h",
        "heartbeat_ms": 1000, "silence_ms": 1000}"#;
    let hello = serde_json::from_str(hello).unwrap_or_else(|error| panic!("{error}"));
    assert!(of_host(&layout, &hello).is_none());
    fs::create_dir_all(layout.work().join("machines")).unwrap();
    let Some(Ok(emulator)) = of_host(&layout, &hello) else { panic!("this host has no QEMU") };
    assert!(!emulator.why.is_empty());
    assert!(layout.emulator_cache().is_file());
}

#[test]
fn a_reason_is_one_line() {
    let said = "qemu-system-x86_64: warning: host lacks it\n\nqemu-system-x86_64: error: no MSR\nAssertion\n";
    assert_eq!(gist(said), Some("error: no MSR"));
    assert_eq!(gist("qemu: warning: x\n"), None);
}
