//! What can be done with the terminal that a person sits at.

use std::io::{self, IsTerminal as _};
use std::sync::{Mutex, PoisonError};

use console::Term;
use crewboss_boss::outlet::{Outlet, Weight};
use indicatif::TermLike;

/// Whether lines can be drawn anew on standard error. If not, plain lines are what is wanted: on
/// anything that is no terminal, where the cursor cannot be moved, and where nobody knows how wide
/// a line is.
pub fn can_draw() -> bool {
    let stderr = io::stderr();
    let columns = rustix::termios::tcgetwinsize(&stderr).map_or(0, |size| size.ws_col);
    stderr.is_terminal() && columns > 0 && !is_dumb()
}

/// Whether the terminal takes escape sequences for text.
pub fn is_dumb() -> bool {
    let term = std::env::var_os("TERM").unwrap_or_default();
    // What Emacs and editors like it, consoles behind a serial line, and no setting at all call
    // themselves.
    ["", "dumb", "emacs", "unknown", "network", "dialup"].iter().any(|dumb| term == *dumb)
}

/// The terminal at standard error, as what draws bars wants it. A drawing is put into the queue
/// when it is complete.
#[derive(Debug)]
pub struct Canvas {
    out: Outlet,
    terminal: Term,
    drawing: Mutex<String>,
}

impl Canvas {
    /// An empty one, whose drawings go there.
    pub fn new(out: Outlet) -> Self {
        Self { out, terminal: Term::stderr(), drawing: Mutex::default() }
    }

    fn draw(&self, text: &str) -> io::Result<()> {
        self.drawing.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
        Ok(())
    }

    /// A sequence of the terminal that has a number in it. Of none there is nothing to be said.
    fn sequence(&self, number: usize, end: char) -> io::Result<()> {
        if number == 0 { Ok(()) } else { self.draw(&format!("\x1b[{number}{end}")) }
    }
}

impl TermLike for Canvas {
    fn width(&self) -> u16 {
        self.terminal.size().1
    }

    fn height(&self) -> u16 {
        self.terminal.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.sequence(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.sequence(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.sequence(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.sequence(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.draw(text)?;
        self.draw("\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.draw(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.draw("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let drawing = std::mem::take(&mut *self.drawing.lock().unwrap_or_else(PoisonError::into_inner));
        // Nothing is drawn before the drawing before has gone out, so that there are never many.
        self.out.put(Weight::Last, drawing.as_bytes());
        Ok(())
    }
}
