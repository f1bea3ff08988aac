//! The documents of a task in a guest: what to do, and how it went. The same whichever way they
//! travel.
//!
//! They are made of lines, a word and a value each, so that a guest that has nothing but a shell
//! can read and write them: a backslash in a value is written `\\` and a newline `\n`, which
//! `printf %b` undoes. The first line names the kind and the version of the format, the last one is
//! `end`: what lacks it was cut off.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::id::{Name, TaskRef, TreeId};
use crate::limits::{NUMBER_MAX, STAGES_MAX, TEXT_BYTES_MAX};
use crate::message::is_variable;
use crate::outcome::{StageExit, StageResult};
use crate::target::{Command, Stage};

/// The version of the format.
const FORMAT: &str = "1";

/// Pairs in one document, at most: versions, variables.
const PAIRS_MAX: usize = 1024;

/// How many things that are wrong with its artifacts are told of a task: a million of them say
/// less.
pub const PROBLEMS_MAX: usize = 16;

/// Why a document cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Something else, or another version.
    #[error("it does not begin with {expected:?}")]
    Kind {
        /// The first line that was expected.
        expected: String,
    },
    /// The last line is missing: it was cut off, or the disk of the guest was full.
    #[error("it is cut off: its last line is not `end`")]
    CutOff,
    /// A line that says nothing.
    #[error("line {line}: {why}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
}

/// What a guest is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskDocument {
    /// Which task and attempt.
    pub at: TaskRef,
    /// The name of its target.
    pub target: Name,
    /// The commit.
    pub commit: TreeId,
    /// For `$CREWBOSS_JOBS`.
    pub jobs: u32,
    /// Variables of the stages.
    pub variables: Vec<(String, String)>,
    /// What auxiliary machines have said of themselves: variables, too.
    pub served: Vec<Served>,
    /// The stages.
    pub stages: Vec<Stage>,
    /// Globs of artifacts.
    pub artifacts: Vec<String>,
    /// Files whose section sizes are wanted.
    pub sizes: Vec<String>,
}

/// What an auxiliary machine has said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// What the task calls it.
    pub name: Name,
    /// Variables, with their prefix.
    pub variables: Vec<(String, String)>,
}

/// How a task went in a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResultDocument {
    /// The stages that ran.
    pub stages: Vec<StageResult>,
    /// Largest resident size of one process, in KiB.
    pub rss_kib_max: u64,
    /// What `size` said.
    pub sizes: String,
    /// What is wrong with what the stages made, so that the task has failed: an artifact that
    /// cannot be brought out.
    pub problems: Vec<String>,
    /// What a person should know.
    pub message: String,
}

/// A document of pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// What a bootstrap reports: programs and their versions.
    Bootstrapped,
    /// What an auxiliary machine reports: variables without prefix.
    Environment,
}

impl TaskDocument {
    /// As text.
    pub fn to_text(&self) -> String {
        let mut text = Writer::new("task");
        text.line("task", &self.at.to_string());
        text.line("target", self.target.as_str());
        text.line("commit", &self.commit.to_string());
        text.line("jobs", &self.jobs.to_string());
        for (name, value) in &self.variables {
            text.line("variable", &format!("{name} {value}"));
        }
        for served in &self.served {
            // A header for people, and for whoever wants to know which is whose; the variables are
            // like all others.
            text.line("auxiliary", served.name.as_str());
            for (name, value) in &served.variables {
                text.line("variable", &format!("{name} {value}"));
            }
        }
        for stage in &self.stages {
            text.line("stage", stage.name.as_str());
            match &stage.command {
                Command::Shell(line) => text.line("shell", line),
                Command::Words(words) => words.iter().for_each(|word| text.line("word", word)),
            }
        }
        self.artifacts.iter().for_each(|glob| text.line("artifact", glob));
        self.sizes.iter().for_each(|glob| text.line("size", glob));
        text.end()
    }

    /// From text.
    ///
    /// # Errors
    /// If it is not what [`Self::to_text`] writes.
    pub fn parse(text: &str) -> Result<Self, DocumentError> {
        let (mut at, mut target, mut commit, mut jobs) = (None, None, None, 1);
        let (mut variables, mut served) = (Vec::new(), Vec::<Served>::new());
        let mut stages = Vec::<Stage>::new();
        let (mut artifacts, mut sizes) = (Vec::new(), Vec::new());
        for line in lines("task", text)? {
            let (number, word, value) = line?;
            let bad =
                |why: &dyn std::fmt::Display| DocumentError::Line { line: number, why: why.to_string() };
            match word {
                "task" => at = Some(value.parse().map_err(|error| bad(&error))?),
                "target" => target = Some(value.parse().map_err(|error| bad(&error))?),
                "commit" => commit = Some(value.parse().map_err(|error| bad(&error))?),
                "jobs" => jobs = value.parse().map_err(|error| bad(&error))?,
                "auxiliary" => {
                    let name = value.parse().map_err(|error| bad(&error))?;
                    served.push(Served { name, variables: Vec::new() });
                }
                "variable" => {
                    let list = served.last_mut().map_or(&mut variables, |served| &mut served.variables);
                    list.push(pair(&value).map_err(|why| bad(&why))?);
                }
                "stage" => {
                    let name = value.parse().map_err(|error| bad(&error))?;
                    stages.push(Stage { name, command: Command::Words(Vec::new()) });
                }
                "shell" | "word" => {
                    let stage = stages.last_mut().ok_or_else(|| bad(&"a command before any stage"))?;
                    match &mut stage.command {
                        Command::Words(words) if word == "word" => words.push(value),
                        command => *command = Command::Shell(value),
                    }
                }
                "artifact" => artifacts.push(value),
                "size" => sizes.push(value),
                _ => {}
            }
        }
        let lacks = |what| DocumentError::Line { line: 1, why: format!("it names no {what}") };
        Ok(Self {
            at: at.ok_or_else(|| lacks("task"))?,
            target: target.ok_or_else(|| lacks("target"))?,
            commit: commit.ok_or_else(|| lacks("commit"))?,
            jobs,
            variables,
            served,
            stages,
            artifacts,
            sizes,
        })
    }
}

impl TaskDocument {
    /// The variables of the stages, those from auxiliary machines first: later ones win.
    pub fn all_variables(&self) -> impl Iterator<Item = &(String, String)> {
        self.served.iter().flat_map(|served| &served.variables).chain(&self.variables)
    }
}

impl ResultDocument {
    /// As text.
    pub fn to_text(&self) -> String {
        let mut text = Writer::new("result");
        for stage in &self.stages {
            let (kind, number) = match stage.exit {
                StageExit::Signal(signal) => ("signal", signal),
                // In a guest a stage ends by itself.
                other => ("code", other.shell_code()),
            };
            text.line("stage", &format!("{} {kind} {number} {} {}", stage.name, stage.wall_ms, stage.cpu_ms));
        }
        text.line("rss", &self.rss_kib_max.to_string());
        text.line("sizes", &self.sizes);
        self.problems.iter().for_each(|problem| text.line("problem", problem));
        text.line("message", &self.message);
        text.end()
    }

    /// From text that a guest wrote.
    ///
    /// # Errors
    /// If it is not what [`Self::to_text`] writes, or says what cannot be.
    pub fn parse(text: &str) -> Result<Self, DocumentError> {
        let mut result = Self::default();
        for line in lines("result", text)? {
            let (number, word, value) = line?;
            let bad =
                |why: &dyn std::fmt::Display| DocumentError::Line { line: number, why: why.to_string() };
            match word {
                "stage" => {
                    let stage = stage(&value).ok_or_else(|| bad(&"it is no stage with its end"))?;
                    let twice = result.stages.iter().any(|earlier| earlier.name == stage.name);
                    if twice || result.stages.len() == STAGES_MAX {
                        return Err(bad(&"there are too many stages, or one is there twice"));
                    }
                    result.stages.push(stage);
                }
                "rss" => result.rss_kib_max = number_of(&value).ok_or_else(|| bad(&"it is no size"))?,
                "sizes" | "message" | "problem" if value.len() > TEXT_BYTES_MAX => {
                    return Err(bad(&"it is too long"));
                }
                "problem" if result.problems.len() == PROBLEMS_MAX => {}
                "problem" => result.problems.push(value),
                "sizes" => result.sizes = value,
                "message" => result.message = value,
                _ => {}
            }
        }
        Ok(result)
    }
}

impl Ending {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Ending::Bootstrapped => ("bootstrapped", "version"),
            Ending::Environment => ("environment", "variable"),
        }
    }

    /// As text.
    pub fn to_text(self, pairs: &BTreeMap<String, String>) -> String {
        let (kind, word) = self.words();
        let mut text = Writer::new(kind);
        pairs.iter().for_each(|(name, value)| text.line(word, &format!("{name} {value}")));
        text.end()
    }

    /// From text that a guest wrote.
    ///
    /// # Errors
    /// If it is not what [`Self::to_text`] writes.
    pub fn parse(self, text: &str) -> Result<BTreeMap<String, String>, DocumentError> {
        let (kind, expected) = self.words();
        let mut pairs = BTreeMap::new();
        for line in lines(kind, text)? {
            let (number, word, value) = line?;
            let bad = |why: String| DocumentError::Line { line: number, why };
            if word != expected {
                continue;
            }
            let (name, value) = match self {
                Ending::Environment => pair(&value).map_err(bad)?,
                Ending::Bootstrapped => {
                    let (name, version) = value.split_once(' ').unwrap_or((&value, ""));
                    (name.to_owned(), version.to_owned())
                }
            };
            if pairs.len() == PAIRS_MAX {
                return Err(bad(format!("there are more than {PAIRS_MAX}")));
            }
            pairs.insert(name, value);
        }
        Ok(pairs)
    }
}

struct Writer(String);

impl Writer {
    fn new(kind: &str) -> Self {
        Self(format!("crewboss-{kind} {FORMAT}\n"))
    }

    fn line(&mut self, word: &str, value: &str) {
        let value = value.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string cannot fail.
        let _written = writeln!(self.0, "{word} {value}");
    }

    fn end(mut self) -> String {
        self.0.push_str("end\n");
        self.0
    }
}

type Line<'a> = Result<(usize, &'a str, String), DocumentError>;

/// The lines between the first and the last, with their numbers.
fn lines<'a>(kind: &str, text: &'a str) -> Result<impl Iterator<Item = Line<'a>>, DocumentError> {
    let expected = format!("crewboss-{kind} {FORMAT}");
    let body = text.strip_prefix(&expected).and_then(|rest| rest.strip_prefix('\n'));
    let body = body.ok_or(DocumentError::Kind { expected })?;
    let body = match body.strip_suffix("end\n") {
        Some(body) if body.is_empty() || body.ends_with('\n') => body,
        _ => return Err(DocumentError::CutOff),
    };
    Ok(body.split_terminator('\n').enumerate().map(|(index, line)| {
        let number = index + 2;
        let (word, value) = line.split_once(' ').unwrap_or((line, ""));
        let value = plain(value);
        let value =
            value.ok_or_else(|| DocumentError::Line { line: number, why: "a lone backslash".to_owned() })?;
        if value.contains('\0') {
            return Err(DocumentError::Line { line: number, why: "it has a NUL".to_owned() });
        }
        Ok((number, word, value))
    }))
}

/// Undoes what [`Writer::line`] does to a value.
fn plain(value: &str) -> Option<String> {
    let mut text = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            '\\' => match characters.next()? {
                'n' => '\n',
                '\\' => '\\',
                _ => return None,
            },
            plain => plain,
        });
    }
    Some(text)
}

fn pair(value: &str) -> Result<(String, String), String> {
    let (name, value) = value.split_once(' ').unwrap_or((value, ""));
    if is_variable(name) {
        Ok((name.to_owned(), value.to_owned()))
    } else {
        Err(format!("{name:?} cannot be the name of a variable"))
    }
}

fn number_of(value: &str) -> Option<u64> {
    value.parse().ok().filter(|number| *number <= NUMBER_MAX)
}

fn stage(value: &str) -> Option<StageResult> {
    let mut words = value.split(' ');
    let name = words.next()?.parse().ok()?;
    let exit = match words.next()? {
        "code" => StageExit::Code(words.next()?.parse().ok()?),
        "signal" => StageExit::Signal(words.next()?.parse().ok()?),
        _ => return None,
    };
    let (wall_ms, cpu_ms) = (number_of(words.next()?)?, number_of(words.next()?)?);
    words.next().is_none().then_some(StageResult { name, exit, wall_ms, cpu_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Validate as _;
    use crate::guest::FromGuest;
    use proptest::prelude::*;

    fn task(command: Command, value: String) -> TaskDocument {
        TaskDocument {
            at: "3.1".parse().unwrap(),
            target: "unzip".parse().unwrap(),
            commit: TreeId([7; 20]),
            jobs: 2,
            variables: vec![("CC".to_owned(), value.clone())],
            served: vec![Served {
                name: "db".parse().unwrap(),
                variables: vec![("DB_URL".to_owned(), value)],
            }],
            stages: vec![Stage { name: "build".parse().unwrap(), command }],
            artifacts: vec!["*.bin".to_owned()],
            sizes: vec!["u-boot".to_owned()],
        }
    }

    #[test]
    fn a_shell_can_read_a_task() {
        let text = task(Command::Shell("make \\\n -j2".to_owned()), "a b".to_owned()).to_text();
        assert_eq!(
            text,
            "crewboss-task 1\ntask 3.1\ntarget unzip\ncommit 0707070707070707070707070707070707070707\njobs 2\n\
             variable CC a b\nauxiliary db\nvariable DB_URL a b\nstage build\nshell make \\\\\\n -j2\nartifact *.bin\nsize u-boot\nend\n"
        );
    }

    #[test]
    fn what_a_guest_writes_is_read_with_care() {
        let good = "crewboss-result 1\nstage a code 0 10 5\nstage b signal 9 1 1\nrss 7\nend\n";
        assert_eq!(ResultDocument::parse(good).unwrap().stages[1].exit, StageExit::Signal(9));
        for (bad, why) in [
            ("", "begin with"),
            ("crewboss-result 2\nend\n", "begin with"),
            ("crewboss-result 1\n", "cut off"),
            ("crewboss-result 1\nstage a code 0 10 5\n", "cut off"),
            ("crewboss-result 1\nmessage the end\n", "cut off"),
            ("crewboss-result 1\nstage a code 256 1 1\nend\n", "line 2"),
            ("crewboss-result 1\nstage ../x code 0 1 1\nend\n", "line 2"),
            ("crewboss-result 1\nstage a code 0 1 1\nstage a code 0 1 1\nend\n", "line 3"),
            ("crewboss-result 1\nmessage a\\x\nend\n", "backslash"),
            ("crewboss-result 1\nrss -1\nend\n", "line 2"),
            // No result of a task may hold such a number.
            ("crewboss-result 1\nrss 9007199254740992\nend\n", "line 2"),
            ("crewboss-result 1\nstage a code 0 1 9007199254740992\nend\n", "line 2"),
        ] {
            let error = ResultDocument::parse(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
        let bad = "crewboss-environment 1\nvariable 1x y\nend\n";
        assert!(Ending::Environment.parse(bad).is_err());
    }

    #[test]
    fn an_agent_cannot_report_what_no_result_may_hold() {
        let ended = |wall_ms, rss_kib_max| FromGuest::Ended {
            result: StageResult { name: "a".parse().unwrap(), exit: StageExit::Code(0), wall_ms, cpu_ms: 0 },
            rss_kib_max,
            stopped: false,
        };
        assert_eq!(ended(NUMBER_MAX, NUMBER_MAX).validate(), Ok(()));
        assert!(ended(NUMBER_MAX + 1, 0).validate().is_err());
        assert!(ended(0, NUMBER_MAX + 1).validate().is_err());
    }

    proptest! {
        #[test]
        fn documents_survive_the_way(value in "[^\0]*", line in "[^\0]+", words in prop::collection::vec("[^\0]*", 1..4)) {
            for command in [Command::Shell(line.clone()), Command::Words(words)] {
                let document = task(command, value.clone());
                prop_assert_eq!(TaskDocument::parse(&document.to_text()).unwrap(), document);
            }
            let result = ResultDocument {
                message: value.clone(),
                sizes: line,
                problems: vec![value.clone()],
                rss_kib_max: 1,
                stages: Vec::new(),
            };
            prop_assert_eq!(ResultDocument::parse(&result.to_text()).unwrap(), result);
            let pairs = BTreeMap::from([("URL".to_owned(), value)]);
            for kind in [Ending::Environment, Ending::Bootstrapped] {
                prop_assert_eq!(kind.parse(&kind.to_text(&pairs)).unwrap(), pairs.clone());
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "(crewboss-result 1\n)?(stage |rss |message |[a-z\\\\ 0-9\n])*(end\n)?") {
            drop(ResultDocument::parse(&text));
            drop(TaskDocument::parse(&text));
        }
    }
}
