//! What goes out: to terminals of all kinds, and to readers that stand still.

mod support;

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use support::scene::Scene;

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
