//! `crew.toml`: the hosts and how to reach them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use crewboss_boss::crew::{Crew, Host, HostKeys, Limits, Ssh, SshConfig, Timing, Transport};
use crewboss_protocol::limits::{ARTIFACTS_MAX, NUMBER_MAX};
use crewboss_protocol::machine::{AccelChoice, Accelerator};
use crewboss_protocol::message::TaskLimits;
use crewboss_protocol::{HostName, Name};
use serde::Deserialize;
use toml::Spanned;

use super::document::{Document, Ordered};
use super::error::{ConfigError, nearest};
use super::trust;
use super::units::{Amount, TimeSpan};

/// Keys that are not known, with what to say about them.
const LATER: &[(&str, &str)] = &[("hosts", "each host has a table of its own: [host.NAME]")];

/// Most slots of one host; a worker refuses more.
const SLOTS_MAX: i64 = 65_536;

/// Shortest heartbeat that a worker accepts.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);

/// Fewest lines in a second that a host must be allowed: what it says of tasks that end one after
/// the other.
const MESSAGES_MIN: i64 = 1000;

/// Shortest time after which something can be said to stand still.
const WATCH_MIN: Duration = Duration::from_secs(1);

/// Longest time for connecting that still says something.
const CONNECT_TIMEOUT_MIN: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CrewFile {
    #[serde(default)]
    ssh: SshTable,
    #[serde(default)]
    limits: LimitsTable,
    #[serde(default)]
    host: Ordered<HostTable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SshTable {
    config: Option<Spanned<String>>,
    host_keys: Option<Spanned<String>>,
    connect_timeout: Option<Spanned<TimeSpan>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    heartbeat: Option<Spanned<TimeSpan>>,
    silence: Option<Spanned<TimeSpan>>,
    stall: Option<Spanned<TimeSpan>>,
    standstill: Option<Spanned<TimeSpan>>,
    log: Option<Spanned<Amount>>,
    artifacts: Option<Spanned<i64>>,
    artifact_bytes: Option<Spanned<Amount>>,
    host_log: Option<Spanned<Amount>>,
    messages: Option<Spanned<i64>>,
    shell: Option<Spanned<TimeSpan>>,
    ready: Option<Spanned<TimeSpan>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostTable {
    ssh: Option<Spanned<String>>,
    command: Option<Spanned<Vec<String>>>,
    local: Option<Spanned<bool>>,
    work: Option<Spanned<String>>,
    slots: Option<Spanned<i64>>,
    machines: Option<Spanned<String>>,
    accel: Option<Spanned<String>>,
    #[serde(default)]
    tags: Vec<Spanned<String>>,
    #[serde(default)]
    toolchains: Ordered<Spanned<String>>,
}

/// What people write in place of what a crew file has.
fn mistake(file: &toml::Table) -> Option<&'static str> {
    let hosts = file.get("host")?.as_table()?;
    let named = hosts.values().any(toml::Value::is_table);
    (!named).then_some("each host has a table of its own, with its name: [host.NAME]")
}

/// Understands a crew file.
pub fn load_crew(document: Document, home: Option<&Path>) -> Result<Crew, ConfigError> {
    let file: CrewFile = document.parse(LATER, mistake)?;
    if file.host.0.is_empty() {
        return Err(ConfigError::NoHosts { path: document.path });
    }
    let ssh = ssh_settings(&document, &file.ssh, home)?;
    let timing = timing(&document, &file.limits)?;
    let limits = amounts(&document, &file.limits)?;
    let hosts: Result<Vec<Host>, ConfigError> =
        file.host.0.iter().map(|(name, table)| host(&document, name, table)).collect();
    Ok(Crew { hosts: hosts?, ssh, timing, limits })
}

/// The crew when there is no crew file: this computer.
pub fn local_crew() -> Crew {
    let host = Host {
        name: local_name(),
        transport: Transport::Local,
        work: None,
        slots: None,
        machines: None,
        accel: AccelChoice::Auto,
        tags: BTreeSet::new(),
        toolchains: BTreeMap::new(),
    };
    Crew { hosts: vec![host], ssh: Ssh::default(), timing: Timing::default(), limits: Limits::default() }
}

/// The name of this computer in a crew that has no file.
#[expect(clippy::expect_used, reason = "the constant is a name; a test makes one")]
fn local_name() -> HostName {
    "local".parse().expect("a name")
}

fn ssh_settings(document: &Document, table: &SshTable, home: Option<&Path>) -> Result<Ssh, ConfigError> {
    let mut ssh = Ssh::default();
    if let Some(config) = &table.config {
        ssh.config = Some(ssh_config(document, config, home)?);
    }
    if let Some(keys) = &table.host_keys {
        ssh.host_keys = match keys.get_ref().as_str() {
            "accept-new" => HostKeys::AcceptNew,
            "strict" => HostKeys::Strict,
            other => {
                let message = format!("{other:?} is not known here; it is \"accept-new\" or \"strict\"");
                let hint = "a host key that has changed is always refused".to_owned();
                return Err(document.wrong(keys.span(), message, Some(hint)));
            }
        };
    }
    if let Some(timeout) = &table.connect_timeout {
        if timeout.get_ref().0 < CONNECT_TIMEOUT_MIN {
            return Err(document.wrong(timeout.span(), "connecting must be given at least a second", None));
        }
        ssh.connect_timeout = timeout.get_ref().0;
    }
    Ok(ssh)
}

/// Longest configuration of ssh that is read.
const SSH_CONFIG_BYTES_MAX: u64 = 4 << 20;

/// What is named is relative to the crew file; `~/` is the home directory.
fn ssh_config(
    document: &Document,
    config: &Spanned<String>,
    home: Option<&Path>,
) -> Result<SshConfig, ConfigError> {
    let text = config.get_ref();
    let path = match (text.strip_prefix("~/"), home) {
        (Some(below), Some(home)) => home.join(below),
        _ => document.directory().join(text),
    };
    // It can name commands as well.
    match trust::read(&path, document.way(), SSH_CONFIG_BYTES_MAX) {
        Ok(content) => Ok(SshConfig { path: std::path::absolute(&path).unwrap_or(path), content }),
        Err(error) => {
            let message = error.message();
            let hint = || "a relative path starts from the directory of the crew file".to_owned();
            Err(document.wrong(config.span(), message, Some(error.hint.unwrap_or_else(hint))))
        }
    }
}

fn timing(document: &Document, table: &LimitsTable) -> Result<Timing, ConfigError> {
    let default = Timing::default();
    let value = |key: &Option<Spanned<TimeSpan>>| key.as_ref().map(|span| span.get_ref().0);
    let heartbeat = value(&table.heartbeat).unwrap_or(default.heartbeat);
    let silence = value(&table.silence).unwrap_or(default.silence);
    let place = |key: &Option<Spanned<TimeSpan>>| key.as_ref().map(Spanned::span);
    if heartbeat < HEARTBEAT_MIN {
        let span = place(&table.heartbeat).unwrap_or(0..0);
        return Err(document.wrong(span, "a heartbeat must be at least 10 ms", None));
    }
    if silence < heartbeat * 2 {
        let span = place(&table.silence).or(place(&table.heartbeat)).unwrap_or(0..0);
        let message = format!("`silence` ({silence:?}) must be at least two heartbeats ({heartbeat:?} each)");
        let hint = "otherwise a host that is well counts as dead".to_owned();
        return Err(document.wrong(span, message, Some(hint)));
    }
    let at_least = |key: &Option<Spanned<TimeSpan>>, name: &str, default: Duration| match key {
        Some(span) if span.get_ref().0 < WATCH_MIN => {
            let message =
                format!("`{name}` must be at least a second: what is well would count as standing still");
            Err(document.wrong(span.span(), message, None))
        }
        Some(span) => Ok(span.get_ref().0),
        None => Ok(default),
    };
    let stall = at_least(&table.stall, "stall", default.stall)?;
    let standstill = at_least(&table.standstill, "standstill", default.standstill)?;
    let shell = at_least(&table.shell, "shell", default.shell)?;
    let ready = at_least(&table.ready, "ready", default.ready)?;
    Ok(Timing { heartbeat, silence, stall, standstill, shell, ready })
}

/// How much tasks and hosts may send.
fn amounts(document: &Document, table: &LimitsTable) -> Result<Limits, ConfigError> {
    let default = Limits::default();
    // Half of what a message can say: what is counted besides has room in the other half.
    let most = NUMBER_MAX / 2;
    let bytes = |key: &Option<Spanned<Amount>>, default: u64| match key {
        Some(amount) if amount.get_ref().0 > most => {
            let message = format!("the most that can be counted is {most} bytes");
            Err(document.wrong(amount.span(), message, None))
        }
        key => Ok(key.as_ref().map_or(default, |amount| amount.get_ref().0)),
    };
    let number = |key: &Option<Spanned<i64>>, default: u32, min: i64, max: i64| match key {
        Some(number) => {
            let value =
                u32::try_from(*number.get_ref()).ok().filter(|_| (min..=max).contains(number.get_ref()));
            let wrong = || format!("{} is not between {min} and {max}", number.get_ref());
            value.ok_or_else(|| document.wrong(number.span(), wrong(), None))
        }
        None => Ok(default),
    };
    let task = TaskLimits {
        log_bytes: bytes(&table.log, default.task.log_bytes)?,
        artifacts: number(
            &table.artifacts,
            default.task.artifacts,
            0,
            i64::try_from(ARTIFACTS_MAX).unwrap_or(i64::MAX),
        )?,
        artifact_bytes: bytes(&table.artifact_bytes, default.task.artifact_bytes)?,
    };
    Ok(Limits {
        task,
        host_log: bytes(&table.host_log, default.host_log)?,
        messages: number(&table.messages, default.messages, MESSAGES_MIN, i64::from(u32::MAX))?,
    })
}

fn host(document: &Document, key: &Spanned<String>, table: &HostTable) -> Result<Host, ConfigError> {
    let name: HostName = key.get_ref().parse().map_err(|error| refused(document, key.span(), &error))?;
    let transport = transport(document, key, table)?;
    let tags = table
        .tags
        .iter()
        .map(|tag| tag.get_ref().parse::<Name>().map_err(|error| refused(document, tag.span(), &error)));
    Ok(Host {
        name,
        transport,
        work: table.work.as_ref().map(|work| directory(document, work, "a work directory")).transpose()?,
        machines: table
            .machines
            .as_ref()
            .map(|machines| directory(document, machines, "a directory of machines"))
            .transpose()?,
        accel: table.accel.as_ref().map_or(Ok(AccelChoice::Auto), |accel| accelerator(document, accel))?,
        slots: table.slots.as_ref().map(|slots| slot_cap(document, slots)).transpose()?,
        tags: tags.collect::<Result<_, _>>()?,
        toolchains: toolchains(document, &table.toolchains)?,
    })
}

fn refused(document: &Document, span: Range<usize>, error: &dyn std::error::Error) -> ConfigError {
    document.wrong(span, error.to_string(), None)
}

fn transport(
    document: &Document,
    key: &Spanned<String>,
    table: &HostTable,
) -> Result<Transport, ConfigError> {
    let name = key.get_ref();
    match (&table.ssh, &table.command, &table.local) {
        (Some(ssh), None, None) => destination(document, ssh).map(Transport::Ssh),
        (None, Some(command), None) => words(document, command).map(Transport::Command),
        (None, None, Some(local)) if *local.get_ref() => Ok(Transport::Local),
        (None, None, Some(local)) => {
            let hint = "a host that is not this computer has `ssh` or `command` instead".to_owned();
            Err(document.wrong(local.span(), "`local` can only be true", Some(hint)))
        }
        (None, None, None) => {
            let message = format!("host {name} does not say how it is reached");
            let hint = "give it one of `ssh = \"user@host\"`, `command = [\"program\", ...]`, `local = true`";
            Err(document.wrong(key.span(), message, Some(hint.to_owned())))
        }
        _ => {
            let message = format!("host {name} is reached in more than one way");
            let hint = "keep one of `ssh`, `command` and `local`".to_owned();
            Err(document.wrong(key.span(), message, Some(hint)))
        }
    }
}

/// What `ssh` is given as its destination. A leading dash would be taken for an option.
fn destination(document: &Document, ssh: &Spanned<String>) -> Result<String, ConfigError> {
    let text = ssh.get_ref();
    let why = if text.is_empty() {
        "it is empty"
    } else if text.starts_with('-') {
        "it begins with a dash, which `ssh` would take for an option"
    } else if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        "it has a space or a control character"
    } else {
        return Ok(text.clone());
    };
    let hint = "write it as for `ssh` itself: \"host\", \"user@host\" or \"ssh://user@host:port\"; \
                options belong into the file named by `config` in [ssh]";
    Err(document.wrong(ssh.span(), format!("{text:?} is no destination: {why}"), Some(hint.to_owned())))
}

fn words(document: &Document, command: &Spanned<Vec<String>>) -> Result<Vec<String>, ConfigError> {
    let words = command.get_ref();
    if words.first().is_none_or(|program| program.trim().is_empty()) {
        let hint = "the words that are put before the command on the host, as in [\"docker\", \"exec\", \"-i\", \"box\"]";
        return Err(document.wrong(command.span(), "`command` names no program", Some(hint.to_owned())));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(document.wrong(command.span(), "a word of `command` has a NUL character", None));
    }
    Ok(words.clone())
}

/// A directory on the host, which is called `what` in an error.
fn directory(document: &Document, path: &Spanned<String>, what: &str) -> Result<String, ConfigError> {
    let text = path.get_ref();
    let why = if !text.starts_with('/') {
        "it does not begin with `/`"
    } else if text.split('/').any(|part| part == "..") {
        "it has a `..`"
    } else if text.chars().any(char::is_control) {
        "it has a control character"
    } else if text.trim_matches('/').is_empty() {
        "it is the root directory"
    } else {
        return Ok(text.clone());
    };
    let message = format!("{text:?} cannot be {what}: {why}");
    Err(document.wrong(path.span(), message, Some("it is an absolute path on the host".to_owned())))
}

fn accelerator(document: &Document, accel: &Spanned<String>) -> Result<AccelChoice, ConfigError> {
    match accel.get_ref().as_str() {
        "auto" => Ok(AccelChoice::Auto),
        "kvm" => Ok(AccelChoice::Only(Accelerator::Kvm)),
        "tcg" => Ok(AccelChoice::Only(Accelerator::Tcg)),
        other => {
            let message = format!("there is no accelerator {other:?}; it is \"auto\", \"kvm\" or \"tcg\"");
            let hint = "\"auto\" takes KVM if a trial guest runs in it, else software".to_owned();
            Err(document.wrong(accel.span(), message, Some(hint)))
        }
    }
}

fn slot_cap(document: &Document, slots: &Spanned<i64>) -> Result<u32, ConfigError> {
    let value = *slots.get_ref();
    let cap = u32::try_from(value).ok().filter(|_| (1..=SLOTS_MAX).contains(&value));
    cap.ok_or_else(|| {
        let hint = "leave a host out with --host, not by giving it no slots".to_owned();
        let hint = (value == 0).then_some(hint);
        document.wrong(slots.span(), format!("{value} is not between 1 and {SLOTS_MAX}"), hint)
    })
}

fn toolchains(
    document: &Document,
    table: &Ordered<Spanned<String>>,
) -> Result<BTreeMap<Name, String>, ConfigError> {
    let mut all = BTreeMap::new();
    for (key, compiler) in &table.0 {
        let name: Name = key.get_ref().parse().map_err(|error| refused(document, key.span(), &error))?;
        let path = compiler.get_ref();
        if path.trim().is_empty() || path.chars().any(char::is_control) {
            let message = format!("toolchain {name} needs the name or path of its compiler");
            return Err(document.wrong(compiler.span(), message, None));
        }
        all.insert(name, path.clone());
    }
    Ok(all)
}

/// Keeps the hosts that were named, in the order of the crew; none named keeps all.
pub fn select_hosts(crew: &mut Crew, wanted: &[String], place: &str) -> Result<(), ConfigError> {
    if wanted.is_empty() {
        return Ok(());
    }
    for name in wanted {
        if !crew.hosts.iter().any(|host| host.name.as_str() == name) {
            let names = || crew.hosts.iter().map(|host| host.name.as_str());
            return Err(unknown(place, "host", name, names));
        }
    }
    crew.hosts.retain(|host| wanted.iter().any(|name| name == host.name.as_str()));
    Ok(())
}

/// An error about a name that is not there, with those that are.
pub fn unknown<'a, I: Iterator<Item = &'a str>>(
    place: &str,
    what: &'static str,
    name: &str,
    names: impl Fn() -> I,
) -> ConfigError {
    /// So many names are listed in full.
    const LISTED_MAX: usize = 8;
    let few = names().count() <= LISTED_MAX;
    ConfigError::Unknown {
        place: place.to_owned(),
        what,
        name: name.to_owned(),
        near: nearest(name, names()).into_iter().map(str::to_owned).collect(),
        all: if few { names().map(str::to_owned).collect() } else { Vec::new() },
    }
}
