//! The command line: hands over to the role that the first argument names.

use std::path::PathBuf;
use std::process::ExitCode;

use crewboss_worker::{Layout, bulk, core, guardian, runner, sweep, verify};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let work = arguments.iter().position(|argument| argument == "--work");
    let work = work.and_then(|at| arguments.get(at + 1)).map(PathBuf::from);
    match arguments.first().map(String::as_str) {
        Some("worker") if has("--proper") => core::main(work),
        Some("worker") => guardian::main(work),
        Some("runner") => runner::main(),
        Some("clean") => sweep::clean_main(has("--force"), work),
        Some("bulk") => {
            let session = arguments.iter().position(|argument| argument == "--session");
            let session = session.and_then(|at| arguments.get(at + 1)).and_then(|text| text.parse().ok());
            match (Layout::resolve(work), session) {
                (Ok(layout), Some(session)) => bulk::main(layout, session),
                _ => ExitCode::from(2),
            }
        }
        Some("verify") => verify::main(arguments.get(1).map_or("", String::as_str)),
        _ => ExitCode::from(2),
    }
}
