//! What can be done with the terminal that a person sits at.

use std::io::IsTerminal as _;

/// Whether lines can be drawn anew on standard error. If not, plain lines are what is wanted: on anything that is no
/// terminal, where the cursor cannot be moved, and where nobody knows how wide a line is.
pub fn can_draw() -> bool {
    let stderr = std::io::stderr();
    let columns = rustix::termios::tcgetwinsize(&stderr).map_or(0, |size| size.ws_col);
    stderr.is_terminal() && columns > 0 && !is_dumb()
}

/// Whether the terminal takes escape sequences for text.
pub fn is_dumb() -> bool {
    let term = std::env::var_os("TERM").unwrap_or_default();
    // What Emacs and editors like it, consoles behind a serial line, and no setting at all call themselves.
    ["", "dumb", "emacs", "unknown", "network", "dialup"].iter().any(|dumb| term == *dumb)
}
