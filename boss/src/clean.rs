//! Has every host of a crew cleaned: sessions whose boss is gone are ended, and what they left is removed.

use std::sync::Arc;
use std::time::Duration;

use crewboss_protocol::HostName;
use crewboss_protocol::clean::CleanReport;
use crewboss_protocol::codec::{DecodeError, Line, LineDecoder, parse};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::crew::{Crew, Host};
use crate::link::{Connector, LinkError, OwnBinary, Role, ShipError, start};
use crate::run::RunError;

/// For one host: ending workers in order takes seconds, removing large trees may take minutes.
const CLEAN_WITHIN: Duration = Duration::from_secs(600);

/// Why a host could not be cleaned.
#[derive(Debug, thiserror::Error)]
enum CleanError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Ship(#[from] ShipError),
    #[error("the report cannot be understood")]
    Decode(#[from] DecodeError),
    #[error("the connection ended before the report came")]
    Ended,
    #[error("no report came within {} s", CLEAN_WITHIN.as_secs())]
    Slow,
}

impl CleanError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Link(error) => error.hint(),
            Self::Ship(error) => error.hint(),
            _ => None,
        }
    }
}

/// Cleans all hosts at once, in the order of the crew. With `force`, live sessions are ended too.
///
/// # Errors
/// If this computer cannot connect to anybody. What is wrong with a host is its answer.
pub async fn clean(
    crew: &Crew,
    force: bool,
) -> Result<Vec<(HostName, Result<CleanReport, String>)>, RunError> {
    let connector = Connector::new(&crew.ssh, &crew.timing)?;
    let binary = Arc::new(OwnBinary::current()?);
    let mut asked = JoinSet::new();
    for (index, host) in crew.hosts.iter().cloned().enumerate() {
        let (connector, binary) = (connector.clone(), binary.clone());
        asked.spawn(async move {
            let cleaned = timeout(CLEAN_WITHIN, clean_host(&connector, &binary, &host, force)).await;
            let cleaned = cleaned.unwrap_or(Err(CleanError::Slow));
            (index, cleaned.map_err(|error| crate::with_hint(&error, error.hint())))
        });
    }
    let mut answers: Vec<_> =
        crew.hosts.iter().map(|host| (host.name.clone(), Err("no answer".to_owned()))).collect();
    while let Some(joined) = asked.join_next().await {
        if let Ok((index, answer)) = joined {
            answers[index].1 = answer;
        }
    }
    Ok(answers)
}

async fn clean_host(
    connector: &Connector,
    binary: &OwnBinary,
    host: &Host,
    force: bool,
) -> Result<CleanReport, CleanError> {
    let link = connector.connect(host).await?;
    let mut words = vec!["clean"];
    words.extend(force.then_some("--force"));
    words.extend(host.machines.iter().flat_map(|machines| ["--machines", machines]));
    let role = Role { words: &words, work: host.work.as_deref() };
    let mut channel = start(&link, binary, role, b"").await?.channel;
    let mut decoder = LineDecoder::new();
    let mut buffer = Vec::with_capacity(16 << 10);
    let report = loop {
        if let Some(line) = decoder.next_line() {
            match line {
                Line::Ours(text) => break parse(text)?,
                Line::Stray(_) => continue,
                Line::TooLong => return Err(DecodeError::TooLong.into()),
            }
        }
        buffer.clear();
        if !channel.stdout.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
            return Err(CleanError::Ended);
        }
        decoder.push(&buffer);
    };
    drop(channel);
    link.close();
    Ok(report)
}
