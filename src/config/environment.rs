//! Where a target runs: `"snapshot"`, `"directory"`, or a table that names machines.

use std::fmt;

use crewboss_protocol::limits::AUXILIARIES_MAX;
use crewboss_protocol::machine::{Auxiliary, variable_prefix};
use crewboss_protocol::{Environment, MachineUse, Name};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use toml::Spanned;

use super::build::RESERVED;
use super::document::{Document, Ordered};
use super::error::ConfigError;

/// The value of `environment`, as it is written.
#[derive(Debug)]
pub enum EnvironmentValue {
    /// A word.
    Word(Environment),
    /// A table.
    Machine(MachineTable),
}

/// `{ machine = "NAME", auxiliary = { PREFIX = "NAME" } }`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineTable {
    machine: Option<Spanned<String>>,
    #[serde(default)]
    auxiliary: Ordered<Spanned<String>>,
}

impl<'de> Deserialize<'de> for EnvironmentValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EnvironmentVisitor)
    }
}

struct EnvironmentVisitor;

impl<'de> Visitor<'de> for EnvironmentVisitor {
    type Value = EnvironmentValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"snapshot\", \"directory\" or { machine = \"NAME\" }")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<EnvironmentValue, E> {
        match text {
            "snapshot" => Ok(EnvironmentValue::Word(Environment::Snapshot)),
            "directory" => Ok(EnvironmentValue::Word(Environment::Directory)),
            other => Err(E::custom(format!(
                "there is no environment {other:?}; it is \"snapshot\", \"directory\" or {{ machine = \"NAME\" }}"
            ))),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<EnvironmentValue, A::Error> {
        MachineTable::deserialize(MapAccessDeserializer::new(map)).map(EnvironmentValue::Machine)
    }
}

/// What a value means, its names checked.
pub fn environment(
    document: &Document,
    value: &Spanned<EnvironmentValue>,
) -> Result<Environment, ConfigError> {
    let table = match value.get_ref() {
        EnvironmentValue::Word(environment) => return Ok(environment.clone()),
        EnvironmentValue::Machine(table) => table,
    };
    let machine = table.machine.as_ref().ok_or_else(|| {
        let hint = "name the one that tasks run in: environment = { machine = \"debian12\" }".to_owned();
        document.wrong(value.span(), "an environment of machines lacks `machine`", Some(hint))
    })?;
    let auxiliary = auxiliaries(document, &table.auxiliary)?;
    Ok(Environment::Machine(MachineUse { name: name(document, machine)?, auxiliary }))
}

fn auxiliaries(document: &Document, table: &Ordered<Spanned<String>>) -> Result<Vec<Auxiliary>, ConfigError> {
    let mut all: Vec<Auxiliary> = Vec::new();
    for (key, machine) in &table.0 {
        if all.len() == AUXILIARIES_MAX {
            let message = format!("there are more than {AUXILIARIES_MAX} auxiliary machines");
            return Err(document.wrong(key.span(), message, None));
        }
        let one = Auxiliary { name: name(document, key)?, machine: name(document, machine)? };
        let prefix = variable_prefix(&one.name);
        if let Some(other) = all.iter().find(|other| variable_prefix(&other.name) == prefix) {
            let message =
                format!("variables of {} and {} would both begin with {prefix}_", other.name, one.name);
            let hint = "what tells names apart are letters (of either case) and digits".to_owned();
            return Err(document.wrong(key.span(), message, Some(hint)));
        }
        if format!("{prefix}_").starts_with(RESERVED) {
            let message = format!("variables of {} would begin with {RESERVED}", one.name);
            let hint =
                format!("names that begin with {RESERVED} are set by crewboss itself; call it otherwise");
            return Err(document.wrong(key.span(), message, Some(hint)));
        }
        all.push(one);
    }
    Ok(all)
}

fn name(document: &Document, text: &Spanned<String>) -> Result<Name, ConfigError> {
    let parsed = text.get_ref().parse::<Name>();
    parsed.map_err(|error| document.wrong(text.span(), error.to_string(), None))
}
