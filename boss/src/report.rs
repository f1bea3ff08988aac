//! Has a host do something and say in one line what came of it.

use std::sync::Arc;
use std::time::Duration;

use crewboss_protocol::codec::{DecodeError, Line, LineDecoder, parse};
use crewboss_protocol::{HostName, Validate};
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio::time::timeout;

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
    /// It does not come.
    #[error("no report came within {} s", .within.as_secs())]
    Slow {
        /// How long it had.
        within: Duration,
    },
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

/// Starts a role on all hosts at once, and returns the line that each prints, in the order of the crew; `told` hears each
/// when it is there. `words` are the role and its arguments; `--machines` is added.
///
/// # Errors
/// If this computer cannot connect to anybody. What is wrong with a host is its answer.
pub(crate) async fn of_crew<T>(
    crew: &Crew,
    words: &'static [&'static str],
    within: Duration,
    told: &mut dyn FnMut(&Answer<T>),
) -> Result<Vec<Answer<T>>, RunError>
where
    T: DeserializeOwned + Validate + Send + 'static,
{
    let connector = Connector::new(&crew.ssh, &crew.timing)?;
    let binary = Arc::new(OwnBinary::current()?);
    let mut asked = JoinSet::new();
    for (index, host) in crew.hosts.iter().cloned().enumerate() {
        let (connector, binary) = (connector.clone(), binary.clone());
        asked.spawn(async move {
            let answer = of_host(&connector, &binary, &host, words, within).await;
            (index, answer.map_err(|error| crate::with_hint(&error, error.hint())))
        });
    }
    let mut answers: Vec<_> =
        crew.hosts.iter().map(|host| (host.name.clone(), Err("no answer".to_owned()))).collect();
    while let Some(joined) = asked.join_next().await {
        if let Ok((index, answer)) = joined {
            answers[index].1 = answer;
            told(&answers[index]);
        }
    }
    Ok(answers)
}

async fn of_host<T: DeserializeOwned + Validate>(
    connector: &Connector,
    binary: &OwnBinary,
    host: &Host,
    words: &[&str],
    within: Duration,
) -> Result<T, ReportError> {
    let asked = async {
        let link = connector.connect(host).await?;
        let report = of_link(&link, binary, host, words).await?;
        link.close();
        Ok(report)
    };
    timeout(within, asked).await.unwrap_or(Err(ReportError::Slow { within }))
}

/// The same on one connection.
pub(crate) async fn of_link<T: DeserializeOwned + Validate>(
    link: &Link,
    binary: &OwnBinary,
    host: &Host,
    words: &[&str],
) -> Result<T, ReportError> {
    let mut words = words.to_vec();
    words.extend(host.machines.iter().flat_map(|machines| ["--machines", machines]));
    let role = Role { words: &words, work: host.work.as_deref() };
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
