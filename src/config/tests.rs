//! What is read from files, what is refused, and with which words.

use std::path::Path;
use std::time::Duration;

use crewboss_boss::crew::{Crew, HostKeys, Transport};
use crewboss_boss::plan::Selection;
use crewboss_protocol::machine::{AccelChoice, Accelerator};
use crewboss_protocol::{Command, Environment, Feature};

use super::build::BuildPlan;
use super::document::Document;
use super::trust::Way;
use super::*;
use crate::output::with_causes;

mod documentation;
mod usual;

fn load<T>(name: &str, text: &[u8], load: impl Fn(&Path) -> Result<T, ConfigError>) -> Result<T, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    load(&path).map_err(|error| with_causes(&error).replace(&format!("{}/", directory.path().display()), ""))
}

fn build(text: &str) -> Result<BuildPlan, String> {
    load("build.toml", text.as_bytes(), build_at)
}

fn crew(text: &str) -> Result<Crew, String> {
    load("crew.toml", text.as_bytes(), crew_at)
}

fn build_at(path: &Path) -> Result<BuildPlan, ConfigError> {
    load_build(Document::read(path, Way::Named)?)
}

fn crew_at(path: &Path) -> Result<Crew, ConfigError> {
    load_crew(Document::read(path, Way::Named)?, None)
}

/// The errors of many files, each below its text.
fn errors<T>(texts: &[&str], load: impl Fn(&str) -> Result<T, String>) -> String {
    let mut shown = String::new();
    for text in texts {
        let error = load(text).err().unwrap_or_else(|| panic!("accepted: {text}"));
        shown.push_str(&format!("{error}\n\n"));
    }
    shown
}

#[test]
fn a_build_file_with_everything() {
    let plan = build(
        r#"
commits = "origin/main..HEAD"
environment = "directory"
timeout = "30m"
variables = { V = "1", W = "default" }

[target.zeta]
toolchain = "aarch64"
incremental = true
environment = "snapshot"
timeout = "1h 30m"
stages.zonfigure = "make O=$CREWBOSS_OUT defconfig"
stages.build = ["make", "-j4"]
stages.a = "make test"
variables.W = "own"
artifacts = ["u-boot.bin", "spl/*.bin"]
sizes = ["u-boot"]
priority = 5
needs.tags = ["big"]
needs.features = ["btrfs", "kvm"]
needs.memory = "4 GiB"
needs.disk = "20 GB"

[target.alpha]
stages.build = "make"
"#,
    )
    .unwrap();
    assert_eq!(plan.selection, Selection::Range("origin/main..HEAD".to_owned()));
    let names: Vec<&str> = plan.targets.iter().map(|plan| plan.target.name.as_str()).collect();
    assert_eq!(names, ["zeta", "alpha"], "the order of the file is lost");
    let zeta = &plan.targets[0];
    let stages: Vec<&str> = zeta.target.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(stages, ["zonfigure", "build", "a"], "the order of the file is lost");
    assert_eq!(zeta.target.stages[1].command, Command::Words(vec!["make".into(), "-j4".into()]));
    assert_eq!(zeta.target.environment, Environment::Snapshot);
    assert_eq!(zeta.target.timeout_ms, 5_400_000);
    assert_eq!(zeta.target.variables["W"], "own");
    assert_eq!(zeta.target.variables["V"], "1");
    assert_eq!(zeta.needs.features, [Feature::Btrfs, Feature::Kvm].into());
    assert_eq!((zeta.needs.memory, zeta.needs.disk, zeta.priority), (4 << 30, 20_000_000_000, 5));
    let alpha = &plan.targets[1];
    assert_eq!(
        (alpha.target.timeout_ms, alpha.target.environment.clone()),
        (1_800_000, Environment::Directory)
    );
}

#[test]
fn the_order_of_stages_is_that_of_the_file_however_they_are_written() {
    let text = "[target.x.stages]\nz = \"1\"\n\"m\" = \"2\"\na = \"3\"\n[target.y]\nstages = { q = \"1\", b = \"2\" }\n";
    let plan = build(text).unwrap();
    let stages = |index: usize| -> Vec<&str> {
        plan.targets[index].target.stages.iter().map(|stage| stage.name.as_str()).collect()
    };
    assert_eq!(stages(0), ["z", "m", "a"]);
    assert_eq!(stages(1), ["q", "b"]);
}

#[test]
fn a_build_file_has_defaults() {
    let plan = build("[target.x]\nstages.build = \"make\"").unwrap();
    assert_eq!(plan.selection, Selection::WorkingTree);
    let target = &plan.targets[0].target;
    assert_eq!((target.timeout_ms, target.incremental), (3_600_000, false));
    assert_eq!(target.environment, Environment::Snapshot);
}

#[test]
fn a_build_file_names_machines_and_what_takes_uploads() {
    let plan = build(
        r#"
environment = { machine = "debian12" }
hold = "0"

[target.here]
stages.build = "make"
environment = "directory"
incremental = true

[target.there]
toolchain = "gcc12"
stages.build = "make"

[target.served]
stages.build = "make"
environment = { machine = "windows", auxiliary = { web = "nginx", db = "postgres15" } }

[target.also.environment]
machine = "freebsd"
[target.also.stages]
build = "make"

[upload.package]
command = ["./publish", "--now"]
timeout = "5m"
"#,
    )
    .unwrap();
    let shown: Vec<String> = plan
        .targets
        .iter()
        .map(|plan| match &plan.target.environment {
            Environment::Machine(machine) => {
                let auxiliary = machine.auxiliary.iter().map(|one| format!(" {}:{}", one.name, one.machine));
                format!("{}{}", machine.name, auxiliary.collect::<String>())
            }
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(shown, ["Directory", "debian12", "windows web:nginx db:postgres15", "freebsd"]);
    assert_eq!(plan.hold, Duration::ZERO);
    let upload = &plan.uploads[&"package".parse().unwrap()];
    assert_eq!((upload.words.len(), upload.timeout), (2, Duration::from_secs(300)));
    assert_eq!(build("[target.x]\nstages.build = \"make\"").unwrap().hold, Duration::from_secs(3600));
}

#[test]
fn a_build_file_that_is_wrong_is_refused_with_place_and_hint() {
    let stage = "stages.build = \"make\"";
    let texts = [
        "",
        "[target.x]\n",
        "[target.x]\nstage.build = \"make\"\n",
        "[target.x]\nstages.build = 5\n",
        "[target.x]\nstages.build = []\n",
        "[target.x]\nstages.build = \" \"\n",
        "[target.x]\nstages.build = [\"make\", 5]\n",
        "[target.x]\nstages.build = \"make\"\n\n[target.x]\nstages.build = \"make\"\n",
        "[target.x]\nstages.build = \"make\"\nstages.build = \"make\"\n",
        "[target.\"a b\"]\nstages.build = \"make\"\n",
        "[target.\"..\"]\nstages.build = \"make\"\n",
        "[target.\"-rf\"]\nstages.build = \"make\"\n",
        "[target.\"a\\nb\"]\nstages.build = \"make\"\n",
        "timeout = \"30\"\n",
        "timeout = \"90 seconds ago\"\n",
        "timeout = 30\n",
        "environment = \"container\"\n",
        "environment = { }\n[target.x]\nstages.build = \"make\"\n",
        "environment = { machine = \"a/b\" }\n[target.x]\nstages.build = \"make\"\n",
        "environment = { machine = 5 }\n",
        "environment = { machine = \"a\", auxilary = { db = \"pg\" } }\n",
        "environment = { machine = \"a\", auxiliary = [\"pg\"] }\n",
        "environment.machine = \"a\"\nenvironment.auxiliary = { db-1 = \"pg\", DB_1 = \"my\" }\n[target.x]\nstages.build = \"make\"\n",
        "environment = { machine = \"a\", auxiliary = { crewboss = \"pg\" } }\n[target.x]\nstages.build = \"make\"\n",
        &format!(
            "environment = {{ machine = \"a\", auxiliary = {{ {} }} }}\n[target.x]\n{stage}\n",
            (0..10).map(|n| format!("a{n} = \"m\"")).collect::<Vec<_>>().join(", ")
        ),
        "environment = { machine = \"a\" }\n[target.x]\nstages.build = \"make\"\nincremental = true\n",
        "machine = \"a\"\n",
        "hold = \"0\"\nhold = \"1\"\n",
        "hold = \"1\"\n",
        "hold = 0\n",
        "[upload.bin]\n[target.x]\nstages.build = \"make\"\n",
        "[upload.bin]\ncommand = [\"\"]\n[target.x]\nstages.build = \"make\"\n",
        "[upload.bin]\ncommand = \"./publish\"\n",
        "[upload.\"a b\"]\ncommand = [\"./publish\"]\n[target.x]\nstages.build = \"make\"\n",
        "[upload.bin]\nshell = \"x\"\n",
        "commits = \"\"\n[target.x]\nstages.build = \"make\"",
        "commits = \"--all\"\n[target.x]\nstages.build = \"make\"",
        "comits = \"HEAD\"\n",
        "variables.\"A B\" = \"1\"\n[target.x]\nstages.build = \"make\"\n",
        "variables.CREWBOSS_OUT = \"1\"\n[target.x]\nstages.build = \"make\"\n",
        "variables.N = 1\n",
        &format!("[target.x]\n{stage}\nartifacts = [\"ok\", \"../x\"]\n"),
        &format!("[target.x]\n{stage}\nsizes = [\"/etc/passwd\"]\n"),
        &format!("[target.x]\n{stage}\nartifacts = [\"a\", \"build/.\"]\n"),
        &format!("[target.x]\n{stage}\nartifacts = [\"a[\"]\n"),
        &format!("[target.x]\n{stage}\nartifacts = \"a\"\n"),
        &format!("[target.x]\n{stage}\nneeds.features = [\"btfrs\"]\n"),
        &format!("[target.x]\n{stage}\nneeds.features = [\"docker\"]\n"),
        &format!("[target.x]\n{stage}\nneeds.memory = \"4\"\n"),
        &format!("[target.x]\n{stage}\nneeds.memory = 4\n"),
        &format!("[target.x]\n{stage}\nmemory = \"4 GiB\"\n"),
        &format!("[target.x]\n{stage}\npriority = -1\n"),
        &format!("[target.x]\n{stage}\ntoolchain = \"a/b\"\n"),
        &format!("[target.x]\n{stage}\nincremental = \"yes\"\n"),
        "[target.x\n",
        "[targets.x]\n",
        "target = 5\n",
        "\u{feff}\u{1b}[2J = 5\n",
    ];
    insta::assert_snapshot!(errors(&texts, build), @r#"
build.toml has no target
  hint: the smallest one is
    [target.hello]
    stages.build = "make"

build.toml:1:9: target x has no stages, so nothing would be built
  |
1 | [target.x]
  |         ^
  hint: say what to run: stages.build = "make"

build.toml:2:1: unknown key `stage`, expected one of `toolchain`, `incremental`, `environment`, `timeout`, `stages`, `variables`, `artifacts`, `sizes`, `priority`, `needs`
  |
2 | stage.build = "make"
  | ^^^^^
  hint: did you mean `stages`?

build.toml:2:16: invalid type: integer `5`, expected a line for the shell or a list of words, such as "make all" or ["make", "all"]
  |
2 | stages.build = 5
  |                ^

build.toml:2:16: stage build: command: it is empty
  |
2 | stages.build = []
  |                ^^

build.toml:2:16: stage build: command: it is empty
  |
2 | stages.build = " "
  |                ^^^

build.toml:2:25: invalid type: integer `5`, expected a text in quotes
  |
2 | stages.build = ["make", 5]
  |                         ^

build.toml:4:9: duplicate key
  |
4 | [target.x]
  |         ^
  hint: the same name is used twice; rename or remove one of them

build.toml:3:8: duplicate key
  |
3 | stages.build = "make"
  |        ^^^^^
  hint: the same name is used twice; rename or remove one of them

build.toml:1:9: "a b" has the character ' '; names are made of letters, digits and `. _ + -`
  |
1 | [target."a b"]
  |         ^^^^^

build.toml:1:9: ".." begins with '.'; a name begins with a letter, a digit or `_`
  |
1 | [target.".."]
  |         ^^^^

build.toml:1:9: "-rf" begins with '-'; a name begins with a letter, a digit or `_`
  |
1 | [target."-rf"]
  |         ^^^^^

build.toml:1:9: "a\nb" has the character '\n'; names are made of letters, digits and `. _ + -`
  |
1 | [target."a\nb"]
  |         ^^^^^^

build.toml:1:11: "30" is no duration: its unit is missing; write it as "30m" or "1h 30m"
  |
1 | timeout = "30"
  |           ^^^^

build.toml:1:11: "90 seconds ago" is no duration: it cannot have a sign; write it as "30m" or "1h 30m"
  |
1 | timeout = "90 seconds ago"
  |           ^^^^^^^^^^^^^^^^

build.toml:1:11: invalid type: integer `30`, expected a duration in quotes, such as "30m" or "1h 30m"
  |
1 | timeout = 30
  |           ^^

build.toml:1:15: there is no environment "container"; it is "snapshot", "directory" or { machine = "NAME" }
  |
1 | environment = "container"
  |               ^^^^^^^^^^^

build.toml:1:15: an environment of machines lacks `machine`
  |
1 | environment = { }
  |               ^^^
  hint: name the one that tasks run in: environment = { machine = "debian12" }

build.toml:1:27: "a/b" has the character '/'; names are made of letters, digits and `. _ + -`
  |
1 | environment = { machine = "a/b" }
  |                           ^^^^^

build.toml:1:27: invalid type: integer `5`, expected a text in quotes
  |
1 | environment = { machine = 5 }
  |                           ^

build.toml:1:32: unknown key `auxilary`, expected `machine` or `auxiliary`
  |
1 | environment = { machine = "a", auxilary = { db = "pg" } }
  |                                ^^^^^^^^
  hint: did you mean `auxiliary`?

build.toml:1:44: invalid type: sequence, expected a table
  |
1 | environment = { machine = "a", auxiliary = ["pg"] }
  |                                            ^^^^^^

build.toml:2:40: variables of db-1 and DB_1 would both begin with DB_1_
  |
2 | environment.auxiliary = { db-1 = "pg", DB_1 = "my" }
  |                                        ^^^^
  hint: what tells names apart are letters (of either case) and digits

build.toml:1:46: variables of crewboss would begin with CREWBOSS_
  |
1 | environment = { machine = "a", auxiliary = { crewboss = "pg" } }
  |                                              ^^^^^^^^
  hint: names that begin with CREWBOSS_ are set by crewboss itself; call it otherwise

build.toml:1:136: there are more than 9 auxiliary machines
  |
1 | a4 = "m", a5 = "m", a6 = "m", a7 = "m", a8 = "m", a9 = "m" } }
  |                                                   ^^

build.toml:4:15: target x cannot be incremental in machine a
  |
4 | incremental = true
  |               ^^^^
  hint: a guest is gone after its task, and nothing is left to start from; remove `incremental`, or give the target environment = "snapshot"

build.toml:1:1: unknown key `machine`, expected one of `commits`, `environment`, `timeout`, `hold`, `variables`, `target`, `upload`
  |
1 | machine = "a"
  | ^^^^^^^
  hint: the machine that tasks run in is their environment: environment = { machine = "NAME" }

build.toml:2:1: duplicate key
  |
2 | hold = "1"
  | ^^^^
  hint: the same name is used twice; rename or remove one of them

build.toml:1:8: "1" is no duration: its unit is missing; write it as "30m" or "1h 30m", or "0" for never
  |
1 | hold = "1"
  |        ^^^

build.toml:1:8: invalid type: integer `0`, expected a duration in quotes, such as "1h", or "0" for never
  |
1 | hold = 0
  |        ^

build.toml:1:9: upload bin has no `command`
  |
1 | [upload.bin]
  |         ^^^
  hint: say what takes the file: command = ["./publish"]

build.toml:2:11: upload bin: command: it is empty
  |
2 | command = [""]
  |           ^^^^

build.toml:2:11: invalid type: string "./publish", expected a list in brackets, such as ["one", "two"]
  |
2 | command = "./publish"
  |           ^^^^^^^^^^^

build.toml:1:9: "a b" has the character ' '; names are made of letters, digits and `. _ + -`
  |
1 | [upload."a b"]
  |         ^^^^^

build.toml:2:1: unknown key `shell`, expected `command` or `timeout`
  |
2 | shell = "x"
  | ^^^^^

build.toml:1:11: "" names no commits: it is empty
  |
1 | commits = ""
  |           ^^
  hint: any git revision or range will do: "HEAD", "v1.2", "origin/main..HEAD"; without it the working tree is built

build.toml:1:11: "--all" names no commits: it begins with a dash
  |
1 | commits = "--all"
  |           ^^^^^^^
  hint: any git revision or range will do: "HEAD", "v1.2", "origin/main..HEAD"; without it the working tree is built

build.toml:1:1: unknown key `comits`, expected one of `commits`, `environment`, `timeout`, `hold`, `variables`, `target`, `upload`
  |
1 | comits = "HEAD"
  | ^^^^^^
  hint: did you mean `commits`?

build.toml:1:11: "A B" cannot be a variable's name
  |
1 | variables."A B" = "1"
  |           ^^^^^
  hint: letters, digits and `_`, no digit first

build.toml:1:11: CREWBOSS_OUT is set by crewboss itself
  |
1 | variables.CREWBOSS_OUT = "1"
  |           ^^^^^^^^^^^^
  hint: variables of your own do not begin with CREWBOSS_

build.toml:1:15: invalid type: integer `1`, expected a text in quotes
  |
1 | variables.N = 1
  |               ^

build.toml:3:20: "../x" cannot name files of a task: it has a `..`
  |
3 | artifacts = ["ok", "../x"]
  |                    ^^^^^^
  hint: a stage can copy what lies elsewhere to $CREWBOSS_OUT

build.toml:3:10: "/etc/passwd" cannot name files of a task: it is absolute, and looked for below $CREWBOSS_OUT and $CREWBOSS_SRC
  |
3 | sizes = ["/etc/passwd"]
  |          ^^^^^^^^^^^^^
  hint: a stage can copy what lies elsewhere to $CREWBOSS_OUT

build.toml:3:19: "build/." cannot name files of a task: it has an empty or `.` part, or a slash at its end
  |
3 | artifacts = ["a", "build/."]
  |                   ^^^^^^^^^
  hint: "build/**" matches all files below a directory

build.toml:3:14: "a[" cannot name files of a task: unclosed character class; missing ']'
  |
3 | artifacts = ["a["]
  |              ^^^^

build.toml:3:13: invalid type: string "a", expected a list in brackets, such as ["one", "two"]
  |
3 | artifacts = "a"
  |             ^^^

build.toml:3:19: there is no feature "btfrs"; there are btrfs, reflink, cgroup, kvm, namespaces
  |
3 | needs.features = ["btfrs"]
  |                   ^^^^^^^
  hint: did you mean "btrfs"?

build.toml:3:19: there is no feature "docker"; there are btrfs, reflink, cgroup, kvm, namespaces
  |
3 | needs.features = ["docker"]
  |                   ^^^^^^^^
  hint: a word of your own is a tag: `tags` in crew.toml, `needs.tags` here

build.toml:3:16: "4" is no size: its unit is missing; write it as "4 GiB" or "500 MB"
  |
3 | needs.memory = "4"
  |                ^^^

build.toml:3:16: invalid type: integer `4`, expected a size in quotes, such as "4 GiB" or "500 MB"
  |
3 | needs.memory = 4
  |                ^

build.toml:3:1: unknown key `memory`, expected one of `toolchain`, `incremental`, `environment`, `timeout`, `stages`, `variables`, `artifacts`, `sizes`, `priority`, `needs`
  |
3 | memory = "4 GiB"
  | ^^^^^^
  hint: what a host must have is listed under `needs`: needs.memory = "4 GiB"

build.toml:3:12: invalid value: integer `-1`, expected a whole number from 0 to 4294967295
  |
3 | priority = -1
  |            ^^

build.toml:3:13: "a/b" has the character '/'; names are made of letters, digits and `. _ + -`
  |
3 | toolchain = "a/b"
  |             ^^^^^

build.toml:3:15: invalid type: string "yes", expected true or false
  |
3 | incremental = "yes"
  |               ^^^^^

build.toml:1:10: unclosed table, expected `]`
  |
1 | [target.x
  |          ^

build.toml:1:2: unknown key `targets`, expected one of `commits`, `environment`, `timeout`, `hold`, `variables`, `target`, `upload`
  |
1 | [targets.x]
  |  ^^^^^^^
  hint: each target has a table of its own: [target.NAME]

build.toml:1:10: invalid type: integer `5`, expected a table
  |
1 | target = 5
  |          ^

build.toml:1:2: key with no value, expected `=`
  |
1 | ?[2J = 5
  |  ^
"#);
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let told = |path: &Path| {
        let text = with_causes(&build_at(path).unwrap_err());
        text.replace(&directory.path().display().to_string(), "DIR")
    };
    let mut shown = told(directory.path());
    shown.push_str(&format!("\n\n{}", told(&directory.path().join("build.toml"))));
    std::fs::write(directory.path().join("latin1.toml"), b"# fine\n# caf\xe9\n").unwrap();
    shown.push_str(&format!("\n\n{}", told(&directory.path().join("latin1.toml"))));
    insta::assert_snapshot!(shown, @r"
cannot use DIR: it is a directory and not a file
  hint: name the file itself, not its directory

cannot read DIR/build.toml: No such file or directory (os error 2)

DIR/latin1.toml:2:6: this is not UTF-8 text
");
}

#[test]
fn targets_are_chosen_by_name() {
    let text = "[target.arm64]\nstages.b = \"m\"\n[target.riscv]\nstages.b = \"m\"\n[target.x86]\nstages.b = \"m\"\n";
    let mut plan = build(text).unwrap();
    plan.path = "build.toml".into();
    let unknown = |name: &str, plan: &mut BuildPlan| plan.select(&[name.to_owned()]).unwrap_err().to_string();
    let shown = format!("{}\n{}", unknown("arm46", &mut plan), unknown("sparc", &mut plan));
    insta::assert_snapshot!(shown, @r#"
build.toml has no target "arm46"
  hint: did you mean arm64?
build.toml has no target "sparc"
  hint: there is arm64, riscv, x86
"#);
    plan.select(&["x86".to_owned(), "arm64".to_owned(), "x86".to_owned()]).unwrap();
    let names: Vec<&str> = plan.targets.iter().map(|plan| plan.target.name.as_str()).collect();
    assert_eq!(names, ["arm64", "x86"]);
}

#[test]
fn a_crew_file_with_everything() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("lab_config"), "").unwrap();
    let path = directory.path().join("crew.toml");
    let text = r#"
[ssh]
config = "lab_config"
host_keys = "strict"
connect_timeout = "5s"
[limits]
heartbeat = "1s"
silence = "4s"
[host.zoe]
ssh = "builder@lab1"
work = "/srv/crewboss"
slots = 8
tags = ["kvm", "big-memory"]
machines = "/srv/machines"
accel = "tcg"
toolchains.riscv64 = "/opt/riscv/bin/riscv64-gcc"
[host.pod]
command = ["kubectl", "exec", "-i", "builder-0", "--"]
[host.here]
local = true
"#;
    std::fs::write(&path, text).unwrap();
    let mut crew = crew_at(&path).unwrap();
    let config = crew.ssh.config.take().unwrap();
    assert_eq!(config.path, directory.path().join("lab_config"));
    assert_eq!(config.content, std::fs::read(&config.path).unwrap());
    assert_eq!((crew.ssh.host_keys, crew.ssh.connect_timeout), (HostKeys::Strict, Duration::from_secs(5)));
    assert_eq!(crew.timing.silence, Duration::from_secs(4));
    let names: Vec<&str> = crew.hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!(names, ["zoe", "pod", "here"]);
    assert_eq!(crew.hosts[0].transport, Transport::Ssh("builder@lab1".to_owned()));
    assert_eq!((crew.hosts[0].slots, crew.hosts[0].tags.len()), (Some(8), 2));
    assert_eq!(crew.hosts[0].toolchains.len(), 1);
    assert_eq!(crew.hosts[0].machines.as_deref(), Some("/srv/machines"));
    assert_eq!(crew.hosts[0].accel, AccelChoice::Only(Accelerator::Tcg));
    assert_eq!((&crew.hosts[1].machines, crew.hosts[1].accel), (&None, AccelChoice::Auto));
    assert_eq!(crew.hosts[2].transport, Transport::Local);
    let refused = select_hosts(&mut crew, &["pot".to_owned()], "crew.toml").unwrap_err().to_string();
    assert_eq!(refused, "crew.toml has no host \"pot\"\n  hint: did you mean pod?");
    select_hosts(&mut crew, &["pod".to_owned()], "crew.toml").unwrap();
    assert_eq!(crew.hosts.len(), 1);
}

#[test]
fn a_crew_without_a_file_is_this_computer() {
    let crew = local_crew();
    assert_eq!((crew.hosts.len(), &crew.hosts[0].transport), (1, &Transport::Local));
    assert_eq!(crew.hosts[0].name.as_str(), "local");
}

#[test]
fn a_crew_file_that_is_wrong_is_refused_with_place_and_hint() {
    let texts = [
        "",
        "[host.a]\n",
        "[host.a]\nssh = \"x\"\nlocal = true\n",
        "[host.a]\nlocal = false\n",
        "[host.a]\nssh = \"\"\n",
        "[host.a]\nssh = \"-oProxyCommand=x\"\n",
        "[host.a]\nssh = \"x -p 22\"\n",
        "[host.a]\ncommand = []\n",
        "[host.a]\ncommand = \"docker exec\"\n",
        "[host.a]\nssh = \"x\"\nslots = 0\n",
        "[host.a]\nssh = \"x\"\nslots = 100000\n",
        "[host.a]\nssh = \"x\"\nslots = \"8\"\n",
        "[host.a]\nssh = \"x\"\nwork = \"crew\"\n",
        "[host.a]\nssh = \"x\"\nwork = \"/\"\n",
        "[host.a]\nssh = \"x\"\nmachines = \"machines\"\n",
        "[host.a]\nssh = \"x\"\naccel = \"hvf\"\n",
        "[host.a]\nssh = \"x\"\nslot = 4\n",
        "[host.a]\nssh = \"x\"\ntags = [\"a\", \"b c\"]\n",
        "[host.a]\nssh = \"x\"\ntoolchains.\"x/y\" = \"gcc\"\n",
        "[host.a]\nssh = \"x\"\ntoolchains.x = \"\"\n",
        "[host.\"a/b\"]\nssh = \"x\"\n",
        "[hosts.a]\nssh = \"x\"\n",
        "[ssh]\nhost_keys = \"no\"\n[host.a]\nlocal = true\n",
        "[ssh]\nconnect_timeout = \"1ms\"\n[host.a]\nlocal = true\n",
        "[ssh]\nconfig = \"nowhere\"\n[host.a]\nlocal = true\n",
        "[limits]\nheartbeat = \"1ms\"\n[host.a]\nlocal = true\n",
        "[limits]\nheartbeat = \"30s\"\n[host.a]\nlocal = true\n",
    ];
    insta::assert_snapshot!(errors(&texts, crew), @r#"
crew.toml has no host
  hint: the smallest one is
    [host.lab1]
    ssh = "user@lab1"

crew.toml:1:7: host a does not say how it is reached
  |
1 | [host.a]
  |       ^
  hint: give it one of `ssh = "user@host"`, `command = ["program", ...]`, `local = true`

crew.toml:1:7: host a is reached in more than one way
  |
1 | [host.a]
  |       ^
  hint: keep one of `ssh`, `command` and `local`

crew.toml:2:9: `local` can only be true
  |
2 | local = false
  |         ^^^^^
  hint: a host that is not this computer has `ssh` or `command` instead

crew.toml:2:7: "" is no destination: it is empty
  |
2 | ssh = ""
  |       ^^
  hint: write it as for `ssh` itself: "host", "user@host" or "ssh://user@host:port"; options belong into the file named by `config` in [ssh]

crew.toml:2:7: "-oProxyCommand=x" is no destination: it begins with a dash, which `ssh` would take for an option
  |
2 | ssh = "-oProxyCommand=x"
  |       ^^^^^^^^^^^^^^^^^^
  hint: write it as for `ssh` itself: "host", "user@host" or "ssh://user@host:port"; options belong into the file named by `config` in [ssh]

crew.toml:2:7: "x -p 22" is no destination: it has a space or a control character
  |
2 | ssh = "x -p 22"
  |       ^^^^^^^^^
  hint: write it as for `ssh` itself: "host", "user@host" or "ssh://user@host:port"; options belong into the file named by `config` in [ssh]

crew.toml:2:11: `command` names no program
  |
2 | command = []
  |           ^^
  hint: the words that are put before the command on the host, as in ["docker", "exec", "-i", "box"]

crew.toml:2:11: invalid type: string "docker exec", expected a list in brackets, such as ["one", "two"]
  |
2 | command = "docker exec"
  |           ^^^^^^^^^^^^^

crew.toml:3:9: 0 is not between 1 and 65536
  |
3 | slots = 0
  |         ^
  hint: leave a host out with --host, not by giving it no slots

crew.toml:3:9: 100000 is not between 1 and 65536
  |
3 | slots = 100000
  |         ^^^^^^

crew.toml:3:9: invalid type: string "8", expected a whole number
  |
3 | slots = "8"
  |         ^^^

crew.toml:3:8: "crew" cannot be a work directory: it does not begin with `/`
  |
3 | work = "crew"
  |        ^^^^^^
  hint: it is an absolute path on the host

crew.toml:3:8: "/" cannot be a work directory: it is the root directory
  |
3 | work = "/"
  |        ^^^
  hint: it is an absolute path on the host

crew.toml:3:12: "machines" cannot be a directory of machines: it does not begin with `/`
  |
3 | machines = "machines"
  |            ^^^^^^^^^^
  hint: it is an absolute path on the host

crew.toml:3:9: there is no accelerator "hvf"; it is "auto", "kvm" or "tcg"
  |
3 | accel = "hvf"
  |         ^^^^^
  hint: "auto" takes KVM if a trial guest runs in it, else software

crew.toml:3:1: unknown key `slot`, expected one of `ssh`, `command`, `local`, `work`, `slots`, `machines`, `accel`, `tags`, `toolchains`
  |
3 | slot = 4
  | ^^^^
  hint: did you mean `slots`?

crew.toml:3:14: "b c" has the character ' '; names are made of letters, digits and `. _ + -`
  |
3 | tags = ["a", "b c"]
  |              ^^^^^

crew.toml:3:12: "x/y" has the character '/'; names are made of letters, digits and `. _ + -`
  |
3 | toolchains."x/y" = "gcc"
  |            ^^^^^

crew.toml:3:16: toolchain x needs the name or path of its compiler
  |
3 | toolchains.x = ""
  |                ^^

crew.toml:1:7: "a/b" has the character '/'; names are made of letters, digits and `. _ + -`
  |
1 | [host."a/b"]
  |       ^^^^^

crew.toml:1:2: unknown key `hosts`, expected one of `ssh`, `limits`, `host`
  |
1 | [hosts.a]
  |  ^^^^^
  hint: each host has a table of its own: [host.NAME]

crew.toml:2:13: "no" is not known here; it is "accept-new" or "strict"
  |
2 | host_keys = "no"
  |             ^^^^
  hint: a host key that has changed is always refused

crew.toml:2:19: connecting must be given at least a second
  |
2 | connect_timeout = "1ms"
  |                   ^^^^^

crew.toml:2:10: cannot read nowhere: No such file or directory (os error 2)
  |
2 | config = "nowhere"
  |          ^^^^^^^^^
  hint: a relative path starts from the directory of the crew file

crew.toml:2:13: a heartbeat must be at least 10 ms
  |
2 | heartbeat = "1ms"
  |             ^^^^^

crew.toml:2:13: `silence` (20s) must be at least two heartbeats (30s each)
  |
2 | heartbeat = "30s"
  |             ^^^^^
  hint: otherwise a host that is well counts as dead
"#);
}
