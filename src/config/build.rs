//! `build.toml`: what to build.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crewboss_boss::plan::{Needs, Selection, TargetPlan, UploadCommand};
use crewboss_host::artifacts::pattern::Pattern;
use crewboss_protocol::limits::{HOLD, STAGES_MAX, TARGETS_MAX, WORD_BYTES_MAX};
use crewboss_protocol::message::is_variable;
use crewboss_protocol::{Command, Environment, Feature, Name, Stage, Target, Validate};
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use toml::Spanned;

use super::crew::unknown;
use super::document::{Document, Ordered};
use super::environment::{EnvironmentValue, environment};
use super::error::{ConfigError, nearest};
use super::units::{Amount, TimeSpan, TimeSpanOrNone};
use super::upload::{UploadTable, uploads};

/// Time limit of a target that names none.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);

/// Variables whose names begin so are set by crewboss.
pub const RESERVED: &str = "CREWBOSS_";

/// Keys that are not known, with what to say about them.
const LATER: &[(&str, &str)] = &[
    ("targets", "each target has a table of its own: [target.NAME]"),
    ("commands", "a target's commands are its stages: stages.build = \"make\""),
    ("command", "a target's commands are its stages: stages.build = \"make\""),
    ("env", "did you mean `variables`?"),
    ("tags", "what a host must have is listed under `needs`: needs.tags = [\"...\"]"),
    ("features", "what a host must have is listed under `needs`: needs.features = [\"...\"]"),
    ("memory", "what a host must have is listed under `needs`: needs.memory = \"4 GiB\""),
    ("disk", "what a host must have is listed under `needs`: needs.disk = \"20 GiB\""),
    ("machine", "the machine that tasks run in is their environment: environment = { machine = \"NAME\" }"),
    ("machines", "the machine that tasks run in is their environment: environment = { machine = \"NAME\" }"),
    ("uploads", "each type of upload has a table of its own: [upload.TYPE]"),
];

/// Features that a target may ask for.
const FEATURES: [(&str, Feature); 5] = [
    ("btrfs", Feature::Btrfs),
    ("reflink", Feature::Reflink),
    ("cgroup", Feature::Cgroup),
    ("kvm", Feature::Kvm),
    ("namespaces", Feature::Namespaces),
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BuildFile {
    commits: Option<Spanned<String>>,
    environment: Option<Spanned<EnvironmentValue>>,
    timeout: Option<TimeSpan>,
    hold: Option<TimeSpanOrNone>,
    #[serde(default)]
    variables: Ordered<Spanned<String>>,
    #[serde(default)]
    target: Ordered<TargetTable>,
    #[serde(default)]
    upload: Ordered<UploadTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetTable {
    toolchain: Option<Spanned<String>>,
    incremental: Option<Spanned<bool>>,
    environment: Option<Spanned<EnvironmentValue>>,
    timeout: Option<TimeSpan>,
    #[serde(default)]
    stages: Ordered<Spanned<CommandValue>>,
    #[serde(default)]
    variables: Ordered<Spanned<String>>,
    #[serde(default)]
    artifacts: Vec<Spanned<String>>,
    #[serde(default)]
    sizes: Vec<Spanned<String>>,
    #[serde(default)]
    priority: u32,
    #[serde(default)]
    needs: NeedsTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NeedsTable {
    #[serde(default)]
    tags: Vec<Spanned<String>>,
    #[serde(default)]
    features: Vec<Spanned<String>>,
    memory: Option<Amount>,
    disk: Option<Amount>,
}

/// What a build file asks for.
#[derive(Debug)]
pub struct BuildPlan {
    /// The file.
    pub path: PathBuf,
    /// The commits, unless the command line names others.
    pub selection: Selection,
    /// The targets, in the order of the file.
    pub targets: Vec<TargetPlan>,
    /// How long a guest is kept for a person; not at all if zero.
    pub hold: Duration,
    /// Commands for uploads, by type.
    pub uploads: BTreeMap<Name, UploadCommand>,
}

impl BuildPlan {
    /// Keeps the targets that were named, in the order of the file; none named keeps all.
    pub fn select(&mut self, wanted: &[String]) -> Result<(), ConfigError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let known: BTreeSet<&str> = self.targets.iter().map(|plan| plan.target.name.as_str()).collect();
        if let Some(name) = wanted.iter().find(|name| !known.contains(name.as_str())) {
            let names = || self.targets.iter().map(|plan| plan.target.name.as_str());
            return Err(unknown(&self.path.display().to_string(), "target", name, names));
        }
        let wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
        self.targets.retain(|plan| wanted.contains(plan.target.name.as_str()));
        Ok(())
    }
}

/// What people write in place of what a build file has.
fn mistake(file: &toml::Table) -> Option<&'static str> {
    if file.contains_key("host") {
        return Some("hosts are named in a file of their own, crew.toml");
    }
    let targets = file.get("target")?.as_table()?;
    if targets.contains_key("stages") || !targets.values().any(toml::Value::is_table) {
        return Some("each target has a table of its own, with its name: [target.NAME]");
    }
    let has = |key: &str| targets.values().filter_map(|target| target.get(key)).collect::<Vec<_>>();
    if !has("commits").is_empty() {
        return Some("`commits` are those of all targets, and stand above the first table");
    }
    let unnamed = has("stages").into_iter().any(|stages| !stages.is_table());
    unnamed.then_some("each stage has a name: stages.build = \"make\"")
}

/// Understands a build file.
pub fn load_build(document: Document) -> Result<BuildPlan, ConfigError> {
    let file: BuildFile = document.parse(LATER, mistake)?;
    if file.target.0.is_empty() {
        return Err(ConfigError::NoTargets { path: document.path });
    }
    if let Some((key, _)) = file.target.0.get(TARGETS_MAX) {
        let message = format!("there are more than {TARGETS_MAX} targets");
        return Err(document.wrong(key.span(), message, None));
    }
    let selection = match &file.commits {
        None => Selection::WorkingTree,
        Some(commits) => selection(commits.get_ref())
            .map_err(|why| document.wrong(commits.span(), why, Some(RANGE_HINT.to_owned())))?,
    };
    let reader = Reader {
        document: &document,
        environment: file
            .environment
            .as_ref()
            .map_or_else(|| Ok(Environment::default()), |value| environment(&document, value))?,
        timeout: file.timeout.map_or(TIMEOUT_DEFAULT, |span| span.0),
        variables: variables(&document, &file.variables)?,
    };
    let targets: Result<Vec<TargetPlan>, ConfigError> =
        file.target.0.iter().map(|(key, table)| reader.target(key, table)).collect();
    let targets = targets?;
    let uploads = uploads(&document, &file.upload)?;
    let hold = file.hold.map_or(HOLD, |span| span.0);
    Ok(BuildPlan { targets, selection, hold, uploads, path: document.path })
}

const RANGE_HINT: &str = "any git revision or range will do: \"HEAD\", \"v1.2\", \"origin/main..HEAD\"; \
                          without it the working tree is built";

/// Reads what selects the commits, from the file or from the command line. git says later whether
/// it names anything.
pub fn selection(text: &str) -> Result<Selection, String> {
    let why = if text.trim().is_empty() {
        "it is empty"
    } else if text.starts_with('-') {
        "it begins with a dash"
    } else if text.chars().any(char::is_control) {
        "it has a control character"
    } else {
        return Ok(Selection::Range(text.to_owned()));
    };
    Err(format!("{text:?} names no commits: {why}"))
}

struct Reader<'a> {
    document: &'a Document,
    environment: Environment,
    timeout: Duration,
    variables: BTreeMap<String, String>,
}

impl Reader<'_> {
    fn target(&self, key: &Spanned<String>, table: &TargetTable) -> Result<TargetPlan, ConfigError> {
        let name = self.name(key)?;
        let timeout = table.timeout.map_or(self.timeout, |span| span.0);
        let mut all_variables = self.variables.clone();
        all_variables.extend(variables(self.document, &table.variables)?);
        let environment = self.environment(table)?;
        let target = Target {
            toolchain: table.toolchain.as_ref().map(|name| self.name(name)).transpose()?,
            incremental: self.incremental(key, table, &environment)?,
            environment,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            stages: self.stages(key, table)?,
            variables: all_variables,
            artifacts: self.globs(&table.artifacts)?,
            sizes: self.globs(&table.sizes)?,
            name,
        };
        // What the worker would refuse must not get as far as a host.
        target.validate().map_err(|invalid| self.document.wrong(key.span(), invalid.to_string(), None))?;
        Ok(TargetPlan { target, needs: self.needs(&table.needs)?, priority: table.priority })
    }

    fn environment(&self, table: &TargetTable) -> Result<Environment, ConfigError> {
        match &table.environment {
            Some(value) => environment(self.document, value),
            None => Ok(self.environment.clone()),
        }
    }

    /// Whether the target is incremental, which one in a machine cannot be: its guest is gone
    /// afterwards.
    fn incremental(
        &self,
        key: &Spanned<String>,
        table: &TargetTable,
        environment: &Environment,
    ) -> Result<bool, ConfigError> {
        let Some(incremental) = table.incremental.as_ref().filter(|wanted| *wanted.get_ref()) else {
            return Ok(false);
        };
        if let Environment::Machine(machine) = environment {
            let message =
                format!("target {} cannot be incremental in machine {}", key.get_ref(), machine.name);
            let hint = "a guest is gone after its task, and nothing is left to start from; remove `incremental`, or give the \
                        target environment = \"snapshot\"";
            return Err(self.document.wrong(incremental.span(), message, Some(hint.to_owned())));
        }
        Ok(true)
    }

    fn name(&self, text: &Spanned<String>) -> Result<Name, ConfigError> {
        let parsed = text.get_ref().parse::<Name>();
        parsed.map_err(|error| self.document.wrong(text.span(), error.to_string(), None))
    }

    fn stages(&self, key: &Spanned<String>, table: &TargetTable) -> Result<Vec<Stage>, ConfigError> {
        let stages = &table.stages.0;
        if stages.is_empty() {
            let message = format!("target {} has no stages, so nothing would be built", key.get_ref());
            let hint = "say what to run: stages.build = \"make\"".to_owned();
            return Err(self.document.wrong(key.span(), message, Some(hint)));
        }
        if let Some((stage, _)) = stages.get(STAGES_MAX) {
            let message = format!("target {} has more than {STAGES_MAX} stages", key.get_ref());
            return Err(self.document.wrong(stage.span(), message, None));
        }
        let stage = |(name, command): &(Spanned<String>, Spanned<CommandValue>)| {
            command.get_ref().0.validate().map_err(|invalid| {
                let message = format!("stage {}: {invalid}", name.get_ref());
                self.document.wrong(command.span(), message, None)
            })?;
            Ok(Stage { name: self.name(name)?, command: command.get_ref().0.clone() })
        };
        stages.iter().map(stage).collect()
    }

    fn globs(&self, globs: &[Spanned<String>]) -> Result<Vec<String>, ConfigError> {
        let check = |glob: &Spanned<String>| {
            let text = glob.get_ref();
            Pattern::parse(text).map(|_| text.clone()).map_err(|error| {
                let message = format!("{text:?} cannot name files of a task: {error}");
                self.document.wrong(glob.span(), message, error.hint)
            })
        };
        globs.iter().map(check).collect()
    }

    fn needs(&self, table: &NeedsTable) -> Result<Needs, ConfigError> {
        let feature = |word: &Spanned<String>| {
            let text = word.get_ref().as_str();
            let known = FEATURES.iter().find(|(name, _)| *name == text).map(|(_, feature)| *feature);
            known.ok_or_else(|| {
                let names = FEATURES.map(|(name, _)| name);
                let message = format!("there is no feature {text:?}; there are {}", names.join(", "));
                let near = nearest(text, names);
                let hint =
                    near.first().map(|near| format!("did you mean \"{near}\"?")).unwrap_or_else(|| {
                        "a word of your own is a tag: `tags` in crew.toml, `needs.tags` here".to_owned()
                    });
                self.document.wrong(word.span(), message, Some(hint))
            })
        };
        Ok(Needs {
            features: table.features.iter().map(feature).collect::<Result<_, _>>()?,
            tags: table.tags.iter().map(|tag| self.name(tag)).collect::<Result<_, _>>()?,
            memory: table.memory.map_or(0, |amount| amount.0),
            disk: table.disk.map_or(0, |amount| amount.0),
        })
    }
}

fn variables(
    document: &Document,
    table: &Ordered<Spanned<String>>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut all = BTreeMap::new();
    for (key, value) in &table.0 {
        let name = key.get_ref();
        if !is_variable(name) {
            let message = format!("{name:?} cannot be a variable's name");
            let hint = "letters, digits and `_`, no digit first".to_owned();
            return Err(document.wrong(key.span(), message, Some(hint)));
        }
        if name.starts_with(RESERVED) {
            let message = format!("{name} is set by crewboss itself");
            let hint = format!("variables of your own do not begin with {RESERVED}");
            return Err(document.wrong(key.span(), message, Some(hint)));
        }
        if value.get_ref().contains('\0') {
            return Err(document.wrong(
                value.span(),
                format!("the value of {name} has a NUL character"),
                None,
            ));
        }
        let bytes = name.len() + 1 + value.get_ref().len();
        if bytes > WORD_BYTES_MAX {
            let message =
                format!("{name} has {bytes} bytes with its name; a variable can have {WORD_BYTES_MAX}");
            let hint = "put it into a file of the repository".to_owned();
            return Err(document.wrong(value.span(), message, Some(hint)));
        }
        all.insert(name.clone(), value.get_ref().clone());
    }
    Ok(all)
}

/// A line for the shell, or the words of a program.
#[derive(Debug)]
struct CommandValue(Command);

impl<'de> Deserialize<'de> for CommandValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CommandVisitor).map(CommandValue)
    }
}

struct CommandVisitor;

impl<'de> Visitor<'de> for CommandVisitor {
    type Value = Command;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a line for the shell or a list of words, such as \"make all\" or [\"make\", \"all\"]")
    }

    fn visit_str<E: Error>(self, line: &str) -> Result<Command, E> {
        Ok(Command::Shell(line.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Command, A::Error> {
        let mut words = Vec::new();
        while let Some(word) = list.next_element()? {
            words.push(word);
        }
        Ok(Command::Words(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("build.toml");
        std::fs::write(&path, text).unwrap();
        load_build(Document::read(&path, crate::config::trust::Way::Named).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn what_no_program_could_be_given_is_refused_with_what_is_allowed() {
        let target = "[target.big]\nstages.build = \"make\"\n";
        let long = "x".repeat(3 << 20);
        let one = refused(&format!("{target}variables.LONG = \"{long}\"\n"));
        assert!(
            one.contains("3:18: LONG has 3145733 bytes with its name; a variable can have 131071"),
            "{one:.300}"
        );
        assert!(one.contains("hint: put it into a file"), "{one:.900}");
        let many: String =
            (0..30).map(|n| format!("variables.V{n} = \"{}\"\n", "x".repeat(100_000))).collect();
        let many = refused(&format!("{target}{many}"));
        assert!(
            many.contains(
                "1:9: variables: target big has 2931 KiB of variables and stages, and at most 512 KiB"
            ),
            "{many}"
        );
        let stage = refused(&format!("[target.big]\nstages.build = \"{long}\"\n"));
        assert!(stage.contains("stage build: command: it has 3145728 bytes in one piece"), "{stage:.300}");
        let nul = refused("[target.t]\nstages.build = \"a\\u0000b\"\n");
        assert!(nul.contains("2:16: stage build: command: it has a NUL"), "{nul}");
    }
}
