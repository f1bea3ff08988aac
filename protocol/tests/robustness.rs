//! Whatever arrives, in whatever pieces: no panic, no unbounded memory, and what is accepted is
//! valid.
#![allow(missing_docs, clippy::unwrap_used)]

mod samples;

use crewboss_protocol::bulk::{BulkAnswer, BulkRequest};
use crewboss_protocol::codec::{Line, LineDecoder, encode, parse};
use crewboss_protocol::guest::{FromGuest, ToGuest};
use crewboss_protocol::limits::LINE_BYTES_MAX;
use crewboss_protocol::{FromWorker, ToWorker, Validate};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn check<M: DeserializeOwned + Serialize + Validate + PartialEq + std::fmt::Debug>(text: &[u8]) {
    if let Ok(message) = parse::<M>(text) {
        let mut line = Vec::new();
        encode(&message, &mut line);
        assert!(line.len() <= LINE_BYTES_MAX + 1024);
        assert_eq!(parse::<M>(&line[4..line.len() - 1]).unwrap(), message);
    }
}

fn check_all(text: &[u8]) {
    check::<ToWorker>(text);
    check::<FromWorker>(text);
    check::<BulkRequest>(text);
    check::<BulkAnswer>(text);
    check::<ToGuest>(text);
    check::<FromGuest>(text);
}

fn sample_lines() -> Vec<Vec<u8>> {
    fn lines<M: Serialize>(messages: Vec<M>) -> impl Iterator<Item = Vec<u8>> {
        messages.into_iter().map(|message| {
            let mut line = Vec::new();
            encode(&message, &mut line);
            line
        })
    }
    lines(samples::to_worker())
        .chain(lines(samples::from_worker()))
        .chain(lines(samples::bulk_request()))
        .chain(lines(samples::bulk_answer()))
        .chain(lines(samples::guest::to_guest()))
        .chain(lines(samples::guest::from_guest()))
        .collect()
}

/// What to do to one place of a line.
#[derive(Debug, Clone)]
enum Damage {
    Replace(u8),
    Insert(Vec<u8>),
    Cut,
    Repeat,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        any::<u8>().prop_map(Damage::Replace),
        prop_oneof![
            Just(b"-1".to_vec()),
            Just(b"99999999999999999999999".to_vec()),
            Just(b"1e400".to_vec()),
            Just(b"null".to_vec()),
            Just(b"\"../../x\"".to_vec()),
            Just(b"\\u0000".to_vec()),
            Just(b"[[[[[[[[[[".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..20),
        ]
        .prop_map(Damage::Insert),
        Just(Damage::Cut),
        Just(Damage::Repeat),
    ]
}

fn apply(line: &mut Vec<u8>, place: usize, damage: Damage) {
    let place = place % line.len().max(1);
    match damage {
        Damage::Replace(byte) => line[place] = byte,
        Damage::Insert(bytes) => drop(line.splice(place..place, bytes)),
        Damage::Cut => line.truncate(place.max(1)),
        Damage::Repeat => line.extend_from_within(place..),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        check_all(&bytes);
        let mut decoder = LineDecoder::new();
        decoder.push(&bytes);
        while let Some(line) = decoder.next_line() {
            if let Line::Ours(text) = line {
                check_all(text);
            }
        }
    }

    #[test]
    fn damaged_messages_are_refused_or_still_valid(
        pick in any::<prop::sample::Index>(),
        damages in proptest::collection::vec((any::<usize>(), damage()), 1..4),
    ) {
        let lines = sample_lines();
        let mut line = lines[pick.index(lines.len())].clone();
        for (place, damage) in damages {
            apply(&mut line, place, damage);
        }
        check_all(line.strip_prefix(b"@cb ").unwrap_or(&line));
    }
}

#[test]
fn unknown_fields_are_tolerated_and_unknown_messages_are_not() {
    assert!(parse::<ToWorker>(br#"{"ping":{"number":1,"colour":"red"}}"#).is_ok());
    let error = parse::<ToWorker>(br#"{"dance":{}}"#).unwrap_err();
    assert_eq!(error.to_string(), r#"not a message: "{\"dance\":{}}""#);
}

#[test]
fn impossible_content_is_refused_with_the_field_named() {
    let error = parse::<ToWorker>(br#"{"configure":{"first":4294967295,"targets":[]}}"#).unwrap_err();
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "targets: 4294967295 is over the limit of 100000");
    let refused: [&[u8]; 4] = [
        br#"{"task":{"at":"1","target":0,"tree":"00","commit":"00"}}"#,
        br#"{"cancel":{"at":"-1.1"}}"#,
        br#"{"cancel":{"at":"1.1.1"}}"#,
        br#"{"cancel":{"at":"99999999999.1"}}"#,
    ];
    for text in refused {
        assert!(parse::<ToWorker>(text).is_err());
    }
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow_the_stack() {
    let deep = [b"{\"configure\":".as_slice(), &vec![b'['; 500_000]].concat();
    check_all(&deep);
}
