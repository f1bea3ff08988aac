//! Lines of the journal, each a JSON object whose last field is a checksum of all that stands
//! before it.
//!
//! What a damaged disk or a cut of power made of a line is told from what was written, whatever it
//! is. Journals of before have no checksums: their lines count as long as none with a checksum has
//! come.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crewboss_protocol::{Attempt, HostName, Name, Outcome, RunId, json};
use serde::{Deserialize, Serialize};

use super::result::{MachineInputs, TaskKey};

/// Version of the journal. A newer one is refused, since it may say things that this build does not
/// know.
pub(super) const JOURNAL_SCHEMA: u32 = 2;

/// What stands between a record and its checksum, in place of the record's last brace.
const SUM_BEGIN: &[u8] = b",\"sum\":\"";

/// What stands behind it.
const SUM_END: &[u8] = b"\"}";

/// Hexadecimal digits of a checksum: the first of the BLAKE3 hash.
const SUM_DIGITS: usize = 16;

/// All of that.
const SUM_BYTES: usize = SUM_BEGIN.len() + SUM_DIGITS + SUM_END.len();

/// How records begin. A string in a record cannot hold this: its quotes are escaped.
const BEGINNINGS: [&[u8]; 3] = [b"{\"run\":{", b"{\"result\":{", b"{\"end\":{"];

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// A run begins.
    Run { schema: u32, run: RunId, started_ms: u64, crewboss: String },
    /// A task has its result, and its directory is in place.
    Result(Recorded),
    /// A run ended in order.
    End { run: RunId, ended_ms: u64 },
}

/// A result as the journal knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// What was built: tree and target.
    pub key: TaskKey,
    /// With which toolchain version, if the target names a toolchain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toolchain: Option<String>,
    /// In which machine, if the target runs in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineInputs>,
    /// The target, for readers.
    pub target: Name,
    /// The commit, for readers.
    pub commit: Arc<str>,
    /// How it ended.
    pub outcome: Outcome,
    /// Which attempt it was.
    pub attempt: Attempt,
    /// Where it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// How long it took.
    pub wall_ms: u64,
    /// The task's directory below the result directory.
    pub path: Arc<str>,
}

impl Record {
    /// Appends its line.
    pub(super) fn write(&self, into: &mut Vec<u8>) {
        let begin = into.len();
        // Writing to memory cannot fail, and the types have string keys only.
        if let Ok(line) = json::line(self) {
            into.extend_from_slice(line.as_bytes());
            let sum = sum(&into[begin..]);
            into.pop();
            into.extend([SUM_BEGIN, &sum, SUM_END, b"\n"].concat());
        }
    }
}

fn sum(record: &[u8]) -> [u8; SUM_DIGITS] {
    let hex = blake3::hash(record).to_hex();
    std::array::from_fn(|digit| hex.as_bytes()[digit])
}

/// A part of a journal that no record could be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage {
    /// The line that it is in, counted from 1.
    pub(super) line: usize,
    /// Where.
    pub(super) bytes: Range<usize>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} (bytes {} to {})", self.line, self.bytes.start, self.bytes.end)
    }
}

/// All that could be made of a journal.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) records: Vec<Record>,
    /// Where they are, in the same order.
    places: Vec<Range<usize>>,
    pub(super) damages: Vec<Damage>,
}

/// Reads a journal, whatever has become of it.
///
/// # Errors
/// The version, if a newer crewboss has written it.
pub(super) fn read(text: &[u8]) -> Result<Contents, u32> {
    let mut contents = Contents::default();
    // Whether a line without a checksum is still one of before.
    let mut old = true;
    let mut begin = 0;
    for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let whole = line.strip_suffix(b"\n");
        let place = begin..begin + whole.unwrap_or(line).len();
        begin += line.len();
        if let Some(found) = newer_schema(line) {
            return Err(found);
        }
        match whole {
            Some(b"") => {}
            Some(line) if contents.take_sealed(line, &place) => old = false,
            Some(line) if old && contents.take(line, &place) => {}
            _ => old &= !contents.salvage(text, index + 1, place),
        }
    }
    Ok(contents)
}

/// Looks at the version before anything else of the line has to be understood.
fn newer_schema(line: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Run {
        run: Schema,
    }
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    if !line.starts_with(b"{\"run\"") {
        return None;
    }
    let run: Run = serde_json::from_slice(line).ok()?;
    (run.run.schema > JOURNAL_SCHEMA).then_some(run.run.schema)
}

impl Contents {
    /// The journal without what is damaged in it.
    pub(super) fn mended(&self, text: &[u8]) -> Vec<u8> {
        self.places.iter().flat_map(|place| [&text[place.clone()], b"\n"]).flatten().copied().collect()
    }

    fn take(&mut self, record: &[u8], place: &Range<usize>) -> bool {
        let Ok(record) = serde_json::from_slice(record) else { return false };
        self.records.push(record);
        self.places.push(place.clone());
        true
    }

    /// Takes a record if its checksum is right.
    fn take_sealed(&mut self, line: &[u8], place: &Range<usize>) -> bool {
        let Some((record, rest)) =
            line.len().checked_sub(SUM_BYTES).and_then(|bytes| line.split_at_checked(bytes))
        else {
            return false;
        };
        let said = rest.strip_prefix(SUM_BEGIN).and_then(|rest| rest.strip_suffix(SUM_END));
        let record = [record, b"}"].concat();
        said.is_some_and(|said| said == sum(&record)) && self.take(&record, place)
    }

    /// Takes every whole record out of a damaged line: zeros or garbage may have swallowed the line
    /// breaks around it. Returns whether there was one.
    fn salvage(&mut self, text: &[u8], line: usize, place: Range<usize>) -> bool {
        let known = self.records.len();
        let (mut lost, mut at) = (place.start, place.start);
        while let Some(offset) = find(&text[at..place.end], SUM_BEGIN) {
            let before = &text[at..at + offset];
            let end = at + offset + SUM_BYTES;
            let begin = BEGINNINGS.iter().filter_map(|begin| rfind(before, begin)).max();
            if let Some(begin) = begin.map(|begin| at + begin)
                && end <= place.end
                && self.take_sealed(&text[begin..end], &(begin..end))
            {
                self.lose(line, lost..begin);
                lost = end;
            }
            at += offset + SUM_BEGIN.len();
        }
        self.lose(line, lost..place.end);
        self.records.len() > known
    }

    fn lose(&mut self, line: usize, bytes: Range<usize>) {
        if !bytes.is_empty() {
            self.damages.push(Damage { line, bytes });
        }
    }
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

fn rfind(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).rposition(|window| window == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(key: u8) -> Record {
        Record::Result(Recorded {
            key: TaskKey([key; 32]),
            toolchain: None,
            machine: None,
            target: "native".parse().unwrap(),
            commit: "abc1234".into(),
            outcome: Outcome::Success,
            attempt: Attempt(1),
            host: None,
            wall_ms: 12,
            // What looks like a record in a string is none.
            path: "01_of_01_gabc1234_{\"run\":{\",\"sum\":\"/native".into(),
        })
    }

    /// A journal of these records, and where each is.
    fn written(records: &[Record]) -> (Vec<u8>, Vec<Range<usize>>) {
        let mut text = Vec::new();
        let places = records.iter().map(|record| {
            let begin = text.len();
            record.write(&mut text);
            begin..text.len() - 1
        });
        let places = places.collect();
        (text, places)
    }

    fn four() -> Vec<Record> {
        (1..=4).map(result).collect()
    }

    #[test]
    fn a_line_is_one_object_whose_last_field_is_the_checksum_of_the_rest() {
        let (text, _) = written(&[Record::End { run: "r1".parse().unwrap(), ended_ms: 7 }]);
        let sum = &blake3::hash(br#"{"end":{"run":"r1","ended_ms":7}}"#).to_hex()[..16];
        let line = format!("{{\"end\":{{\"run\":\"r1\",\"ended_ms\":7}},\"sum\":\"{sum}\"}}\n");
        assert_eq!(String::from_utf8(text.clone()).unwrap(), line);
        let object: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(object["sum"], *sum);
    }

    #[test]
    fn a_byte_that_changed_costs_its_own_record_and_is_told() {
        let records = four();
        let (whole, places) = written(&records);
        for at in 0..whole.len() {
            let mut text = whole.clone();
            text[at] ^= 1;
            let read = read(&text).unwrap();
            let hit = places.iter().position(|place| place.contains(&at));
            let expected: Vec<&Record> = records
                .iter()
                .enumerate()
                .filter(|(index, _)| Some(*index) != hit)
                .map(|(_, one)| one)
                .collect();
            assert_eq!(read.records.iter().collect::<Vec<_>>(), expected, "byte {at}");
            let told = read.damages.iter().any(|damage| damage.bytes.contains(&at));
            assert!(told, "byte {at}: {:?}", read.damages);
            assert_eq!(super::read(&read.mended(&text)).unwrap().records.len(), expected.len());
        }
    }

    #[test]
    fn zeros_and_garbage_cost_what_they_cover_wherever_they_are() {
        let records = four();
        let (whole, places) = written(&records);
        for fill in [0_u8, b'x', b'{', 0xff] {
            for begin in (0..whole.len()).step_by(7) {
                for length in [1, 13, 100, whole.len() / 2, whole.len()] {
                    let end = whole.len().min(begin + length);
                    let mut text = whole.clone();
                    text[begin..end].fill(fill);
                    let read = read(&text).unwrap();
                    let kept = |place: &Range<usize>| text[place.clone()] == whole[place.clone()];
                    let expected: Vec<&Record> = records
                        .iter()
                        .zip(&places)
                        .filter(|(_, place)| kept(place))
                        .map(|(one, _)| one)
                        .collect();
                    assert_eq!(read.records.iter().collect::<Vec<_>>(), expected, "{fill} in {begin}..{end}");
                    let mended = super::read(&read.mended(&text)).unwrap();
                    assert_eq!((mended.records, mended.damages), (read.records, Vec::new()));
                }
            }
        }
    }

    #[test]
    fn a_journal_of_before_is_read_and_goes_on_with_checksums() {
        let old = |record: &Record| [serde_json::to_vec(record).unwrap(), b"\n".to_vec()].concat();
        let mut text = [old(&result(1)), b"garbage\n".to_vec(), old(&result(2))].concat();
        result(3).write(&mut text);
        let whole = read(&text).unwrap();
        assert_eq!(whole.records, [result(1), result(2), result(3)]);
        let place = old(&result(1)).len();
        assert_eq!(whole.damages, [Damage { line: 2, bytes: place..place + 7 }]);
        // Whoever writes checksums writes them always.
        text.extend(old(&result(4)));
        assert_eq!(read(&text).unwrap().records.len(), 3);
    }

    #[test]
    fn a_newer_journal_is_not_read() {
        let text = b"{\"run\":{\"schema\":9,\"new\":true},\"sum\":\"0000000000000000\"}\n";
        assert_eq!(read(text).unwrap_err(), 9);
    }
}
