//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Builds every target at every commit on the computers of your crew.
#[derive(Debug, Parser)]
#[command(
    name = "crewboss",
    version,
    max_term_width = 110,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 all good, 2 wrong usage or configuration, 100 some task failed, 101 only warnings \
                  (with --fail-on-warnings), 102 some task could not be run, 130 interrupted.\n\
                  Set CREWBOSS_LOG=debug to see what crewboss itself does."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build targets at commits
    #[command(after_help = "Examples:\n  \
        crewboss build                              every target, the working tree as it is on disk\n  \
        crewboss build --commits origin/main..HEAD  every target at every commit of a range\n  \
        crewboss build arm64 riscv64 --host lab1    two targets on one host\n  \
        crewboss build --dry-run                    only show the plan\n  \
        crewboss build tests --interactive=failure  let me into the guest when a stage of it fails\n\n\
        Run it again after an interruption: what is done is not built again.")]
    Build(BuildArgs),
    /// Show the hosts: who is there, what they can do, who uses them
    #[command(after_help = "Examples:\n  \
        crewboss hosts              all of them\n  \
        crewboss hosts lab1 --json  one, for a program")]
    Hosts(HostsArgs),
    /// Show the virtual machines of the hosts: what state they are in, who uses them
    #[command(after_help = "Examples:\n  \
        crewboss machines              those of all hosts\n  \
        crewboss machines lab1 --json  those of one, for a program
        crewboss machines bootstrap    make all of them ready, before a task has to wait for it")]
    Machines(MachinesArgs),
    /// Show in short who uses the hosts: slots, guests that run, wait or are kept
    #[command(after_help = "Example:\n  \
        crewboss status         all hosts; what it shows of guests says how to get in")]
    Status(StatusArgs),
    /// Get into the guest of a task: one that was kept, or one that waits for you
    #[command(
        after_help = "Ctrl-] leaves. A guest that was kept goes on where it was stopped, is stopped again when you leave or the link \
        drops, and stays kept. One whose task waits runs on.\n\n\
        Examples:\n  \
        crewboss enter                                list the guests\n  \
        crewboss enter lab1/debian12-gcc12-k3x9ab     a shell in this one\n  \
        crewboss enter arm64                          in the one of target arm64, if there is one\n  \
        crewboss enter lab1/arm64 --console           its serial console"
    )]
    Enter(EnterArgs),
    /// End a guest that was kept, or let a task go on that waits for you
    #[command(after_help = "Example:\n  \
        crewboss release lab1/debian12-gcc12-k3x9ab")]
    Release(ReleaseArgs),
    /// Run a stage again in a guest that was kept
    #[command(
        after_help = "What still runs of the task is stopped first. The guest stays kept. Exit codes: 0 the stage succeeded, 100 it failed, 102 it \
        could not be run, 130 interrupted.\n\n\
        Examples:\n  \
        crewboss retry lab1/debian12-gcc12-k3x9ab --stage build --set V=1\n  \
        crewboss retry arm64 --stage build --wipe     with the source unpacked anew, and no output"
    )]
    Retry(RetryArgs),
    /// End workers on hosts and remove what they left
    #[command(
        after_help = "Work of live bosses is left alone unless --force is given, and what you may not end always is. Guests that \
        were held for a person are ended, too, unless somebody is in one (--force: even then).\n\n\
        Examples:\n  \
        crewboss kill-workers               clean every host of the crew\n  \
        crewboss kill-workers lab1 --force  end everything on one host that you may end\n  \
        crewboss kill-workers lab1 --purge  remove also what is kept there for later runs"
    )]
    KillWorkers(KillWorkersArgs),
}

/// Options that every command has.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// The crew [default: crew.toml in this directory or above, then in the user's configuration,
    /// else this computer]
    #[arg(long, value_name = "FILE")]
    pub crew: Option<PathBuf>,
    /// No colours (also by a non-empty $NO_COLOR)
    #[arg(long)]
    pub no_color: bool,
}

/// Arguments of `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// The targets to build [default: all of build.toml]
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// Options that every command has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The build file [default: build.toml in this directory or above, within the repository]
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A git revision or range [default: `commits` of build.toml, else the working tree as it is on
    /// disk]
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    pub commits: Option<String>,
    /// Where results go [default: crewboss-results beside build.toml]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write what happens into a file, a JSON object per line
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Use only this host; may be given several times
    #[arg(long = "host", value_name = "NAME")]
    pub hosts: Vec<String>,
    /// Only show the plan: which tasks there are and which hosts can take them
    #[arg(long)]
    pub dry_run: bool,
    /// Build again what is done already
    #[arg(long)]
    pub force: bool,
    /// Build again what is done already and did not succeed
    #[arg(long)]
    pub force_failed: bool,
    /// Keep the guests of failed tasks too, and all for so long [default: `hold` of build.toml, for
    /// guests of tasks that ran into their time limit or ended strangely]
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true)]
    pub hold: Option<Option<String>>,
    /// Let a person into the guest of the one TARGET: before its first stage, before STAGE, or, as
    /// `failure`, when a stage has failed. Builds again what is done already, with `failure` only
    /// what did not succeed
    #[arg(long, value_name = "STAGE|failure", num_args = 0..=1, require_equals = true)]
    pub interactive: Option<Option<String>>,
    /// How long the task then waits for that person [default: 1h]
    #[arg(long, value_name = "DURATION", requires = "interactive")]
    pub interactive_limit: Option<String>,
    /// Exit with 101 if nothing failed but there were warnings
    #[arg(long)]
    pub fail_on_warnings: bool,
    /// Shown to others who use the same hosts; in this version it does not yet change who goes
    /// first
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=PRIORITY_MAX))]
    pub priority: u32,
    /// Say only what went wrong, and the counts at the end
    #[arg(long, short, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say also what starts and what is sent
    #[arg(long, short)]
    pub verbose: bool,
}

/// Highest priority; the levels end at 10000 and leave room for a hundred steps beyond.
const PRIORITY_MAX: i64 = 10_099;

/// Arguments of `hosts`.
#[derive(Debug, Args)]
pub struct HostsArgs {
    /// The hosts to ask [default: all]
    #[arg(value_name = "HOST")]
    pub hosts: Vec<String>,
    /// Options that every command has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Print JSON: an array with an object per host
    #[arg(long)]
    pub json: bool,
    /// Measure speed and try toolchains anew
    #[arg(long)]
    pub refresh: bool,
}

/// Arguments of `machines`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct MachinesArgs {
    /// What to do instead of showing them.
    #[command(subcommand)]
    pub command: Option<MachinesCommand>,
    /// The hosts to ask [default: all]
    #[arg(value_name = "HOST")]
    pub hosts: Vec<String>,
    /// Options that every command has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Print JSON: an array with an object per host
    #[arg(long)]
    pub json: bool,
}

/// What to do with machines.
#[derive(Debug, Subcommand)]
pub enum MachinesCommand {
    /// Make machines ready: bootstrap those that need it, also those that were suspended
    #[command(after_help = "It happens by itself when a task needs it; this does it ahead of time.\n\n\
        Examples:\n  \
        crewboss machines bootstrap                       whatever needs it, on every host\n  \
        crewboss machines bootstrap debian12 --host lab1  one machine on one host\n\n\
        Exit codes: 0 all are ready, 2 wrong usage or a name that no host has, 102 one could not be made ready.")]
    Bootstrap(BootstrapArgs),
}

/// Arguments of `machines bootstrap`.
#[derive(Debug, Args)]
pub struct BootstrapArgs {
    /// The machines [default: all that need it]
    #[arg(value_name = "MACHINE")]
    pub machines: Vec<String>,
    /// Options that every command has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Only on this host; may be given several times
    #[arg(long = "host", value_name = "NAME")]
    pub hosts: Vec<String>,
    /// Give build machines this toolchain [default: `default`, what the machine itself has]
    #[arg(long, value_name = "NAME")]
    pub toolchain: Option<String>,
    /// Also those that are ready
    #[arg(long)]
    pub force: bool,
    /// Print JSON: an array with an object per host
    #[arg(long)]
    pub json: bool,
    /// Say only how it ended
    #[arg(long, short, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Show also what the guests print
    #[arg(long, short)]
    pub verbose: bool,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The hosts to ask [default: all]
    #[arg(value_name = "HOST")]
    pub hosts: Vec<String>,
    /// Options that every command has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Print JSON: an array with an object per host
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `enter`.
#[derive(Debug, Args)]
pub struct EnterArgs {
    /// The guest: its name or its target, with the host before it if that is known [default: list
    /// them]
    #[arg(value_name = "[HOST/]GUEST")]
    pub guest: Option<String>,
    /// Options that every command has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// A shell [default, if our agent runs in the guest]
    #[arg(long, group = "way")]
    pub shell: bool,
    /// The serial console
    #[arg(long, group = "way")]
    pub console: bool,
    /// The screen, for a VNC viewer; the machine needs `display = true`
    #[arg(long, group = "way")]
    pub vnc: bool,
    /// Get in although somebody is in it, who has to leave; what was done there is kept
    #[arg(long, requires = "guest")]
    pub take_over: bool,
}

/// Arguments of `release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The guest: its name or its target, with the host before it if that is known
    #[arg(value_name = "[HOST/]GUEST")]
    pub guest: String,
    /// Options that every command has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Arguments of `retry`.
#[derive(Debug, Args)]
pub struct RetryArgs {
    /// The guest: its name or its target, with the host before it if that is known
    #[arg(value_name = "[HOST/]GUEST")]
    pub guest: String,
    /// Options that every command has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The stage to run
    #[arg(long, value_name = "STAGE")]
    pub stage: String,
    /// A variable on top of those of the task; may be given several times
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub variables: Vec<String>,
    /// Unpack the source anew and empty the output first
    #[arg(long)]
    pub wipe: bool,
}

/// Arguments of `kill-workers`.
#[derive(Debug, Args)]
pub struct KillWorkersArgs {
    /// The hosts to clean [default: all]
    #[arg(value_name = "HOST")]
    pub hosts: Vec<String>,
    /// Options that every command has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// End also the work of live bosses
    #[arg(long)]
    pub force: bool,
    /// Remove also what is kept in the work directory for later runs: sources, objects, warm build
    /// directories. Machines stay. A host on which a worker lives is left as it is
    #[arg(long)]
    pub purge: bool,
    /// Print JSON: an array with an object per host
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_ends_with_two() {
        for line in [
            "crewboss frobnicate",
            "crewboss build --frobnicate",
            "crewboss build -q -v",
            "crewboss build --priority x",
            "crewboss build --interactive-limit 5m",
            "crewboss machines bootstrap -q -v",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(crate::exit::Exit::Usage.code()), "{line}");
        }
        for line in ["crewboss --help", "crewboss machines bootstrap --help", "crewboss --version"] {
            assert_eq!(Cli::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 0, "{line}");
        }
    }

    #[test]
    fn arguments_that_are_no_text_are_paths_or_refused() {
        let odd = OsStr::from_bytes(b"a\xff");
        let words = [OsStr::new("crewboss"), OsStr::new("build"), OsStr::new("--out"), odd];
        let Command::Build(build) = Cli::try_parse_from(words).unwrap().command else {
            panic!("not a build")
        };
        assert_eq!(build.out.unwrap().as_os_str(), odd);
        let words = [OsStr::new("crewboss"), OsStr::new("build"), odd];
        let error = Cli::try_parse_from(words).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("UTF-8"), "{error}");
    }
}
