//! Channels through the real ssh.

mod support;

use std::os::fd::AsFd;
use std::path::PathBuf;

use crewboss_boss::crew::{Host, Ssh, SshConfig, Timing, Transport};
use crewboss_boss::link::{Connector, Exit, Link};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use support::lab::{Lab, User};
use support::scene::Scene;
use support::{read, write};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A link to a host of a lab, and what is to be done with it, where the lab's hosts can be reached.
fn with_link<T: Send>(lab: &Lab, host: &str, work: impl AsyncFnOnce(Link) -> T + Send) -> T {
    with_link_by(lab.dir().join("ssh_config"), lab, host, work)
}

/// The same with another configuration of ssh.
fn with_link_by<T: Send>(
    config: PathBuf,
    lab: &Lab,
    host: &str,
    work: impl AsyncFnOnce(Link) -> T + Send,
) -> T {
    let content = read(&config);
    let ssh =
        Ssh { config: Some(SshConfig { path: config, content: content.into_bytes() }), ..Ssh::default() };
    let host = Host {
        name: host.parse().expect("a host's name"),
        transport: Transport::Ssh(format!("root@{host}")),
        work: None,
        slots: None,
        machines: None,
        accel: Default::default(),
        tags: Default::default(),
        toolchains: Default::default(),
    };
    let linked = async || {
        let connector = Connector::new(&ssh, &Timing::default()).expect("a connector");
        work(connector.connect(&host).await.expect("a link")).await
    };
    let inside = move || {
        let network = std::fs::File::open(lab.network()).expect("the lab's network");
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("to enter it");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(linked())
    };
    // A thread of its own, since it stays in that network.
    std::thread::scope(|scope| scope.spawn(inside).join().expect("the work's end"))
}

/// Whether a shell line on the host is successful.
async fn holds(link: &Link, line: &str) -> bool {
    let mut channel = link.open(line).await.expect("a channel");
    channel.stdout.read_to_end(&mut Vec::new()).await.expect("its output");
    channel.wait().await == Exit::Code(0)
}

#[test]
fn what_is_printed_after_the_news_of_the_end_is_not_lost() {
    let lab = Lab::shared();
    let (text, exit) = with_link(&lab, "host1", async |link| {
        // ssh sends the exit code of the shell before what its child prints, as it may with the
        // last words of any process.
        let script =
            "echo $$ >/tmp/shell; (until rm /tmp/go; do sleep 0.01; done; echo late) 2>/dev/null & exit 3";
        let mut channel = link.open(script).await.expect("a channel");
        while !holds(&link, "read -r pid </tmp/shell && ! kill -0 $pid").await {}
        // What comes after the exit code on the same connection has come, and so has the code.
        assert!(holds(&link, ": >/tmp/go").await);
        let mut text = String::new();
        channel.stdout.read_to_string(&mut text).await.expect("its output");
        (text, channel.wait().await)
    });
    assert_eq!((text.as_str(), exit), ("late\n", Exit::Code(3)));
    lab.expect_clean(&["host1"]);
}

#[test]
fn what_a_person_has_configured_for_sessions_is_no_part_of_ours() {
    let lab = Lab::shared();
    let scene = Scene::new("");
    let config = scene.path("config");
    let lines = "RemoteCommand echo theirs\nRequestTTY force\nLocalCommand echo local\nPermitLocalCommand yes\n\
                 SessionType none\nStdinNull yes\nForkAfterAuthentication yes\nLogLevel QUIET\nLocalForward 127.0.0.1:1 h:1\n";
    write(&config, format!("Host *\n{lines}Include {}\n", lab.dir().join("ssh_config").display()));
    let said = with_link_by(config, &lab, "host1", async |link| {
        assert!(holds(&link, "true").await);
        let mut channel = link.open("cat; echo ours; echo wrong >&2; exit 7").await.expect("a channel");
        channel.stdin.write_all(b"typed\n").await.expect("somebody who reads");
        let (stdin, mut stdout, mut guard) = channel.into_parts();
        drop(stdin);
        let (mut out, mut err) = (String::new(), String::new());
        stdout.read_to_string(&mut out).await.expect("its output");
        guard.stderr.take().expect("its errors").read_to_string(&mut err).await.expect("its errors");
        (guard.wait().await, out, err)
    });
    assert_eq!(said, (Exit::Code(7), "typed\nours\n".to_owned(), "wrong\n".to_owned()));
    lab.expect_clean(&["host1"]);
}

#[test]
fn a_login_that_allows_one_session_is_enough() {
    let lab = Lab::up(&["1"]);
    lab.on("host1", "echo MaxSessions 1 >>/run/lab/sshd_config");
    lab.lab("kill-sshd", &["host1"]);
    lab.lab("start-sshd", &["host1"]);
    let line = "seq 1 30000; echo x >\"$CREWBOSS_OUT/x\"";
    let targets = (1..=6).map(|n| format!("[target.t{n}]\nstages.build = '{line}'\nartifacts = [\"x\"]\n"));
    let scene = Scene::with_commits(&targets.collect::<String>(), 2);
    let crew = scene.crew(&lab, User::Root, &[("host1", "slots = 2")]);
    let boss = scene.build(&lab, &crew).args(&["--commits", "HEAD~1..HEAD", "-v"]);
    let ended = boss.run().expect_code(0).expect_tasks(6, "success");
    assert!(ended.of_kind("task_retried").is_empty(), "{ended:#?}");
    for (name, path) in &ended.results.tasks {
        assert_eq!(read(&path.join("artifacts/x")), "x\n", "{name}");
    }
    lab.expect_clean(&["host1"]);
}
