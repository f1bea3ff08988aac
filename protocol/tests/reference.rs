//! Holds `PROTOCOL.md` against the types: every message is shown there exactly as it is written on
//! the wire, and everything shown there can be read. Run with `UPDATE_REFERENCE=1` to rewrite the
//! generated parts.
#![allow(missing_docs, clippy::unwrap_used)]

mod samples;

use std::fmt::Write as _;
use std::path::Path;

use crewboss_protocol::bulk::{BulkAnswer, BulkRequest};
use crewboss_protocol::codec::{PREFIX, encode, parse};
use crewboss_protocol::guest::{Ending, FromGuest, ResultDocument, TaskDocument, ToGuest};
use crewboss_protocol::{FromWorker, ToWorker, Validate};
use serde::Serialize;
use serde::de::DeserializeOwned;

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/PROTOCOL.md");

fn section<M>(samples: &[M]) -> String
where
    M: Serialize + DeserializeOwned + Validate + PartialEq + std::fmt::Debug,
{
    let mut text = String::from("```\n");
    for sample in samples {
        let mut line = Vec::new();
        encode(sample, &mut line);
        let content = line.strip_prefix(PREFIX).unwrap().strip_suffix(b"\n").unwrap();
        assert_eq!(&parse::<M>(content).unwrap(), sample, "a message does not survive the wire");
        writeln!(text, "{}", String::from_utf8(content.to_vec()).unwrap()).unwrap();
    }
    text + "```\n"
}

/// The documents one after the other. Each is read again, so that what is shown can be.
fn documents() -> String {
    let mut text = String::from("```\n");
    for document in samples::guest::documents() {
        let kind = document.split([' ', '-']).nth(1).unwrap();
        let again = match kind {
            "task" => TaskDocument::parse(&document).unwrap().to_text(),
            "result" => ResultDocument::parse(&document).unwrap().to_text(),
            "bootstrapped" => Ending::Bootstrapped.to_text(&Ending::Bootstrapped.parse(&document).unwrap()),
            _ => Ending::Environment.to_text(&Ending::Environment.parse(&document).unwrap()),
        };
        assert_eq!(again, document, "a document does not survive the way");
        text += &document;
    }
    text + "```\n"
}

fn put(document: &mut String, name: &str, content: &str) {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end {name} -->\n"));
    let from = document.find(&begin).unwrap_or_else(|| panic!("no {begin:?} in the reference")) + begin.len();
    let to = document.find(&end).unwrap_or_else(|| panic!("no {end:?} in the reference"));
    document.replace_range(from..to, content);
}

#[test]
fn the_reference_shows_every_message_as_it_is() {
    let written = std::fs::read_to_string(REFERENCE).unwrap();
    let mut document = written.clone();
    put(&mut document, "to worker", &section(&samples::to_worker()));
    put(&mut document, "from worker", &section(&samples::from_worker()));
    put(&mut document, "bulk request", &section(&samples::bulk_request()));
    put(&mut document, "bulk answer", &section(&samples::bulk_answer()));
    put(&mut document, "clean report", &section(&samples::clean_report()));
    put(&mut document, "overview", &section(&samples::overview()));
    put(&mut document, "from person", &section(&samples::from_person()));
    put(&mut document, "to person", &section(&samples::to_person()));
    put(&mut document, "to guest", &section(&samples::guest::to_guest()));
    put(&mut document, "from guest", &section(&samples::guest::from_guest()));
    put(&mut document, "documents", &documents());
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(Path::new(REFERENCE), &document).unwrap();
    } else {
        assert_eq!(written, document, "run with UPDATE_REFERENCE=1 to bring PROTOCOL.md up to date");
    }
}

/// Every variant must be among the samples. A new one does not compile here until it is named.
#[test]
fn the_samples_are_complete() {
    let mut seen = [false; 10];
    for message in samples::to_worker() {
        seen[match message {
            ToWorker::Hello(_) => 0,
            ToWorker::Configure { .. } => 1,
            ToWorker::SourceReady { .. } => 2,
            ToWorker::Task(_) => 3,
            ToWorker::Cancel { .. } => 4,
            ToWorker::Recall { .. } => 5,
            ToWorker::Collected { .. } => 6,
            ToWorker::Ping { .. } => 7,
            ToWorker::Quit => 8,
            ToWorker::Bootstrap(_) => 9,
        }] = true;
    }
    assert_eq!(seen, [true; 10]);
    let mut seen = [false; 16];
    for message in samples::from_worker() {
        seen[match message {
            FromWorker::Ready(_) => 0,
            FromWorker::Phase { .. } => 1,
            FromWorker::GuestLoad { .. } => 2,
            FromWorker::Log { .. } => 3,
            FromWorker::LongLog { .. } => 4,
            FromWorker::Alive { .. } => 5,
            FromWorker::Done(_) => 6,
            FromWorker::Refused { .. } => 7,
            FromWorker::Returned { .. } => 8,
            FromWorker::Notice { .. } => 9,
            FromWorker::Error { .. } => 10,
            FromWorker::Finished => 11,
            FromWorker::Slots { .. } => 12,
            FromWorker::Waiting { .. } => 13,
            FromWorker::Bootstrapped { .. } => 14,
            FromWorker::Ending { .. } => 15,
        }] = true;
    }
    assert_eq!(seen, [true; 16]);
    let mut seen = [false; 7];
    for message in samples::bulk_request() {
        seen[match message {
            BulkRequest::Have { .. } => 0,
            BulkRequest::Pack => 1,
            BulkRequest::CheckOut { .. } => 2,
            BulkRequest::Log { .. } => 3,
            BulkRequest::LogEnds { .. } => 4,
            BulkRequest::Artifacts { .. } => 5,
            BulkRequest::File { .. } => 6,
        }] = true;
    }
    assert_eq!(seen, [true; 7]);
    let mut seen = [false; 9];
    for message in samples::bulk_answer() {
        seen[match message {
            BulkAnswer::Open => 0,
            BulkAnswer::Has { .. } => 1,
            BulkAnswer::Stored => 2,
            BulkAnswer::CheckedOut { .. } => 3,
            BulkAnswer::Artifact { .. } => 4,
            BulkAnswer::Checksum { .. } => 5,
            BulkAnswer::Complete => 6,
            BulkAnswer::Failed { .. } => 7,
            BulkAnswer::Working => 8,
        }] = true;
    }
    assert_eq!(seen, [true; 9]);
}

/// The same for what is said to and by a guest.
#[test]
fn the_samples_of_guests_are_complete() {
    let mut seen = [false; 10];
    for message in samples::guest::to_guest() {
        seen[match message {
            ToGuest::Bootstrap { .. } => 0,
            ToGuest::Task { .. } => 1,
            ToGuest::Serve { .. } => 2,
            ToGuest::Stage { .. } => 3,
            ToGuest::Cancel => 4,
            ToGuest::Collect => 5,
            ToGuest::Renew(_) => 6,
            ToGuest::Ping { .. } => 7,
            ToGuest::PowerOff => 8,
            ToGuest::Network { .. } => 9,
        }] = true;
    }
    assert_eq!(seen, [true; 10]);
    let mut seen = [false; 11];
    for message in samples::guest::from_guest() {
        seen[match message {
            FromGuest::Ready { .. } => 0,
            FromGuest::Bootstrapped { .. } => 1,
            FromGuest::Prepared => 2,
            FromGuest::Environment { .. } => 3,
            FromGuest::Log { .. } => 4,
            FromGuest::Ended { .. } => 5,
            FromGuest::Collected { .. } => 6,
            FromGuest::Renewed(_) => 7,
            FromGuest::Alive { .. } => 8,
            FromGuest::Failed { .. } => 9,
            FromGuest::Networked => 10,
        }] = true;
    }
    assert_eq!(seen, [true; 11]);
}
