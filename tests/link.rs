//! Channels through the real ssh.

mod support;

use std::os::fd::AsFd;

use crewboss_boss::crew::{Host, Ssh, Timing, Transport};
use crewboss_boss::link::{Connector, Exit, Link};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use support::lab::Lab;
use tokio::io::AsyncReadExt;

/// A link to a host of a lab, and what is to be done with it, where the lab's hosts can be reached.
fn with_link<T: Send>(lab: &Lab, host: &str, work: impl AsyncFnOnce(Link) -> T + Send) -> T {
    let ssh = Ssh { config: Some(lab.dir().join("ssh_config")), ..Ssh::default() };
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
        // ssh sends the exit code of the shell before what its child prints, as it may with the last words of any process.
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
