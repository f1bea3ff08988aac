use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::crew::{Host, Ssh, SshConfig, Timing, Transport};

/// Stands for our binary: understands what the real one does as far as shipping needs it.
const FAKE: &str = r#"#!/bin/sh
case "$1" in
verify) [ "$(sha256sum <"$0" | cut -d' ' -f1)" = "$2" ] || { echo "it is another"; exit 1; } ;;
silent) exit 3 ;;
listens) cat >/dev/null ;;
*) read -r line; echo "a word"; echo "@cb {\"args\":\"$*\",\"heard\":\"$line\"}"; cat ;;
esac
"#;

fn host(transport: Transport) -> Host {
    Host {
        name: "lab1".parse().unwrap(),
        transport,
        work: None,
        slots: None,
        machines: None,
        accel: Default::default(),
        tags: BTreeSet::new(),
        toolchains: BTreeMap::new(),
    }
}

/// A host with a home of its own, reached by a command. Its login shell first does what `before`
/// says.
struct Lab {
    home: TempDir,
    before: &'static str,
}

impl Lab {
    fn new(before: &'static str) -> Self {
        Self { home: tempfile::tempdir().unwrap(), before }
    }

    async fn link(&self) -> Link {
        self.link_within(&Timing::default()).await
    }

    async fn link_within(&self, timing: &Timing) -> Link {
        let shell = format!("{}\nexec \"$@\"", self.before);
        let home = format!("HOME={}", self.home.path().display());
        let words = ["env", "-u", "XDG_CACHE_HOME", &home, "sh", "-c", &shell, "login"];
        let words = words.iter().map(|&word| word.to_owned()).collect();
        let connector = Connector::new(&Ssh::default(), timing).unwrap();
        connector.connect(&host(Transport::Command(words))).await.unwrap()
    }

    fn binary(&self) -> OwnBinary {
        let path = self.home.path().join("own");
        fs::write(&path, FAKE).unwrap();
        OwnBinary::of(&path).unwrap()
    }

    fn stored(&self) -> std::path::PathBuf {
        self.home.path().join(".cache/crewboss/bin").join(self.binary().sha256()).join("crewboss")
    }
}

async fn first_line(channel: &mut Channel) -> String {
    let mut text = String::new();
    while !text.lines().any(|line| line.starts_with("@cb {") && text.ends_with('\n')) {
        let mut piece = [0; 4096];
        let count = channel.stdout.read(&mut piece).await.unwrap();
        assert!(count > 0, "ended after {text:?}");
        text.push_str(std::str::from_utf8(&piece[..count]).unwrap());
    }
    text
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), work).await.unwrap() })
}

#[test]
fn a_local_channel_carries_both_ways_and_tells_its_end() {
    run(async {
        let connector = Connector::new(&Ssh::default(), &Timing::default()).unwrap();
        let link = connector.connect(&host(Transport::Local)).await.unwrap();
        let mut channel = link.open("read -r a; echo \"<$a>\"; echo bad >&2; exit 7").await.unwrap();
        channel.stdin.write_all(b"hello\n").await.unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        channel.stdout.read_to_string(&mut out).await.unwrap();
        channel.stderr.read_to_string(&mut err).await.unwrap();
        assert_eq!((out.as_str(), err.as_str()), ("<hello>\n", "bad\n"));
        assert_eq!(channel.wait().await, Exit::Code(7));
        assert_eq!(channel.wait().await, Exit::Code(7));
        let mut killed = link.open("kill -9 $$").await.unwrap();
        assert_eq!(killed.wait().await, Exit::Signal(9));
        let nothing =
            connector.connect(&host(Transport::Command(vec!["/nowhere/x".to_owned()]))).await.unwrap();
        assert!(matches!(nothing.open("true").await, Err(LinkError::Start { .. })));
    });
}

#[test]
fn what_ssh_has_started_for_a_login_that_is_given_up_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let said = dir.path().join("said");
    let script = |name: &str, end: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("sleep 1000 >/dev/null & echo $! >>{}; {end}", said.display())).unwrap();
        format!("sh {}", path.display())
    };
    let (stays, fails) = (script("stays", "wait"), script("fails", "exit 3"));
    let runs = || {
        let text = fs::read_to_string(&said).unwrap_or_default();
        let lives = |pid: &&str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
        };
        (text.lines().count(), text.lines().filter(lives).count())
    };
    for (line, ends) in [
        (format!("Match host lab1 exec \"{stays}\"\n"), false),
        (format!("Host *\nProxyCommand {stays}\n"), false),
        (format!("Host *\nProxyCommand {fails}\n"), true),
    ] {
        fs::write(&said, "").unwrap();
        run(async {
            let config = SshConfig { path: dir.path().join("config"), content: line.into_bytes() };
            let connect_timeout = Duration::from_secs(60);
            let ssh = Ssh { config: Some(config), connect_timeout, ..Ssh::default() };
            let connector = Connector::new(&ssh, &Timing::default()).unwrap();
            let target = host(Transport::Ssh("lab1".to_owned()));
            let login = connector.connect(&target);
            let begun = async {
                while runs().0 == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            if ends {
                login.await.unwrap_err();
            } else {
                tokio::select! {
                    ended = login => panic!("{ended:?}"),
                    () = begun => {}
                }
            }
            while runs().1 > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
}

#[test]
fn the_binary_is_brought_once_and_then_found() {
    run(async {
        let lab = Lab::new("echo Welcome; echo 'to the lab'");
        let (link, binary) = (lab.link().await, lab.binary());
        let role = Role::new(&["worker"], Some("it's /a dir"));
        for _ in 0..2 {
            let mut channel = start(&link, &binary, role, b"hello\n").await.unwrap().channel;
            let text = first_line(&mut channel).await;
            assert!(text.starts_with("Welcome\nto the lab\n"), "{text}");
            assert!(
                text.ends_with("a word\n@cb {\"args\":\"worker --work it's /a dir\",\"heard\":\"hello\"}\n"),
                "{text}"
            );
            let time = fs::metadata(lab.stored()).unwrap().modified().unwrap();
            channel.stdin.write_all(b"more").await.unwrap();
            let (stdin, mut stdout, _guard) = channel.into_parts();
            drop(stdin);
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "more");
            assert_eq!(fs::metadata(lab.stored()).unwrap().modified().unwrap(), time);
        }
        let left = fs::read_dir(lab.home.path().join(".cache/crewboss/bin")).unwrap().count();
        assert_eq!(left, 1, "a temporary file stayed");
    });
}

#[test]
fn old_builds_are_pruned() {
    run(async {
        let lab = Lab::new("");
        let bin = lab.home.path().join(".cache/crewboss/bin");
        for number in 0..8 {
            fs::create_dir_all(bin.join(number.to_string())).unwrap();
        }
        let channel = start(&lab.link().await, &lab.binary(), Role::new(&["worker"], None), b"x\n").await;
        drop(channel.unwrap());
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while fs::read_dir(&bin).unwrap().count() > 4 {
            assert!(std::time::Instant::now() < deadline, "nothing was pruned");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(lab.stored().exists());
    });
}

#[test]
fn what_keeps_a_worker_from_starting_is_told() {
    run(async {
        let role = Role::new(&["worker"], None);
        let broken = Lab::new("echo my .bashrc is broken; exit 5");
        let error = start(&broken.link().await, &broken.binary(), role, b"").await.unwrap_err();
        match &error {
            ShipError::Shell { exit: Exit::Code(5), text, .. } => assert_eq!(text, "my .bashrc is broken"),
            other => panic!("{other:?}"),
        }
        assert!(error.hint().is_some());

        let foreign = Lab::new(
            "uname() { echo Plan9 mips; }; case \"$*\" in *absent*) echo '@cb-ship absent Plan9 mips'; exit;; esac",
        );
        let error = start(&foreign.link().await, &foreign.binary(), role, b"").await.unwrap_err();
        assert!(matches!(&error, ShipError::Platform { theirs, .. } if theirs == "Plan9 mips"), "{error:?}");

        let ends = Lab::new("");
        let role = Role::new(&["silent"], None);
        let error = start(&ends.link().await, &ends.binary(), role, b"").await.unwrap_err();
        assert!(matches!(&error, ShipError::NotExecutable { exit: Exit::Code(3), .. }), "{error:?}");
    });
}

#[test]
fn a_way_without_input_is_told_as_such_whether_the_binary_is_there_or_not() {
    run(async {
        let mut lab = Lab::new("echo from the pod; exec </dev/null");
        let role = Role::new(&["listens"], None);
        let mut told = Vec::new();
        told.push(start(&lab.link().await, &lab.binary(), role, b"hello\n").await.unwrap_err());
        lab.before = "";
        let worker = Role::new(&["worker"], None);
        drop(start(&lab.link().await, &lab.binary(), worker, b"hello\n").await.unwrap());
        lab.before = "echo from the pod; exec </dev/null";
        told.push(start(&lab.link().await, &lab.binary(), role, b"hello\n").await.unwrap_err());
        for error in told {
            let text = "host lab1: nothing of what is sent there arrives: its standard input is not passed on; it printed \
                        \"from the pod\"";
            assert_eq!(error.to_string(), text);
            assert!(error.hint().unwrap().contains("docker exec -i"));
        }
    });
}

#[test]
fn a_slow_way_names_its_limit() {
    run(async {
        let lab = Lab::new("echo waking up; exec sleep 60");
        let timing = Timing { shell: Duration::from_secs(2), ..Timing::default() };
        let role = Role::new(&["worker"], None);
        let error = start(&lab.link_within(&timing).await, &lab.binary(), role, b"").await.unwrap_err();
        let text = "host lab1: no answer from the shell there for 2 s (`shell` in [limits] of crew.toml); it printed \
                    \"waking up\"";
        assert_eq!(error.to_string(), text);
        assert!(error.hint().unwrap().starts_with("if it is only slow, give it more time"));

        // There is always more to read.
        let lab = Lab::new("exec yes");
        let error = start(&lab.link_within(&timing).await, &lab.binary(), role, b"").await.unwrap_err();
        assert!(error.to_string().contains("no answer from the shell there for 2 s"), "{error}");

        // What comes after the shell has limits of its own: a worker says soon that it is there,
        // other roles when all is done.
        let lab = Lab::new("case \"$*\" in *exec*) echo '@cb-ship run'; exec sleep 60;; esac");
        let timing =
            Timing { ready: Duration::from_secs(1), standstill: Duration::from_secs(2), ..Timing::default() };
        for (works_first, limit) in [(false, "1 s (`ready`"), (true, "2 s (`standstill`")] {
            let role = Role { works_first, ..role };
            let error = start(&lab.link_within(&timing).await, &lab.binary(), role, b"").await.unwrap_err();
            let text = format!("host lab1: no answer from the worker for {limit} in [limits] of crew.toml)");
            assert!(error.to_string().starts_with(&text), "{error}");
            assert!(error.hint().unwrap().starts_with("if it is only slow, give it more time"));
        }
    });
}

/// A host whose answers to the upload are all lies.
fn lies(answers: &str) -> ShipError {
    let before = format!(
        "case $* in *'@cb-ship send'*) echo >>$HOME/asked; {answers}; exit ;; \
         *) echo '@cb-ship absent '\"$(uname -s -m)\"; exit ;; esac"
    );
    let lab = Lab::new(Box::leak(before.into_boxed_str()));
    let error = run(async {
        let role = Role::new(&["worker"], None);
        start(&lab.link().await, &lab.binary(), role, b"").await.unwrap_err()
    });
    let asked = fs::read_to_string(lab.home.path().join("asked")).unwrap();
    assert!(asked.lines().count() <= 3, "{asked:?}");
    error
}

#[test]
fn a_host_that_has_the_upload_begun_again_and_again_is_given_up() {
    for answers in [
        "echo '@cb-ship send 1 /x'; echo '@cb-ship skip 0 full x'",
        "echo '@cb-ship send 1 /x'; echo '@cb-ship skip 1 full x'",
        "echo '@cb-ship send 4 /x'; echo '@cb-ship skip 4 full x'",
        "while :; do echo '@cb-ship skip 1 create x'; done",
        "echo '@cb-ship skip 3 create x'; echo '@cb-ship skip 2 create x'; cat",
    ] {
        let error = lies(answers);
        assert!(matches!(&error, ShipError::Damaged { text, .. } if text.contains("out of turn")), "{error}");
    }
    let long =
        "echo '@cb-ship skip 1 create '$(head -c 100000 /dev/zero | tr '\\0' x); echo '@cb-ship nowhere'";
    let ShipError::NoPlace { tried, .. } = lies(long) else { panic!() };
    assert_eq!(tried.len(), 400);
}

#[test]
fn an_upload_that_moves_has_an_end_all_the_same() {
    let lab = Lab::new(
        "case $* in *'@cb-ship send'*) echo '@cb-ship send 1 /x'; while :; do echo noise; head -c 1 >/dev/null; done ;; \
         *) echo '@cb-ship absent '\"$(uname -s -m)\"; exit ;; esac",
    );
    let second = Duration::from_secs(1);
    let timing = Timing { shell: second, stall: second, ..Timing::default() };
    let own = lab.home.path().join("own");
    // More than all pipes on the way hold.
    fs::write(&own, vec![b'#'; 4 << 20]).unwrap();
    let binary = OwnBinary::of(&own).unwrap();
    let role = Role::new(&["worker"], None);
    let error = run(async { start(&lab.link_within(&timing).await, &binary, role, b"").await.unwrap_err() });
    assert!(matches!(error, ShipError::Silent { .. } | ShipError::Endless { .. }), "{error}");
}

#[test]
fn a_host_without_proc_is_told_as_such_whether_the_binary_is_there_or_not() {
    run(async {
        let lab = Lab::new("");
        let role = Role::new(&["worker"], None);
        let link = async |before: &str| {
            let home = format!("HOME={}", lab.home.path().display());
            let words = ["env", "-u", "XDG_CACHE_HOME", &home, "unshare", "-m", "sh", "-c", before, "login"];
            let words = words.iter().map(|&word| word.to_owned()).collect();
            let connector = Connector::new(&Ssh::default(), &Timing::default()).unwrap();
            connector.connect(&host(Transport::Command(words))).await.unwrap()
        };
        let without = "umount -l /proc && exec \"$@\"";
        for _ in 0..2 {
            let error = start(&link(without).await, &lab.binary(), role, b"x\n").await.unwrap_err();
            assert!(matches!(error, ShipError::NoProc { .. }), "{error}");
            drop(start(&link("exec \"$@\"").await, &lab.binary(), role, b"x\n").await.unwrap());
        }
    });
}

#[test]
fn the_last_line_of_ssh_is_seen_whatever_its_configuration_says() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let swapped = dir.path().join("swapped");
        for level in ["QUIET", "DEBUG3", "INFO"] {
            let content = format!("Host nobody\nHostName 127.0.0.1\nPort 1\nLogLevel {level}\n").into_bytes();
            // What has its name by now is another's.
            let path = dir.path().join("config");
            fs::write(&path, format!("Host *\nProxyCommand touch {}\n", swapped.display())).unwrap();
            let ssh = Ssh { config: Some(SshConfig { path, content }), ..Ssh::default() };
            let connector = Connector::new(&ssh, &Timing::default()).unwrap();
            let error = connector.connect(&host(Transport::Ssh("nobody".to_owned()))).await.unwrap_err();
            let text = "host lab1: ssh to nobody failed: the connection was refused (ssh: connect to host 127.0.0.1 port 1: \
                        Connection refused)";
            assert_eq!(error.to_string(), text, "{level}");
        }
        assert!(!swapped.exists());
    });
}

#[test]
fn a_damaged_upload_is_not_kept() {
    run(async {
        let lab = Lab::new("");
        let binary = lab.binary();
        // It changes between the hashing and the sending.
        fs::write(lab.home.path().join("own"), FAKE.replace("silent", "SILENT")).unwrap();
        let role = Role::new(&["worker"], None);
        let error = start(&lab.link().await, &binary, role, b"").await.unwrap_err();
        assert!(matches!(&error, ShipError::Damaged { text, .. } if text == "it is another"), "{error:?}");
        assert_eq!(fs::read_dir(lab.home.path().join(".cache/crewboss/bin")).unwrap().count(), 0);
    });
}

#[test]
fn a_destination_that_reads_as_an_option_is_refused() {
    run(async {
        let connector = Connector::new(&Ssh::default(), &Timing::default()).unwrap();
        for destination in ["", "-oProxyCommand=x", "a\nb"] {
            let result = connector.connect(&host(Transport::Ssh(destination.to_owned()))).await;
            assert!(matches!(result, Err(LinkError::Destination { .. })), "{destination:?}");
        }
    });
}

/// Whether a process is there and not about to go.
fn lives(pid: &str) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

#[test]
fn what_a_command_has_started_ends_with_it() {
    // As a wrapper that opens a tunnel, and one that does not pass signals on.
    for (shell, closed) in
        [("sleep 300 & echo $! >pid; exec \"$@\"", false), ("\"$@\" & echo $! >pid; wait", true)]
    {
        let place = tempfile::tempdir().unwrap();
        let shell = format!("cd '{}'; {shell}", place.path().display());
        let words = ["sh", "-c", &shell, "login"].map(str::to_owned).to_vec();
        let started = || fs::read_to_string(place.path().join("pid")).ok().filter(|pid| pid.ends_with('\n'));
        run(async {
            let connector = Connector::new(&Ssh::default(), &Timing::default()).unwrap();
            let link = connector.connect(&host(Transport::Command(words))).await.unwrap();
            let mut channel = link.open(if closed { "exec sleep 300" } else { "exit 7" }).await.unwrap();
            if closed {
                while started().is_none() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                drop(channel);
            } else {
                assert_eq!(channel.wait().await, Exit::Code(7));
            }
            let pid = started().unwrap();
            while lives(pid.trim()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
}
