use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;

use crewboss_host::testing::{Mount, content, run};
use crewboss_protocol::TaskRef;
use crewboss_protocol::bulk::{BROKEN, HOLE, LogStream};
use crewboss_protocol::limits::{BULK_CHUNK_BYTES_MAX, LONG_FILE_BYTES};
use git2::Repository;
use serde::Serialize;

use super::*;
use crate::testing::tree_of;

/// The boss's end of a channel whose server runs in a thread.
struct Boss {
    stream: UnixStream,
    server: Option<JoinHandle<bool>>,
    /// Bytes that came as holes.
    holes: u64,
    layout: Layout,
    _work: tempfile::TempDir,
}

impl Boss {
    fn new() -> Self {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path().to_owned());
        Self::at(layout, work)
    }

    fn at(layout: Layout, work: tempfile::TempDir) -> Self {
        let (stream, other) = UnixStream::pair().unwrap();
        let at = layout.clone();
        let session = || "r.1".parse().unwrap();
        let server = std::thread::spawn(move || serve(at, session(), other.as_fd(), other.as_fd()));
        let mut boss = Self { stream, server: Some(server), holes: 0, layout, _work: work };
        assert_eq!(boss.byte(), b'\n');
        assert_eq!(boss.answer(), BulkAnswer::Open);
        boss
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).unwrap();
        byte[0]
    }

    fn answer(&mut self) -> BulkAnswer {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(self.byte());
        }
        codec::parse(line.trim_ascii_end().strip_prefix(codec::PREFIX).unwrap()).unwrap()
    }

    fn ask(&mut self, request: &impl Serialize) {
        let mut line = Vec::new();
        codec::encode(request, &mut line);
        self.stream.write_all(&line).unwrap();
    }

    fn send(&mut self, data: &[u8]) {
        for chunk in data.chunks(BULK_CHUNK_BYTES_MAX) {
            self.stream.write_all(&u32::try_from(chunk.len()).unwrap().to_be_bytes()).unwrap();
            self.stream.write_all(chunk).unwrap();
        }
        self.stream.write_all(&[0; 4]).unwrap();
    }

    /// The data up to its end; whether it was complete.
    fn data(&mut self) -> (Vec<u8>, bool) {
        let mut data = Vec::new();
        loop {
            let mut head = [0; 4];
            self.stream.read_exact(&mut head).unwrap();
            match u32::from_be_bytes(head) {
                0 => return (data, true),
                BROKEN => return (data, false),
                HOLE => {
                    let mut hole = [0; 8];
                    self.stream.read_exact(&mut hole).unwrap();
                    self.holes += u64::from_be_bytes(hole);
                    data.resize(data.len() + usize::try_from(u64::from_be_bytes(hole)).unwrap(), 0);
                }
                length => {
                    let from = data.len();
                    data.resize(from + usize::try_from(length).unwrap(), 0);
                    self.stream.read_exact(&mut data[from..]).unwrap();
                }
            }
        }
    }

    fn fails(&mut self, expected: BulkErrorKind) -> String {
        match self.answer() {
            BulkAnswer::Failed { kind, text } if kind == expected => text,
            answer => panic!("expected {expected:?}, got {answer:?}"),
        }
    }

    fn attempt(&self) -> PathBuf {
        let attempt = self.layout.attempt(&"r.1".parse().unwrap(), at());
        fs::create_dir_all(&attempt).unwrap();
        attempt
    }

    /// Whether the server ended in order after the channel was closed.
    fn close(mut self) -> bool {
        self.stream.shutdown(std::net::Shutdown::Both).unwrap();
        self.server.take().unwrap().join().unwrap()
    }
}

fn at() -> TaskRef {
    "3.1".parse().unwrap()
}

fn git(directory: &Path, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new("git");
    command.arg("-C").arg(directory).args(arguments);
    for (name, value) in [("NAME", "t"), ("EMAIL", "t@example.org")] {
        command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
    }
    let mut git =
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdin = git.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = git.wait_with_output().unwrap();
    assert!(output.status.success(), "git {arguments:?}");
    drop(feeder.join());
    output.stdout
}

/// A repository with two trees that differ little, and the packs of the first, and of the second
/// without the first (thin: its deltas need objects of the first).
fn packs(lines: usize) -> (tempfile::TempDir, [TreeId; 2], [Vec<u8>; 2]) {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::init_bare(directory.path()).unwrap();
    let mut state = 7_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        format!("{state:x}\n")
    };
    let text: String = (0..lines).map(|_| noise()).collect();
    let changed = format!("{text}one more line\n");
    let first = tree_of(&repository, &[("big", 0o100644, &text), ("d/a", 0o100755, "a\n")]);
    let second = tree_of(&repository, &[("big", 0o100644, &changed), ("d/a", 0o100755, "a\n")]);
    let commit = |tree: TreeId, parent: &[&str]| {
        let tree = tree.to_string();
        let arguments = [&["commit-tree", "-m", "x"], parent, &[tree.as_str()]].concat();
        String::from_utf8(git(directory.path(), &arguments, b"")).unwrap().trim().to_owned()
    };
    let one = commit(first, &[]);
    let two = commit(second, &["-p", &one]);
    let pack = |revisions: String| {
        git(directory.path(), &["pack-objects", "--revs", "--thin", "--stdout", "-q"], revisions.as_bytes())
    };
    let packs = [pack(format!("{one}\n")), pack(format!("{two}\n^{one}\n"))];
    (directory, [first, second], packs)
}

#[test]
fn packs_whole_and_thin_small_and_large_are_stored_and_checked_out() {
    for lines in [500, 200_000] {
        let (_repository, [first, second], [whole, thin]) = packs(lines);
        assert!(thin.len() < 1000, "the pack is not thin: {}", thin.len());
        let mut boss = Boss::new();
        boss.ask(&BulkRequest::Have { trees: vec![first, second] });
        assert_eq!(boss.answer(), BulkAnswer::Has { trees: vec![] });
        for (tree, near, pack) in [(first, None, &whole), (second, Some(first), &thin)] {
            boss.ask(&BulkRequest::CheckOut { tree, near });
            boss.fails(BulkErrorKind::Objects);
            boss.ask(&BulkRequest::Pack);
            boss.send(pack);
            assert_eq!(boss.answer(), BulkAnswer::Stored);
            boss.ask(&BulkRequest::Have { trees: vec![tree] });
            assert_eq!(boss.answer(), BulkAnswer::Has { trees: vec![tree] });
            boss.ask(&BulkRequest::CheckOut { tree, near });
            assert_eq!(boss.answer(), BulkAnswer::CheckedOut { tree });
            assert_eq!(content(&boss.layout.source(tree)).len(), 2);
        }
        assert!(boss.close());
    }
}

#[test]
fn a_long_file_comes_by_itself_and_is_written_with_its_holes() {
    let mut content = vec![0; usize::try_from(LONG_FILE_BYTES).unwrap()];
    content[..4].copy_from_slice(b"head");
    *content.last_mut().unwrap() = b'.';
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::init_bare(directory.path()).unwrap();
    let id = TreeId(repository.blob(&content).unwrap().as_bytes().try_into().unwrap());
    let text = String::from_utf8(content.clone()).unwrap();
    let tree = tree_of(&repository, &[("long", 0o100644, &text)]);
    let mut boss = Boss::new();
    let bytes = content.len() as u64;
    for (bytes, sent) in [(bytes, &content[1..]), (bytes - 1, &content[1..])] {
        boss.ask(&BulkRequest::File { id, bytes });
        boss.send(sent);
        boss.fails(BulkErrorKind::Objects);
    }
    boss.ask(&BulkRequest::File { id, bytes });
    boss.send(&content);
    assert_eq!(boss.answer(), BulkAnswer::Stored);
    boss.ask(&BulkRequest::Pack);
    boss.send(&git(directory.path(), &["pack-objects", "--stdout", "-q"], format!("{tree}\n").as_bytes()));
    assert_eq!(boss.answer(), BulkAnswer::Stored);
    boss.ask(&BulkRequest::CheckOut { tree, near: None });
    assert_eq!(boss.answer(), BulkAnswer::CheckedOut { tree });
    let file = boss.layout.source(tree).join("long");
    assert!(fs::read(&file).unwrap() == content);
    assert!(file.metadata().unwrap().blocks() * 512 < bytes / 2, "it has no hole");
    // More than was said ends the channel, since nobody knows where the next request would begin.
    boss.ask(&BulkRequest::File { id, bytes: 1 });
    boss.stream.write_all(b"\0\0\0\x03two").unwrap();
    boss.fails(BulkErrorKind::Objects);
    assert!(!boss.close());
}

#[test]
fn broken_packs_are_refused_and_the_channel_goes_on() {
    let (_repository, [first, _], [whole, thin]) = packs(100_000);
    let mut boss = Boss::new();
    let mut torn = whole.clone();
    torn[whole.len() / 2] ^= 1;
    for pack in [&b""[..], b"PACK", &whole[..whole.len() - 9], &torn, &thin] {
        boss.ask(&BulkRequest::Pack);
        boss.send(pack);
        boss.fails(BulkErrorKind::Objects);
    }
    boss.ask(&BulkRequest::Pack);
    boss.stream.write_all(&BROKEN.to_be_bytes()).unwrap();
    boss.fails(BulkErrorKind::Objects);
    boss.ask(&BulkRequest::Have { trees: vec![first] });
    assert_eq!(boss.answer(), BulkAnswer::Has { trees: vec![] });
}

#[test]
fn a_log_is_followed_while_it_grows() {
    let mut boss = Boss::new();
    let mut log = File::create(boss.attempt().join("log")).unwrap();
    let mut sent = vec![b'x'; 3 << 20];
    log.write_all(&sent).unwrap();
    boss.ask(&BulkRequest::Log { at: at(), stream: LogStream::Log });
    log.write_all(b"more\0\xff").unwrap();
    sent.extend_from_slice(b"more\0\xff");
    let bytes = sent.len() as u64;
    boss.ask(&BulkRequest::LogEnds { bytes });
    assert_eq!(boss.data(), (sent, true));
    // One that is shorter than was said, and one that is not there.
    boss.ask(&BulkRequest::Log { at: at(), stream: LogStream::Log });
    boss.ask(&BulkRequest::LogEnds { bytes: bytes + 1 });
    assert!(!boss.data().1);
    boss.fails(BulkErrorKind::Io);
    boss.ask(&BulkRequest::Log { at: at(), stream: LogStream::Err });
    boss.fails(BulkErrorKind::Missing);
    boss.ask(&BulkRequest::LogEnds { bytes: 1 });
    boss.fails(BulkErrorKind::Protocol);
    assert!(boss.close());
}

#[test]
fn artifacts_come_with_checksums_and_links_are_refused() {
    let mut boss = Boss::new();
    let attempt = boss.attempt();
    let big = vec![7_u8; 700_000];
    let files: [(&str, &[u8]); 3] = [("a/empty", b""), ("small", b"text\n"), ("big", &big)];
    let mut list = String::new();
    for (name, data) in files {
        let file = attempt.join(name.replace('/', "_"));
        fs::write(&file, data).unwrap();
        list += &format!("{}\n", serde_json::json!({ "path": name, "file": file }));
    }
    fs::write(attempt.join("artifacts.list"), &list).unwrap();
    boss.ask(&BulkRequest::Artifacts { at: at() });
    for (name, data) in files {
        let bytes = data.len() as u64;
        let path = name.parse().unwrap();
        assert_eq!(boss.answer(), BulkAnswer::Artifact { path, bytes, mode: 0o644 });
        assert_eq!(boss.data(), (data.to_vec(), true));
        assert_eq!(boss.answer(), BulkAnswer::Checksum { blake3: blake3::hash(data).to_hex().to_string() });
    }
    assert_eq!(boss.answer(), BulkAnswer::Complete);
    std::os::unix::fs::symlink("/etc/passwd", attempt.join("link")).unwrap();
    run(Command::new("mkfifo").arg(attempt.join("fifo")));
    for (path, file, kind) in [
        ("x", "link", BulkErrorKind::Io),
        ("x", "fifo", BulkErrorKind::Io),
        ("x", "gone", BulkErrorKind::Missing),
        ("../x", "small", BulkErrorKind::Name),
    ] {
        let line = serde_json::json!({ "path": path, "file": attempt.join(file) });
        fs::write(attempt.join("artifacts.list"), line.to_string()).unwrap();
        boss.ask(&BulkRequest::Artifacts { at: at() });
        boss.fails(kind);
    }
    assert!(boss.close());
}

#[test]
fn holes_of_artifacts_are_told_and_modes_kept() {
    let mut boss = Boss::new();
    let attempt = boss.attempt();
    let file = attempt.join("sparse");
    let sparse = File::create(&file).unwrap();
    sparse.set_len(3 << 20).unwrap();
    sparse.write_all_at(b"data", 1 << 20).unwrap();
    sparse.set_permissions(fs::Permissions::from_mode(0o4751)).unwrap();
    let line = serde_json::json!({ "path": "sparse", "file": file });
    fs::write(attempt.join("artifacts.list"), line.to_string()).unwrap();
    boss.ask(&BulkRequest::Artifacts { at: at() });
    let path = "sparse".parse().unwrap();
    assert_eq!(boss.answer(), BulkAnswer::Artifact { path, bytes: 3 << 20, mode: 0o751 });
    let (data, whole) = boss.data();
    assert!(whole && data == fs::read(&file).unwrap());
    assert!(boss.holes > 2 << 20, "only {} bytes came as holes", boss.holes);
    assert_eq!(boss.answer(), BulkAnswer::Checksum { blake3: blake3::hash(&data).to_hex().to_string() });
    assert_eq!(boss.answer(), BulkAnswer::Complete);
    assert!(boss.close());
}

#[test]
fn nonsense_ends_the_channel_with_a_reason() {
    for line in ["hello\n", "@cb {\"jump\":1}\n", "@cb \n"] {
        let mut boss = Boss::new();
        boss.stream.write_all(line.as_bytes()).unwrap();
        boss.fails(BulkErrorKind::Protocol);
        assert!(!boss.server.take().unwrap().join().unwrap());
    }
    let mut boss = Boss::new();
    boss.ask(&BulkRequest::Pack);
    boss.stream.write_all(&(1_u32 << 30).to_be_bytes()).unwrap();
    boss.fails(BulkErrorKind::Protocol);
    let mut boss = Boss::new();
    boss.ask(&BulkRequest::Pack);
    boss.stream.write_all(&[0, 0, 1]).unwrap();
    assert!(!boss.close());
}

#[test]
fn a_full_disk_is_told_as_such() {
    let (_repository, _, [whole, _]) = packs(300_000);
    for full in ["git", "library"] {
        let mount = Mount::tmpfs(2);
        let layout = Layout::new(mount.path());
        let mut boss = Boss::at(layout, tempfile::tempdir().unwrap());
        boss.ask(&BulkRequest::Pack);
        let size = if full == "git" { whole.len() } else { pack::GIT_FROM - 1 };
        let mut ballast = vec![0_u8; 1_500_000];
        ballast[0] = 1;
        fs::write(mount.path().join("ballast"), ballast).unwrap();
        let mut sender = boss.stream.try_clone().unwrap();
        let data = whole[..size].to_vec();
        // The server may stop reading in the middle.
        let sending = std::thread::spawn(move || {
            for chunk in data.chunks(BULK_CHUNK_BYTES_MAX) {
                sender.write_all(&u32::try_from(chunk.len())?.to_be_bytes())?;
                sender.write_all(chunk)?;
            }
            sender.write_all(&[0; 4])?;
            Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
        });
        boss.fails(BulkErrorKind::NoSpace);
        drop(sending.join());
    }
}
