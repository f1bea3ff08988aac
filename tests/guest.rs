//! The guest agent, driven as a host drives it: over a socket, with files in place of disks, in a
//! directory in place of `/`. Needs root, since an agent is root in its guest.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crewboss_host::Layout;
use crewboss_host::process::with_variable;
use crewboss_machine::exchange::{ArchiveLimits, PortDecoder, PortEvent, Unpacked, encode, unpack};
use crewboss_protocol::guest::{FromGuest, GuestStream, Identity, ResultDocument, TaskDocument, ToGuest};
use crewboss_protocol::target::{Command as StageCommand, Stage};
use crewboss_protocol::{StageExit, TreeId};
use crewboss_worker::source::archive::source_tar;
use support::{SOON, wait_for, write};

const TREE: TreeId = TreeId([9; 20]);

/// By this variable the processes of a test are found.
const MARK: &str = "CREWBOSS_TEST_GUEST";

struct Guest {
    base: tempfile::TempDir,
    agent: Child,
    socket: UnixStream,
    decoder: PortDecoder,
    out: Vec<u8>,
    err: Vec<u8>,
    mark: String,
}

impl Guest {
    fn start(words: &[&str]) -> Self {
        let base = tempfile::tempdir().unwrap();
        let layout = Layout::new(base.path().join("host"));
        write(&layout.source(TREE).join("hello.txt"), "hello\n");
        write(&layout.source(TREE).join("deep/er/file"), "deep\n");
        let archive = source_tar(&layout, TREE).unwrap();
        let root = base.path().join("root");
        for (disk, serial) in [("vda", "system"), ("vdb", "crewboss-source"), ("vdc", "crewboss-result")] {
            write(&root.join("sys/block").join(disk).join("serial"), serial);
            write(&root.join("dev").join(disk), "");
        }
        fs::rename(archive, root.join("dev/vdb")).unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let agent = env!("CARGO_BIN_EXE_crewboss");
        let mut all = words.iter().copied().chain([agent, "guest", "--port", "-", "--root"]);
        let mut command = Command::new(all.next().unwrap());
        command.args(all).arg(&root).stdin(Stdio::from(OwnedFd::from(theirs)));
        let agent = command.spawn().unwrap();
        // A test that waits in vain must say for what.
        ours.set_read_timeout(Some(SOON)).unwrap();
        let mark = format!("{}-{}", std::process::id(), base.path().display());
        let decoder = PortDecoder::new();
        let mut guest = Self { base, agent, socket: ours, decoder, out: Vec::new(), err: Vec::new(), mark };
        assert!(matches!(guest.next(), FromGuest::Ready { agent: 1 }));
        guest
    }

    /// One whose task has these stages, each a line for the shell.
    fn with_task(stages: &[(&str, &str)]) -> Self {
        let mut guest = Self::start(&[]);
        guest.task(stages, &["*.bin", "hello.txt"]);
        guest
    }

    fn task(&mut self, stages: &[(&str, &str)], artifacts: &[&str]) {
        let document = TaskDocument {
            at: "3.1".parse().unwrap(),
            target: "unzip".parse().unwrap(),
            commit: TREE,
            jobs: 2,
            variables: vec![(MARK.to_owned(), self.mark.clone()), ("HOME".to_owned(), "/x".to_owned())],
            served: Vec::new(),
            stages: stages
                .iter()
                .map(|(name, line)| stage(name, StageCommand::Shell((*line).into())))
                .collect(),
            artifacts: artifacts.iter().map(|glob| (*glob).to_owned()).collect(),
            sizes: Vec::new(),
        };
        self.send(&ToGuest::Task { document: document.to_text() });
        assert_eq!(self.next(), FromGuest::Prepared);
    }

    fn root(&self) -> PathBuf {
        self.base.path().join("root")
    }

    fn send(&mut self, message: &ToGuest) {
        let mut line = Vec::new();
        encode(message, &mut line).unwrap();
        self.socket.write_all(&line).unwrap();
    }

    fn stage(&mut self, name: &str) {
        self.stage_with(name, &[], false);
    }

    fn stage_with(&mut self, name: &str, variables: &[(&str, &str)], wipe: bool) {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.send(&ToGuest::Stage { name: name.parse().unwrap(), variables: variables.collect(), wipe });
    }

    /// The next message; output before it is kept.
    fn next(&mut self) -> FromGuest {
        let mut buffer = [0; 4096];
        loop {
            match self.decoder.next_event() {
                Some(PortEvent::Message(message)) => return message,
                Some(PortEvent::Output(GuestStream::Out, bytes)) => self.out.extend_from_slice(bytes),
                Some(PortEvent::Output(GuestStream::Err, bytes)) => self.err.extend_from_slice(bytes),
                Some(PortEvent::Bad(text)) => panic!("the agent sent nonsense: {text}"),
                None => {
                    let count = self.socket.read(&mut buffer).expect("the agent says nothing");
                    assert!(count > 0, "the agent is gone");
                    self.decoder.push(&buffer[..count]);
                }
            }
        }
    }

    fn ended(&mut self) -> (StageExit, bool) {
        match self.next() {
            FromGuest::Ended { result, stopped, .. } => (result.exit, stopped),
            other => panic!("no end of a stage: {other:?}"),
        }
    }

    fn failed(&mut self) -> String {
        match self.next() {
            FromGuest::Failed { text, .. } => text,
            other => panic!("no failure: {other:?}"),
        }
    }

    fn collect(&mut self, globs: &[&str]) -> (ResultDocument, Unpacked) {
        self.send(&ToGuest::Collect);
        let FromGuest::Collected { document, bytes } = self.next() else { panic!("nothing was collected") };
        let globs: Vec<String> = globs.iter().map(|glob| (*glob).to_owned()).collect();
        let disk = File::open(self.root().join("dev/vdc")).unwrap();
        let into = self.base.path().join("artifacts");
        let unpacked = unpack(&disk, bytes, &into, &globs, ArchiveLimits::within(u64::MAX)).unwrap();
        (ResultDocument::parse(&document).unwrap(), unpacked)
    }

    fn alive(&mut self, number: u64) {
        self.send(&ToGuest::Ping { number });
        let FromGuest::Alive { number: answered, load, .. } = self.next() else {
            panic!("no answer to a ping")
        };
        assert!(answered == number && load.memory_available > 0 && load.disk_free > 0);
    }

    fn until_stage_lives(&self) {
        wait_for("the stage to start", SOON, || (!self.survivors().is_empty()).then_some(()));
    }

    fn survivors(&self) -> Vec<u32> {
        with_variable(MARK, &self.mark).iter().map(|process| process.pid).collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Ends the agent, and that its stage.
        drop(self.socket.shutdown(std::net::Shutdown::Both));
        let end = Instant::now() + SOON;
        while matches!(self.agent.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(self.agent.kill());
        drop(self.agent.wait());
        for process in with_variable(MARK, &self.mark) {
            process.signal(crewboss_host::process::KILL);
        }
    }
}

fn stage(name: &str, command: StageCommand) -> Stage {
    Stage { name: name.parse().unwrap(), command }
}

fn text(path: &Path) -> String {
    support::read(path)
}

#[test]
fn a_task_goes_from_its_source_to_its_artifacts() {
    let mut guest = Guest::with_task(&[
        (
            "build",
            "cat hello.txt deep/er/file; echo oops >&2; cp hello.txt $CREWBOSS_OUT/a.bin; mkdir -p $CREWBOSS_OUT/upload/p; echo up > $CREWBOSS_OUT/upload/p/x; ln -s /etc/hostname $CREWBOSS_OUT/away.bin",
        ),
        (
            "env",
            "echo $CREWBOSS_TASK $CREWBOSS_JOBS $CREWBOSS_TARGET $CREWBOSS_COMMIT $EXTRA; echo $HOME $PWD; exit 3",
        ),
    ]);
    guest.stage("build");
    assert_eq!(guest.ended(), (StageExit::Code(0), false));
    assert_eq!(
        (guest.out.as_slice(), guest.err.as_slice()),
        (b"hello\ndeep\n".as_slice(), b"oops\n".as_slice())
    );
    guest.out.clear();
    guest.stage_with("env", &[("EXTRA", "more")], false);
    assert_eq!(guest.ended(), (StageExit::Code(3), false));
    let work = guest.root().join("crewboss");
    let expected = format!("3.1 2 unzip {TREE} more\n{0}/home {0}/src\n", work.display());
    assert_eq!(String::from_utf8_lossy(&guest.out), expected);
    let (document, unpacked) = guest.collect(&["*.bin", "hello.txt", "none"]);
    let ends: Vec<_> = document.stages.iter().map(|stage| (stage.name.as_str(), stage.exit)).collect();
    assert_eq!(ends, [("build", StageExit::Code(0)), ("env", StageExit::Code(3))]);
    assert!(document.rss_kib_max > 0 && document.message.is_empty(), "{document:?}");
    assert!(document.problems.len() == 1 && document.problems[0].contains("away.bin"), "{document:?}");
    let names: Vec<_> = unpacked.found.files.keys().collect();
    assert_eq!(names, ["a.bin", "hello.txt"]);
    assert_eq!(text(&unpacked.found.files["a.bin"]), "hello\n");
    assert_eq!(text(&unpacked.uploads["p/x"]), "up\n");
    assert_eq!(unpacked.found.problems, ["nothing matches the artifact \"none\""]);
}

#[test]
fn a_wiped_stage_starts_as_the_first_one_did() {
    let mut guest = Guest::with_task(&[(
        "spoil",
        "echo x > hello.txt; touch new $CREWBOSS_OUT/old; rm -r deep; ls $CREWBOSS_OUT",
    )]);
    for wipe in [false, true] {
        guest.out.clear();
        guest.stage_with("spoil", &[], wipe);
        assert_eq!(guest.ended(), (StageExit::Code(0), false));
        assert_eq!(guest.out, b"old\n");
    }
    let (document, unpacked) = guest.collect(&["hello.txt"]);
    assert_eq!(text(&unpacked.found.files["hello.txt"]), "x\n");
    assert_eq!(document.stages.len(), 1, "a stage that ran again counts once");
}

#[test]
fn nothing_of_a_stage_lives_on_after_it() {
    let hidden = "setsid sh -c 'trap \"\" TERM HUP; sleep 1000 & sleep 1000' & ";
    let mut guest = Guest::with_task(&[
        ("leave", &format!("{hidden} sleep 0")),
        ("hang", &format!("{hidden} sleep 1000")),
    ]);
    guest.stage("leave");
    assert_eq!(guest.ended(), (StageExit::Code(0), false));
    assert!(guest.survivors().is_empty(), "{:?} live on", guest.survivors());
    guest.stage("hang");
    guest.until_stage_lives();
    guest.alive(1);
    guest.send(&ToGuest::Cancel);
    assert_eq!(guest.ended(), (StageExit::Signal(15), true));
    assert!(guest.survivors().is_empty(), "{:?} live on", guest.survivors());
    guest.alive(2);
}

#[test]
fn a_host_that_does_not_listen_slows_a_stage_down_and_can_still_stop_it() {
    let mut guest =
        Guest::with_task(&[("flood", "while :; do echo 0123456789012345678901234567890123456789; done")]);
    guest.stage("flood");
    guest.until_stage_lives();
    let flooder = guest.survivors()[0];
    let blocked = || text(Path::new(&format!("/proc/{flooder}/wchan"))).contains("pipe");
    wait_for("the stage to wait for its reader", SOON, || blocked().then_some(()));
    guest.send(&ToGuest::Ping { number: 7 });
    assert!(matches!(guest.next(), FromGuest::Alive { number: 7, .. }));
    assert!(guest.out.len() < 4 << 20, "{} bytes waited before the answer", guest.out.len());
    wait_for("the stage to wait again", SOON, || blocked().then_some(()));
    guest.send(&ToGuest::Cancel);
    // Not a byte is read meanwhile.
    wait_for("the stage to end", SOON, || guest.survivors().is_empty().then_some(()));
    assert!(guest.ended().1, "it was stopped");
    let lines = guest.out.split(|byte| *byte == b'\n');
    let torn = lines.filter(|line| !line.is_empty() && line.len() != 40).count();
    assert!(torn <= 1, "{torn} lines of output are torn");
}

#[test]
fn what_cannot_be_done_is_said_and_the_agent_goes_on() {
    let mut guest = Guest::start(&[]);
    guest.stage("build");
    assert_eq!(guest.failed(), "there is no task yet");
    guest.send(&ToGuest::Collect);
    assert_eq!(guest.failed(), "there is no task yet");
    guest.send(&ToGuest::Task { document: "nonsense".to_owned() });
    assert!(guest.failed().starts_with("cannot read the task: it does not begin with"));
    guest.socket.write_all(b"@cb {\"nonsense\":1}\n").unwrap();
    assert!(guest.failed().starts_with("the host sent something that is no message"));
    guest.socket.write_all(b"stray\n@cb ").unwrap();
    for _ in 0..40 {
        guest.socket.write_all(&[b'x'; 64 << 10]).unwrap();
    }
    guest.socket.write_all(b"\n").unwrap();
    assert!(guest.failed().contains("longer than"));
    guest.send(&ToGuest::Cancel);
    guest.task(&[("wait", "sleep 1000")], &[]);
    guest.stage("other");
    assert_eq!(guest.failed(), "the task has no stage other");
    guest.stage("wait");
    guest.until_stage_lives();
    guest.stage("wait");
    assert_eq!(guest.failed(), "the agent is busy: run a stage");
    guest.alive(1);
}

#[test]
fn a_program_that_is_not_there_ends_its_stage() {
    let mut guest = Guest::start(&[]);
    let document = TaskDocument {
        at: "3.1".parse().unwrap(),
        target: "unzip".parse().unwrap(),
        commit: TREE,
        jobs: 1,
        variables: Vec::new(),
        served: Vec::new(),
        stages: vec![
            stage("none", StageCommand::Words(vec!["no-such-program".to_owned()])),
            stage("echo", StageCommand::Words(vec!["echo".to_owned(), "$HOME;".to_owned()])),
        ],
        artifacts: Vec::new(),
        sizes: Vec::new(),
    };
    guest.send(&ToGuest::Task { document: document.to_text() });
    assert_eq!(guest.next(), FromGuest::Prepared);
    guest.stage("none");
    assert_eq!(guest.ended(), (StageExit::Code(127), false));
    let said = String::from_utf8_lossy(&guest.err).into_owned();
    assert_eq!(said, "crewboss: stage none cannot be started: no-such-program is not on the PATH\n");
    guest.stage("echo");
    assert_eq!(guest.ended(), (StageExit::Code(0), false));
    assert_eq!(guest.out, b"$HOME;\n");
}

#[test]
fn a_stage_that_kills_the_agents_child_is_ended_all_the_same() {
    let mut guest =
        Guest::with_task(&[("kill", "setsid sleep 1000 & kill -9 $PPID; sleep 1000"), ("ok", "echo ok")]);
    guest.stage("kill");
    let text = guest.failed();
    assert!(text.starts_with("the process that was to run a stage was killed"), "{text}");
    assert!(guest.survivors().is_empty(), "{:?} live on", guest.survivors());
    guest.stage("ok");
    assert_eq!(guest.ended(), (StageExit::Code(0), false));
}

#[test]
fn a_full_result_disk_is_a_clear_failure() {
    let mut guest = Guest::with_task(&[("build", "echo x > $CREWBOSS_OUT/a.bin")]);
    guest.stage("build");
    guest.ended();
    let disk = guest.root().join("dev/vdc");
    fs::remove_file(&disk).unwrap();
    std::os::unix::fs::symlink("/dev/full", &disk).unwrap();
    guest.send(&ToGuest::Collect);
    let text = guest.failed();
    assert!(text.contains("vdc for artifacts is full"), "{text}");
    fs::remove_dir_all(guest.root().join("sys/block/vdc")).unwrap();
    guest.send(&ToGuest::Collect);
    assert!(guest.failed().starts_with("no disk with the serial number \"crewboss-result\""));
}

#[test]
fn a_bootstrap_runs_the_script_and_reports_versions() {
    let mut guest = Guest::start(&[]);
    let toolchain = guest.root().join("usr/lib/crewboss/toolchain");
    write(&toolchain.join("version"), "9.9");
    write(
        &toolchain.join("bootstrap"),
        "echo installing $CREWBOSS_TOOLCHAIN\necho arm-gcc $(cat version) >> $CREWBOSS_VERSIONS\n",
    );
    let bootstrap = ToGuest::Bootstrap { toolchain: "arm".parse().unwrap() };
    guest.send(&bootstrap);
    let FromGuest::Bootstrapped { versions } = guest.next() else { panic!("not bootstrapped") };
    assert_eq!(guest.out, b"installing arm\n");
    assert_eq!(versions["arm-gcc"], "9.9");
    assert!(!versions["kernel"].is_empty());
    assert!(!toolchain.exists(), "its files are left");
    guest.send(&bootstrap);
    assert!(matches!(guest.next(), FromGuest::Bootstrapped { .. }), "a machine may need no script");
    write(&toolchain.join("bootstrap"), "exit 4\n");
    guest.send(&bootstrap);
    let text = guest.failed();
    assert!(text.ends_with("toolchain/bootstrap ended with exit code 4"), "{text}");
}

#[test]
fn a_service_says_what_the_task_needs_and_is_missed_when_it_ends() {
    let mut guest = Guest::start(&[]);
    let serve = ToGuest::Serve { name: "db".parse().unwrap() };
    guest.send(&serve);
    assert!(guest.failed().contains("etc/crewboss/service cannot be started"));
    let service = guest.root().join("etc/crewboss/service");
    let text = format!(
        "#!/bin/sh\nexport {MARK}='{}'\necho URL=http://$CREWBOSS_MACHINE/\necho ready\nread x < fifo\n",
        guest.mark
    );
    fs::create_dir_all(service.parent().unwrap()).unwrap();
    // By a child: while another thread starts a program, that has open what this process writes,
    // and nobody can run it.
    let script = "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\"";
    support::run(Command::new("sh").args(["-c", script]).arg(&service).arg(text));
    let fifo = guest.root().join("crewboss/fifo");
    support::run(Command::new("mkfifo").arg(&fifo));
    guest.send(&serve);
    let FromGuest::Environment { variables } = guest.next() else { panic!("no environment") };
    assert_eq!(variables, BTreeMap::from([("URL".to_owned(), "http://db/".to_owned())]));
    guest.alive(1);
    fs::write(&fifo, "end\n").unwrap();
    assert!(guest.failed().ends_with("etc/crewboss/service ended with exit code 0"));
}

#[test]
fn an_identity_is_taken_on_and_read_back() {
    let mut guest = Guest::start(&[]);
    let identity = Identity {
        clock_ms: 1,
        seed: "ab".repeat(32),
        machine_id: "0".repeat(32),
        host_name: "guest-1".parse().unwrap(),
        mac: None,
    };
    guest.send(&ToGuest::Renew(identity.clone()));
    let FromGuest::Renewed(renewed) = guest.next() else { panic!("not renewed") };
    assert_eq!(renewed.machine_id, identity.machine_id);
    assert_ne!(renewed.seed, identity.seed);
    assert_eq!(text(&guest.root().join("etc/machine-id")), format!("{}\n", identity.machine_id));
}

#[test]
fn as_the_first_process_it_reaps_orphans_and_ends_when_it_is_told_to() {
    let mut guest = Guest::start(&["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    guest.task(
        &[("orphans", "for i in 1 2 3 4; do (setsid sleep 0.01 &) ; done; ps -o pid= -o stat= -A")],
        &[],
    );
    for _ in 0..3 {
        guest.out.clear();
        guest.stage("orphans");
        assert_eq!(guest.ended().0, StageExit::Code(0), "{}", String::from_utf8_lossy(&guest.err));
        let seen = String::from_utf8_lossy(&guest.out).into_owned();
        assert!(seen.lines().any(|line| line.trim().starts_with("1 ")), "it is not the first: {seen}");
    }
    guest.send(&ToGuest::PowerOff);
    let status = wait_for("the agent to end", SOON, || guest.agent.try_wait().unwrap());
    assert!(status.success(), "{status}");
}
