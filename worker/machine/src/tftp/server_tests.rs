//! A server over the loopback device: with busybox, and with clients that do not behave.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use crewboss_host::testing::Mount;

use super::event::{Abort, Event, Refusal};
use super::lab::{LONG, Lab, Process, error, names, noise, turn};
use super::packet::{Options, Packet, Way};
use super::server::{Limits, Offer};

#[test]
fn busybox_gets_and_puts_files_of_every_size() {
    for size in [0, 1, 511, 512, 513, 1024, 65464, 65465, 3 * 65464, 700_001] {
        let content = noise(size);
        let mut lab = Lab::new(&[("source.tar", &content)], &[("log*", 1 << 20)]);
        for options in [&[][..], &["-b", "1428"], &["-b", "65464"]] {
            let _old = fs::remove_file(lab.path("log"));
            assert!(lab.busybox(&[options, &["-g", "-r", "source.tar", "-l", "got"]].concat()), "{size}");
            assert!(fs::read(lab.path("got")).unwrap() == content, "{size} bytes with {options:?}");
            assert!(lab.busybox(&[options, &["-p", "-r", "log", "-l", "got"]].concat()), "{size}");
            assert!(fs::read(lab.path("log")).unwrap() == content, "{size} bytes with {options:?}");
        }
        let bytes = size as u64;
        lab.until(|lab| lab.server.running() == 0);
        assert!(lab.events.contains(&Event::GetDone { name: "source.tar".to_owned(), bytes }));
        assert!(lab.events.contains(&Event::PutDone { name: "log".to_owned(), bytes }));
        assert_eq!(lab.server.counts().bytes, 6 * bytes);
        assert_eq!(lab.names(), ["got", "log"]);
    }
}

#[test]
fn block_numbers_start_again_at_zero_in_large_files() {
    let content = noise(512 * 66_000 + 5);
    let mut lab = Lab::new(&[], &[("log", 1 << 30)]);
    fs::write(lab.path("file"), &content).unwrap();
    lab.server.offer("big", Offer::File(lab.path("file")));
    assert!(lab.busybox(&["-g", "-r", "big", "-l", "got"]));
    assert!(fs::read(lab.path("got")).unwrap() == content);
    assert!(lab.busybox(&["-p", "-r", "log", "-l", "got"]));
    assert!(fs::read(lab.path("log")).unwrap() == content);
}

#[test]
fn eight_clients_are_served_at_once() {
    let content = noise(3_000_000);
    let mut lab = Lab::new(&[("source.tar", &content)], &[]);
    let names: Vec<String> = (0..8).map(|index| format!("got{index}")).collect();
    let start = |name: &String| {
        Process::busybox(lab.server.port(), &["-g", "-r", "source.tar", "-l", name], lab.directory.path())
    };
    let mut clients: Vec<_> = names.iter().map(start).collect();
    lab.until(|_| clients.iter_mut().all(|client| client.0.try_wait().unwrap().is_some()));
    for name in names {
        assert!(fs::read(lab.path(&name)).unwrap() == content, "{name}");
    }
}

#[test]
fn whatever_is_not_a_plain_known_name_is_refused_and_told() {
    let mut lab = Lab::new(&[("task", b"x")], &[("log", 10)]);
    let cases = [
        (Way::Get, "../task", 2, Refusal::Upwards),
        (Way::Put, "../../log", 2, Refusal::Upwards),
        (Way::Put, "a\\..\\log", 2, Refusal::Upwards),
        (Way::Get, "..", 2, Refusal::Upwards),
        (Way::Get, "/task", 2, Refusal::Absolute),
        (Way::Put, "/etc/passwd", 2, Refusal::Absolute),
        (Way::Get, "c:task", 2, Refusal::Absolute),
        (Way::Get, "./task", 2, Refusal::Directory),
        (Way::Get, "task/", 2, Refusal::Directory),
        (Way::Get, ".", 1, Refusal::Unknown),
        (Way::Get, "", 1, Refusal::Unknown),
        (Way::Get, "Task", 1, Refusal::Unknown),
        (Way::Put, "other", 1, Refusal::Unknown),
        (Way::Put, "task", 2, Refusal::ReadOnly),
        (Way::Get, "log", 2, Refusal::WriteOnly),
    ];
    for (way, name, code, why) in cases {
        assert_eq!(lab.refused(way, name), (code, why.to_string()), "{name:?}");
        lab.until(|lab| !lab.events.is_empty());
        let what = name.escape_debug().to_string();
        assert_eq!(lab.events.drain(..).next(), Some(Event::Refused { what, why, untold: 0 }));
    }
    assert_eq!(lab.server.counts().refused, 15);
    assert!(lab.names().is_empty());
}

#[test]
fn what_is_no_request_starts_nothing() {
    let mut lab = Lab::new(&[("task", b"x")], &[]);
    let client = lab.client();
    let ask = |bytes: &[u8]| client.socket.send_to(bytes, client.server).unwrap();
    ask(b"\0\x01task\0netascii\0");
    assert_eq!(error(&lab.answer(&client).0).0, 4);
    ask(b"\0\x01task");
    assert_eq!(error(&lab.answer(&client).0).0, 4);
    ask(&[&b"\0\x01"[..], &[b'a'; 600], b"\0octet\0"].concat());
    assert_eq!(error(&lab.answer(&client).0).0, 4);
    // These are never answered, so they are told before the answer to what comes behind them.
    ask(b"\0\x03\0\x01data");
    ask(b"\0\x05\0\0no\0");
    ask(b"\0\x01\xff\x1b\0octet\0");
    assert_eq!(error(&lab.answer(&client).0).0, 1);
    assert_eq!(lab.server.counts().refused, 6);
    lab.until(|lab| lab.events.len() == 6);
    assert!(
        matches!(&lab.events[5], Event::Refused { what, .. } if what == "\u{fffd}\\u{1b}"),
        "{:?}",
        lab.events
    );
}

#[test]
fn nothing_is_taken_twice_or_after_the_result() {
    let mut lab = Lab::new(&[], &[("log*", 100), ("err", 100), ("result", 100)]);
    fs::write(lab.path("file"), b"text").unwrap();
    for name in ["log", "log", "err"] {
        assert!(lab.busybox(&["-p", "-r", name, "-l", "file"]), "{name}");
    }
    assert_eq!(lab.refused(Way::Put, "err"), (6, Refusal::Complete.to_string()));
    // One more is under way when the result comes.
    let slow = lab.client();
    slow.ask(Way::Put, "log", Options::default());
    let (_, port) = lab.answer(&slow);
    assert!(lab.busybox(&["-p", "-r", "result", "-l", "file"]));
    assert_eq!(error(&lab.answer(&slow).0), (2, Abort::Closed.to_string()));
    slow.send(port, &Packet::Data { block: 1, data: b"late" });
    assert_eq!(lab.refused(Way::Put, "log"), (2, Refusal::Closed.to_string()));
    assert_eq!(lab.refused(Way::Put, "result"), (2, Refusal::Closed.to_string()));
    assert_eq!(lab.aborted(), [&Abort::Closed]);
    assert_eq!(lab.names(), ["err", "file", "log", "result"]);
    assert_eq!(fs::read(lab.path("log")).unwrap(), b"text");
}

#[test]
fn what_is_too_large_is_refused_at_once_or_aborted() {
    let mut lab = Lab::new(&[], &[("log*", 1000)]);
    fs::write(lab.path("exact"), noise(1000)).unwrap();
    fs::write(lab.path("over"), noise(1001)).unwrap();
    assert!(lab.busybox(&["-p", "-r", "log", "-l", "exact"]));
    // busybox announces the size.
    assert!(!lab.busybox(&["-p", "-r", "log", "-l", "over"]));
    let why = Refusal::TooLarge { bytes: 1001, max: 1000 };
    lab.until(|lab| {
        lab.events.contains(&Event::Refused { what: "log".to_owned(), why: why.clone(), untold: 0 })
    });
    for announced in [None, Some(1000)] {
        lab.events.clear();
        let last = lab.put("log", announced, 512, &noise(1001));
        assert_eq!(error(&last), (3, Abort::TooLarge { max: 1000 }.to_string()));
        lab.until(|lab| !lab.aborted().is_empty());
        assert_eq!(lab.aborted(), [&Abort::TooLarge { max: 1000 }]);
    }
    assert!(fs::read(lab.path("log")).unwrap() == noise(1000), "the old one stays");
    assert_eq!(lab.names(), ["exact", "log", "over"]);
}

#[test]
fn a_full_disk_ends_a_transfer_and_leaves_nothing() {
    let disk = Mount::tmpfs(4);
    let limits = Limits { reserve: 1 << 20, ..Limits::default() };
    let mut lab = Lab::with(&[], &[("log", 1 << 30), ("result", 1 << 19)], limits, Some(disk.path()));
    let client = lab.client();
    client.ask(Way::Put, "log", Options { tsize: Some(7 << 19), ..Options::default() });
    let (code, message) = error(&lab.answer(&client).0);
    assert!(code == 3 && message.contains("no room"), "{message}");
    // Without an announcement it is found out on the way.
    let last = lab.put("log", None, 65464, &noise(5 << 20));
    assert_eq!(error(&last), (3, Abort::NoRoom.to_string()));
    lab.until(|lab| !lab.aborted().is_empty());
    assert_eq!(lab.aborted(), [&Abort::NoRoom]);
    assert!(names(&disk.path()).is_empty());
    // What is small has the room that is kept free.
    fs::write(disk.path().join("filler"), noise(7 << 19)).unwrap();
    client.ask(Way::Put, "log", Options::default());
    assert_eq!(error(&lab.answer(&client).0).0, 3);
    lab.put("result", None, 65464, &noise(1 << 18));
    assert!(fs::read(disk.path().join("result")).unwrap() == noise(1 << 18));
}

#[test]
fn an_error_of_the_guest_ends_its_transfer() {
    let mut lab = Lab::new(&[("task", &[7; 2000])], &[("log", 2000)]);
    for (way, name) in [(Way::Get, "task"), (Way::Put, "log")] {
        let client = lab.client();
        client.ask(way, name, Options::default());
        let (_, port) = lab.answer(&client);
        if way == Way::Put {
            assert_eq!(lab.names().len(), 1, "the temporary file");
        }
        client.send(port, &Packet::Error { code: 3, message: b"disk\nfull" });
        lab.until(|lab| lab.server.running() == 0);
        let why = Abort::Guest { code: 3, message: "disk\\nfull".to_owned() };
        lab.until(|lab| lab.events.contains(&Event::Aborted { name: name.to_owned(), why: why.clone() }));
    }
    assert!(lab.names().is_empty());
}

#[test]
fn packets_from_elsewhere_are_dropped_and_told() {
    let mut lab = Lab::new(&[("task", b"x")], &[]);
    let mut other = Process(Command::new("sleep").arg("1000").spawn().unwrap());
    lab.server.guest_is(other.0.id());
    let client = lab.client();
    client.ask(Way::Get, "task", Options::default());
    lab.until(|lab| lab.server.counts().foreign == 1);
    let from = client.socket.local_addr().unwrap();
    let told = &lab.events[0];
    assert!(
        matches!(told, Event::Foreign { from: seen, why, .. } if SocketAddr::from(*seen) == from && why.contains("not the guest's")),
        "{told:?}"
    );
    other.0.kill().unwrap();
    other.0.wait().unwrap();
    client.ask(Way::Get, "task", Options::default());
    lab.until(|lab| lab.server.counts().foreign == 2);
    assert!(client.take().is_none(), "it was answered");
    // The same client is welcome if this process is the guest.
    lab.server.guest_is(std::process::id());
    client.ask(Way::Get, "task", Options::default());
    assert_eq!(lab.answer(&client).0, b"\0\x03\0\x01x");
}

#[test]
fn a_transfer_belongs_to_the_port_that_asked_for_it() {
    let mut lab = Lab::new(&[], &[("log", 2000)]);
    let (client, thief) = (lab.client(), lab.client());
    client.ask(Way::Put, "log", Options::default());
    let (_, port) = lab.answer(&client);
    thief.send(port, &Packet::Data { block: 1, data: b"stolen" });
    client.send(port, &Packet::Data { block: 1, data: b"mine" });
    assert_eq!(lab.answer(&client), (vec![0, 4, 0, 1], port));
    assert_eq!(fs::read(lab.path("log")).unwrap(), b"mine");
    assert!(thief.take().is_none());
    // The last acknowledgement may be lost: it is given again.
    client.send(port, &Packet::Data { block: 1, data: b"mine" });
    assert_eq!(lab.answer(&client), (vec![0, 4, 0, 1], port));
    assert_eq!(lab.server.counts().put, 1);
}

#[test]
fn a_request_that_comes_twice_starts_one_transfer() {
    let mut lab = Lab::new(&[("task", b"x")], &[]);
    let client = lab.client();
    client.ask(Way::Get, "task", Options::default());
    client.ask(Way::Get, "task", Options::default());
    let (_, port) = lab.answer(&client);
    assert_eq!(lab.server.running(), 1);
    client.send(port, &Packet::Ack { block: 1 });
    lab.until(|lab| lab.server.counts().got == 1);
    let name = "task".to_owned();
    lab.until(|lab| lab.events.len() >= 2);
    assert_eq!(lab.events, [Event::GetStarted { name: name.clone() }, Event::GetDone { name, bytes: 1 }]);
}

#[test]
fn who_starts_again_from_another_port_replaces_the_old_transfer() {
    let mut lab = Lab::new(&[], &[("log", 2000)]);
    let (first, second) = (lab.client(), lab.client());
    first.ask(Way::Put, "log", Options::default());
    lab.answer(&first);
    second.ask(Way::Put, "log", Options::default());
    let (_, port) = lab.answer(&second);
    assert_eq!(lab.names().len(), 1);
    second.send(port, &Packet::Data { block: 1, data: b"new" });
    lab.until(|lab| lab.server.counts().put == 1);
    assert_eq!(lab.aborted(), [&Abort::Again]);
    assert_eq!(fs::read(lab.path("log")).unwrap(), b"new");
}

#[test]
fn options_are_granted_within_limits() {
    let content = noise(9 * 1000 + 1);
    let mut lab = Lab::new(&[("source.tar", &content)], &[("log", 2000)]);
    let client = lab.client();
    let wanted = Options { blksize: Some(1000), tsize: Some(0), timeout: Some(200), windowsize: Some(9999) };
    client.ask(Way::Get, "source.tar", wanted);
    let (bytes, port) = lab.answer(&client);
    let granted = Options { tsize: Some(9001), timeout: None, windowsize: Some(64), ..wanted };
    assert_eq!(Packet::parse(&bytes), Ok(Packet::Oack { options: granted }));
    client.send(port, &Packet::Ack { block: 0 });
    for (index, block) in (1_u16..).zip(content.chunks(1000)) {
        let expected = Packet::Data { block: index, data: block };
        assert_eq!(Packet::parse(&lab.answer(&client).0), Ok(expected), "all in one window");
    }
    client.send(port, &Packet::Ack { block: 10 });
    lab.until(|lab| lab.server.counts().got == 1);

    client.ask(Way::Put, "log", Options { windowsize: Some(2), blksize: Some(65464), ..Options::default() });
    let (bytes, port) = lab.answer(&client);
    let granted = Options { windowsize: Some(1), blksize: Some(65464), ..Options::default() };
    assert_eq!(Packet::parse(&bytes), Ok(Packet::Oack { options: granted }), "two of this size are too much");
    client.send(port, &Packet::Data { block: 1, data: &[1; 2001] });
    assert_eq!(error(&lab.answer(&client).0).0, 3);
}

#[test]
fn a_silent_guest_is_given_up() {
    let mut limits = Limits { reserve: 0, ..Limits::default() };
    (limits.pace.first, limits.pace.patience) = (Duration::from_millis(20), Duration::from_secs(2));
    let mut lab = Lab::with(&[("task", b"x")], &[("log", 10)], limits, None);
    let (getter, putter) = (lab.client(), lab.client());
    getter.ask(Way::Get, "task", Options::default());
    putter.ask(Way::Put, "log", Options::default());
    lab.until(|lab| lab.server.counts().aborted == 2);
    let silent = Abort::Silent(limits.pace.patience);
    lab.until(|lab| lab.aborted().len() == 2);
    assert_eq!(lab.aborted(), [&silent, &silent]);
    for client in [getter, putter] {
        let answers: Vec<_> = std::iter::from_fn(|| client.take()).map(|(bytes, _)| bytes).collect();
        assert!(answers.len() >= 3 && answers[0] == answers[1], "asked again: {answers:?}");
        assert_eq!(error(&answers[answers.len() - 1]).0, 0);
    }
    assert!(lab.names().is_empty());
    assert_eq!(lab.server.deadline(), None);
}

#[test]
fn there_is_a_limit_of_transfers() {
    let limits = Limits { transfers: 2, reserve: 0, ..Limits::default() };
    let mut lab = Lab::with(&[("task", b"x")], &[], limits, None);
    let clients: Vec<_> = (0..2).map(|_| lab.client()).collect();
    let mut ports = Vec::new();
    for client in &clients {
        client.ask(Way::Get, "task", Options::default());
        ports.push(lab.answer(client).1);
    }
    assert_eq!(lab.refused(Way::Get, "task"), (0, Refusal::Busy(2).to_string()));
    clients[0].send(ports[0], &Packet::Ack { block: 1 });
    lab.until(|lab| lab.server.running() == 1);
    let next = lab.client();
    next.ask(Way::Get, "task", Options::default());
    assert_eq!(lab.answer(&next).0, b"\0\x03\0\x01x");
}

#[test]
fn a_guest_that_ends_in_the_middle_leaves_nothing() {
    let mut lab = Lab::new(&[("task", &[0; 2000])], &[("log", 2000)]);
    for (way, name) in [(Way::Get, "task"), (Way::Put, "log")] {
        let client = lab.client();
        client.ask(way, name, Options::default());
        let _started = lab.answer(&client);
        drop(client);
        lab.until(|lab| lab.server.running() == 0);
    }
    assert_eq!(lab.aborted(), [&Abort::PortClosed, &Abort::PortClosed]);
    assert!(lab.names().is_empty());
    let client = lab.client();
    client.ask(Way::Put, "log", Options::default());
    let _started = lab.answer(&client);
    assert_eq!(lab.names().len(), 1);
    let Lab { server, directory, .. } = lab;
    drop(server);
    assert!(names(directory.path()).is_empty(), "neither does a server that is dropped");
}

#[test]
fn a_flood_of_requests_is_slowed_and_told_once_in_a_while() {
    let mut lab = Lab::new(&[("task", b"x")], &[]);
    let client = lab.client();
    for _ in 0..1000 {
        client.ask(Way::Get, "../../etc/passwd", Options::default());
        turn(&mut lab.server, &mut lab.events);
    }
    let start = Instant::now();
    lab.until(|lab| lab.server.counts().refused > 150);
    assert!(lab.events.len() < 40, "{} events", lab.events.len());
    // It is still there for others, if they ask again as clients do.
    let other = lab.client();
    lab.until(|_| {
        other.ask(Way::Get, "task", Options::default());
        other.take().is_some()
    });
    assert!(start.elapsed() < LONG);
}
