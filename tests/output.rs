//! What goes out: to terminals of all kinds, and to readers that stand still.

mod support;

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use support::clock::FairClock;
use support::scene::Scene;
use support::{A_RUN, SOON, read, run, wait_for};

const FAILS: &str = "commits = 'HEAD'\n[target.t]\nstages.run = 'echo unique-error-text >&2; exit 1'\n";

/// A process that is ended with the test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A terminal of so many columns, and a program on it.
fn on_a_terminal(columns: u16, command: &mut Command) -> (Ending, File) {
    let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&near).and_then(|()| unlockpt(&near)).expect("the right to use it");
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&near, size).expect("a size");
    let far = ioctl_tiocgptpeer(&near, OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("its other end");
    let stream = |far: &OwnedFd| Stdio::from(far.try_clone().expect("a descriptor"));
    let child = command.stdin(Stdio::null()).stdout(stream(&far)).stderr(stream(&far)).spawn();
    (Ending(child.expect("the program")), File::from(near))
}

/// All that is shown until nobody has the terminal any more.
fn shown(mut terminal: File) -> String {
    let mut text = Vec::new();
    // It ends with an error when its last user is gone.
    let _ended = terminal.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Some tasks whose failures fill a small pipe, and one after them that says when it has begun.
fn noisy(scene: &Scene, last: &str) -> String {
    let noise = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do printf %0390d 0; echo; done; exit 1";
    let mark = scene.path("mark");
    let failing = (0..6).map(|n| format!("[target.f{n}]\npriority = 9\nstages.run = '{noise}'\n"));
    failing.collect::<String>() + &format!("[target.last]\nstages.run = 'touch {}; {last}'\n", mark.display())
}

/// This computer, which counts as lost after a few seconds of silence of its boss.
fn impatient(scene: &Scene) -> std::path::PathBuf {
    let work = scene.path("work");
    let limits = "[limits]\nheartbeat = '500ms'\nsilence = '5s'\n";
    scene.crew_file(&format!("{limits}[host.here]\nlocal = true\nslots = 1\nwork = '{}'\n", work.display()))
}

/// A pipe that holds next to nothing.
fn small_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).expect("a small one");
    (reader, writer)
}

fn crewboss(scene: &Scene, term: Option<&str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crewboss"));
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("HOME", scene.path("home"))
        .envs(term.map(|term| ("TERM", term)))
        .current_dir(scene.repo())
        .args(["build", "--force"]);
    command
}

#[test]
fn a_terminal_that_cannot_be_drawn_on_gets_plain_lines() {
    let scene = Scene::with_commits(FAILS, 1);
    for (term, columns, drawn) in
        [(None, 80, false), (Some("dumb"), 80, false), (Some("xterm"), 0, false), (Some("xterm"), 80, true)]
    {
        let (mut boss, terminal) = on_a_terminal(columns, &mut crewboss(&scene, term));
        let text = shown(terminal);
        assert_eq!(boss.0.wait().expect("its end").code(), Some(100), "{text}");
        for part in ["unique-error-text", "[1/1]", "failure", "results: "] {
            assert!(text.contains(part), "{term:?} of {columns} columns does not show {part:?}: {text}");
        }
        assert_eq!(text.contains("ok 0  warn 0"), drawn, "{term:?} of {columns} columns: {text:?}");
    }
}

#[test]
fn a_reader_that_stands_still_costs_neither_hosts_nor_results() {
    let scene = Scene::new("");
    scene.commit(&[("build.toml", &noisy(&scene, "sleep 11"))], "Make noise");
    let (mut reader, writer) = small_pipe();
    let (events, crew) = (scene.path("events"), impatient(&scene));
    let mut command = crewboss(&scene, None);
    command.arg("--crew").arg(crew).arg("--events").arg(&events);
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
    let mut boss = Ending(command.spawn().expect("the boss"));
    drop(command);
    // Until then nobody reads, for longer than the host bears silence.
    wait_for("the last task", A_RUN, || {
        assert!(boss.0.try_wait().expect("its state").is_none(), "the boss has ended before");
        let text = std::fs::read_to_string(&events).unwrap_or_default();
        text.lines().find(|line| line.contains("task_done") && line.contains("\"last\"")).map(str::to_owned)
    });
    let mut shown = String::new();
    reader.read_to_string(&mut shown).expect("text");
    assert_eq!(boss.0.wait().expect("its end").code(), Some(100), "{shown}");
    let events = read(&events);
    assert!(!events.contains("host_lost") && !events.contains("task_retried"), "{events}");
    assert_eq!(events.matches("\"task_done\"").count(), 7, "{events}");
    assert!(shown.contains("[7/7]") && shown.contains("results: "), "{shown}");
}

#[test]
fn a_run_stops_in_time_whoever_does_not_read() {
    let scene = Scene::new("");
    scene.commit(&[("build.toml", &noisy(&scene, "sleep 300"))], "Make noise");
    let (fifo, crew) = (scene.path("fifo"), impatient(&scene));
    run(Command::new("mkfifo").arg(&fifo));
    let (reader, writer) = small_pipe();
    let mut command = crewboss(&scene, None);
    command.arg("--crew").arg(crew).arg("--events").arg(&fifo).env("CREWBOSS_LOG", "trace");
    let writer_too = writer.try_clone().expect("a descriptor");
    command.stdin(Stdio::null()).stdout(writer).stderr(writer_too);
    let mut boss = Ending(command.spawn().expect("the boss"));
    drop(command);
    wait_for("the last task", A_RUN, || {
        assert!(boss.0.try_wait().expect("its state").is_none(), "the boss has ended before");
        scene.path("mark").exists().then_some(())
    });
    let clock = FairClock::start();
    run(Command::new("kill").args(["-INT", &boss.0.id().to_string()]));
    let ended = wait_for("the end", SOON, || boss.0.try_wait().expect("its state"));
    let took = clock.elapsed();
    assert_eq!(ended.code(), Some(130));
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop(reader);
}

#[test]
fn a_full_disk_behind_the_output_is_told_and_changes_no_result() {
    let scene = Scene::with_commits(FAILS, 1);
    let full = || File::options().write(true).open("/dev/full").expect("the device");
    let mut command = crewboss(&scene, None);
    command.args(["--events", "/dev/full"]).stdin(Stdio::null()).stdout(full());
    let ended = support::output(&mut command);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(100), "{said}");
    assert!(said.contains("cannot write standard output: No space left"), "{said}");
    assert!(said.contains("the events in /dev/full are not complete: "), "{said}");
}

#[test]
fn what_was_asked_for_and_cannot_be_written_is_no_success() {
    let scene = Scene::with_commits(FAILS, 1);
    let mut command = crewboss(&scene, None);
    let full = File::options().write(true).open("/dev/full").expect("the device");
    command.arg("--dry-run").stdin(Stdio::null()).stdout(full);
    let ended = support::output(&mut command);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(102), "{said}");
    assert!(said.contains("cannot write standard output: No space left"), "{said}");
}
