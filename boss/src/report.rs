//! Has a host do something and say in one line what came of it.

use std::sync::Arc;
use std::time::Duration;

use crewboss_protocol::codec::{DecodeError, Line, LineDecoder, parse};
use crewboss_protocol::{HostName, Validate};
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::crew::{Crew, Host};
use crate::link::{Connector, Link, LinkError, OwnBinary, Role, ShipError, start};
use crate::run::RunError;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The host cannot be reached.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The program cannot be brought there, or does not run.
    #[error(transparent)]
    Ship(#[from] ShipError),
    /// It is nonsense.
    #[error("the report cannot be understood")]
    Decode(#[from] DecodeError),
    /// It is cut off.
    #[error("the connection ended before the report came")]
    Ended,
}

impl ReportError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Link(error) => error.hint(),
            Self::Ship(error) => error.hint(),
            _ => None,
        }
    }
}

/// What a host answered, or why it did not.
pub type Answer<T> = (HostName, Result<T, String>);

/// How often it is said who has not answered yet.
const WAITING_EVERY: Duration = Duration::from_secs(10);

/// What is heard of hosts that were asked.
#[derive(Debug)]
pub enum Heard<'a, T> {
    /// One has answered, or could not.
    Answer(&'a Answer<T>),
    /// These are still waited for; said again and again.
    Waiting(&'a [HostName]),
}

/// A question to one host.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// The role and its arguments; `--machines` is added.
    pub(crate) words: Vec<String>,
    /// Whether it is work, which takes as long as it does, and not only an answer.
    pub(crate) is_work: bool,
}

/// Starts a role on all hosts at once, and returns the line that each prints, in the order of the
/// crew; `told` hears each when it is there. Each step of a host has a limit of its own, the last
/// one included.
///
/// # Errors
/// If this computer cannot connect to anybody. What is wrong with a host is its answer.
pub(crate) async fn of_crew<T>(
    crew: &Crew,
    question: Question,
    told: &mut dyn FnMut(Heard<'_, T>),
) -> Result<Vec<Answer<T>>, RunError>
where
    T: DeserializeOwned + Validate + Send + 'static,
{
    let connector = Connector::new(&crew.ssh, &crew.timing)?;
    let binary = Arc::new(OwnBinary::current()?);
    let mut asked = JoinSet::new();
    for (index, host) in crew.hosts.iter().cloned().enumerate() {
        let (connector, binary, question) = (connector.clone(), binary.clone(), question.clone());
        asked.spawn(async move {
            let answer = of_host(&connector, &binary, &host, &question).await;
            (index, answer.map_err(|error| crate::with_hint(&error, error.hint())))
        });
    }
    Ok(gather(&crew.hosts, asked, told).await)
}

/// Hears all hosts, each of which answers with its place in the crew.
pub(crate) async fn gather<T: 'static>(
    hosts: &[Host],
    mut asked: JoinSet<(usize, Result<T, String>)>,
    told: &mut dyn FnMut(Heard<'_, T>),
) -> Vec<Answer<T>> {
    let mut answers: Vec<_> =
        hosts.iter().map(|host| (host.name.clone(), Err("no answer".to_owned()))).collect();
    let mut waiting: Vec<HostName> = hosts.iter().map(|host| host.name.clone()).collect();
    let mut looks = interval(WAITING_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks.reset();
    loop {
        tokio::select! {
            joined = asked.join_next() => match joined {
                Some(Ok((index, answer))) => {
                    answers[index].1 = answer;
                    waiting.retain(|name| *name != answers[index].0);
                    told(Heard::Answer(&answers[index]));
                }
                Some(Err(_)) => {}
                None => return answers,
            },
            _ = looks.tick() => told(Heard::Waiting(&waiting)),
        }
    }
}

async fn of_host<T: DeserializeOwned + Validate>(
    connector: &Connector,
    binary: &OwnBinary,
    host: &Host,
    question: &Question,
) -> Result<T, ReportError> {
    let link = connector.connect(host).await?;
    let report = of_link(&link, binary, host, question).await?;
    link.close();
    Ok(report)
}

/// The same on one connection.
pub(crate) async fn of_link<T: DeserializeOwned + Validate>(
    link: &Link,
    binary: &OwnBinary,
    host: &Host,
    question: &Question,
) -> Result<T, ReportError> {
    let mut words: Vec<&str> = question.words.iter().map(String::as_str).collect();
    words.extend(host.machines.iter().flat_map(|machines| ["--machines", machines]));
    let role = Role { works_first: question.is_work, ..Role::new(&words, host.work.as_deref()) };
    let mut channel = start(link, binary, role, b"").await?.channel;
    let mut decoder = LineDecoder::new();
    let mut buffer = Vec::with_capacity(16 << 10);
    loop {
        if let Some(line) = decoder.next_line() {
            match line {
                Line::Ours(text) => return Ok(parse(text)?),
                Line::Stray(_) => continue,
                Line::TooLong => return Err(DecodeError::TooLong.into()),
            }
        }
        buffer.clear();
        if !channel.stdout.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
            return Err(ReportError::Ended);
        }
        decoder.push(&buffer);
    }
}
