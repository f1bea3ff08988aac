use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crewboss_protocol::bulk::{BROKEN, BulkErrorKind, HOLE, HOLE_BYTES_MAX};
use crewboss_protocol::{Attempt, TaskId};
use tempfile::TempDir;

use super::*;

const AT: TaskRef = TaskRef { task: TaskId(3), attempt: Attempt(1) };
const LIMITS: ArtifactLimits = ArtifactLimits { files: 10, directories: 3, bytes: 1 << 20 };

const TIMING: Timing = Timing {
    heartbeat: Duration::from_secs(1),
    silence: Duration::from_secs(20),
    stall: Duration::from_secs(1),
    standstill: Duration::from_secs(2),
    ready: Duration::from_secs(20),
    shell: Duration::from_secs(30),
};

/// The host's end: what a test's server reads and writes.
struct Far {
    input: io::PipeReader,
    output: io::PipeWriter,
}

impl Far {
    fn line(&mut self) -> BulkRequest {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            self.input.read_exact(&mut byte).unwrap();
            if byte[0] == b'\n' {
                break;
            }
            line.push(byte[0]);
        }
        codec::parse(line.strip_prefix(codec::PREFIX).unwrap()).unwrap()
    }

    fn say(&mut self, answer: &BulkAnswer) {
        let mut line = Vec::new();
        codec::encode(answer, &mut line);
        self.output.write_all(&line).unwrap();
    }

    fn frame(&mut self, data: &[u8]) {
        self.output.write_all(&u32::try_from(data.len()).unwrap().to_be_bytes()).unwrap();
        self.output.write_all(data).unwrap();
    }

    /// All data up to the end, and whether it was complete.
    fn data(&mut self) -> (Vec<u8>, bool) {
        let mut data = Vec::new();
        loop {
            let mut length = [0; 4];
            self.input.read_exact(&mut length).unwrap();
            match u32::from_be_bytes(length) {
                0 => return (data, true),
                BROKEN => return (data, false),
                length => {
                    let start = data.len();
                    data.resize(start + usize::try_from(length).unwrap(), 0);
                    self.input.read_exact(&mut data[start..]).unwrap();
                }
            }
        }
    }

    fn artifact(&mut self, path: &str, data: &[u8]) {
        self.announce(path, data.len() as u64);
        for piece in data.chunks(100) {
            self.frame(piece);
        }
        self.frame(b"");
        self.say(&BulkAnswer::Checksum { blake3: blake3::hash(data).to_hex().to_string() });
    }

    /// By hand, since our own types refuse to hold a bad path.
    fn announce(&mut self, path: &str, bytes: u64) {
        let path = serde_json::to_string(path).unwrap();
        let line = format!("@cb {{\"artifact\":{{\"path\":{path},\"bytes\":{bytes},\"mode\":493}}}}\n");
        self.output.write_all(line.as_bytes()).unwrap();
    }
}

fn serve(work: impl FnOnce(&mut Far) + Send + 'static) -> (Bulk, JoinHandle<()>) {
    let (far_in, near_out) = io::pipe().unwrap();
    let (near_in, far_out) = io::pipe().unwrap();
    let server = std::thread::spawn(move || {
        let mut far = Far { input: far_in, output: far_out };
        far.output.write_all(b"Welcome!\nno newline yet").unwrap();
        far.output.write_all(&vec![b'x'; 100_000]).unwrap();
        far.output.write_all(b"\n").unwrap();
        far.say(&BulkAnswer::Open);
        work(&mut far);
    });
    let bulk = Bulk::spawn("lab1".parse().unwrap(), near_in, near_out, None, &TIMING).unwrap();
    (bulk, server)
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn trees_are_asked_for_in_parts_and_checked_out() {
    let tree = |number: u16| {
        let mut id = [0; 20];
        id[..2].copy_from_slice(&number.to_be_bytes());
        TreeId(id)
    };
    let (mut bulk, server) = serve(move |far| {
        for _ in 0..2 {
            let BulkRequest::Have { trees } = far.line() else { panic!() };
            // One that nobody asked for must not count.
            far.say(&BulkAnswer::Has { trees: vec![trees[0], TreeId([255; 20])] });
        }
        assert_eq!(far.line(), BulkRequest::CheckOut { tree: tree(5), near: None });
        far.say(&BulkAnswer::CheckedOut { tree: tree(5) });
    });
    let found = run(bulk.have((0..1500).map(tree).collect())).unwrap();
    assert_eq!(found, [tree(0), tree(1024)].into());
    run(bulk.check_out(tree(5), None)).unwrap();
    server.join().unwrap();
}

#[test]
fn a_pack_arrives_whole_and_a_failed_one_is_broken_off() {
    let (mut bulk, server) = serve(|far| {
        assert_eq!(far.line(), BulkRequest::Pack);
        assert_eq!(far.data(), ((0..=250).cycle().take(1_000_000).collect(), true));
        far.say(&BulkAnswer::Stored);
        assert_eq!(far.line(), BulkRequest::Pack);
        assert!(!far.data().1);
        far.say(&BulkAnswer::Failed { kind: BulkErrorKind::Objects, text: "broken off".to_owned() });
        assert_eq!(far.line(), BulkRequest::Pack);
        far.say(&BulkAnswer::Failed { kind: BulkErrorKind::NoSpace, text: "disk full".to_owned() });
    });
    let all = run(bulk.pack(|out| {
        let data: Vec<u8> = (0..=250).cycle().take(1_000_000).collect();
        data.chunks(777).try_for_each(|piece| out.write_all(piece)).map(|()| 42)
    }));
    assert_eq!(all.unwrap(), 42);
    let broken =
        run(bulk
            .pack(|out| out.write_all(b"half").and_then(|()| Err::<(), _>(io::Error::other("no object")))));
    assert!(
        matches!(&broken, Err(error @ BulkError::Produce(_)) if !error.spoils_the_channel()),
        "{broken:?}"
    );
    // The host stops reading and ends, and its reason is what we hear.
    let full: Result<(), BulkError> = run(bulk.pack(|out| {
        loop {
            out.write_all(&[0; 4096])?;
        }
    }));
    assert!(matches!(full, Err(BulkError::Remote { kind: BulkErrorKind::NoSpace, .. })), "{full:?}");
    server.join().unwrap();
}

#[test]
fn a_log_is_followed_until_its_end_is_told() {
    let (mut bulk, server) = serve(|far| {
        assert_eq!(far.line(), BulkRequest::Log { at: AT, stream: LogStream::Log });
        far.frame(b"first ");
        assert_eq!(far.line(), BulkRequest::LogEnds { bytes: 12 });
        far.frame(b"second");
        far.frame(b"");
        far.line();
        far.line();
        far.frame(b"only this");
        far.frame(b"");
        far.line();
        far.line();
        far.output.write_all(&BROKEN.to_be_bytes()).unwrap();
        far.say(&BulkAnswer::Failed { kind: BulkErrorKind::Io, text: "cannot read".to_owned() });
        far.line();
        far.line();
        far.say(&BulkAnswer::Failed { kind: BulkErrorKind::Missing, text: "gone".to_owned() });
    });
    run(async {
        let (tell, told) = oneshot::channel();
        let followed = bulk.log(AT, LogStream::Log, LogEnd::Later(told), Vec::new());
        let (result, ()) = tokio::join!(followed, async { tell.send(12).unwrap() });
        assert_eq!(result.unwrap(), (b"first second".to_vec(), 12));
        let short = bulk.log(AT, LogStream::Err, LogEnd::Known(100), Vec::new()).await;
        assert!(matches!(short, Err(BulkError::Length { announced: 100, bytes: 9, .. })), "{short:?}");
        let broken = bulk.log(AT, LogStream::Err, LogEnd::Known(100), Vec::new()).await;
        assert!(matches!(broken, Err(BulkError::Remote { kind: BulkErrorKind::Io, .. })), "{broken:?}");
        let none = bulk.log(AT, LogStream::Err, LogEnd::Known(100), Vec::new()).await;
        assert!(matches!(none, Err(BulkError::Remote { kind: BulkErrorKind::Missing, .. })), "{none:?}");
    });
    server.join().unwrap();
}

fn fetch(work: impl FnOnce(&mut Far) + Send + 'static) -> (Result<u64, BulkError>, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let result = fetch_into(directory.path(), work);
    (result, directory)
}

fn fetch_into(directory: &Path, work: impl FnOnce(&mut Far) + Send + 'static) -> Result<u64, BulkError> {
    let (mut bulk, server) = serve(move |far| {
        assert_eq!(far.line(), BulkRequest::Artifacts { at: AT });
        work(far);
    });
    let result = run(bulk.artifacts(AT, directory.to_owned(), LIMITS));
    server.join().unwrap();
    if result.as_ref().is_err_and(BulkError::spoils_the_channel) {
        assert!(matches!(run(bulk.have(vec![])), Err(BulkError::Spoilt { .. })));
    }
    result
}

#[test]
fn artifacts_arrive_with_their_content_and_mode() {
    let (result, directory) = fetch(|far| {
        far.artifact("top", b"one");
        far.artifact("a/b/c", &[7; 1000]);
        far.artifact("a/b/empty", b"");
        far.artifact("a/d", b"two");
        far.say(&BulkAnswer::Complete);
    });
    assert_eq!(result.unwrap(), 4);
    assert_eq!(std::fs::read(directory.path().join("a/b/c")).unwrap(), [7; 1000]);
    let mode = std::fs::metadata(directory.path().join("a/d")).unwrap().permissions().mode();
    assert_eq!(mode & 0o700, 0o700);
}

#[test]
fn a_file_arrives_with_its_holes_and_its_mode_and_can_be_read() {
    const HOLE_BYTES: u64 = 400_000;
    let whole = [vec![0; 400_000], b"data".to_vec(), vec![0; 400_000]].concat();
    let (expected, sent) = (whole.clone(), blake3::hash(&whole).to_hex().to_string());
    let hole = |far: &mut Far, bytes: u64| {
        far.output.write_all(&HOLE.to_be_bytes()).unwrap();
        far.output.write_all(&bytes.to_be_bytes()).unwrap();
    };
    let (result, directory) = fetch(move |far| {
        let path = "sparse".parse().unwrap();
        far.say(&BulkAnswer::Artifact { path, bytes: whole.len() as u64, mode: 0o050 });
        hole(far, HOLE_BYTES);
        far.frame(b"data");
        hole(far, HOLE_BYTES);
        far.frame(b"");
        far.say(&BulkAnswer::Checksum { blake3: sent });
        far.say(&BulkAnswer::Complete);
    });
    result.unwrap();
    let file = directory.path().join("sparse");
    assert!(std::fs::read(&file).unwrap() == expected);
    let state = std::fs::metadata(&file).unwrap();
    assert!(state.blocks() * 512 < HOLE_BYTES, "{} blocks", state.blocks());
    assert_eq!(state.permissions().mode() & 0o7777, 0o450);
    for (hole_bytes, announced) in [(0, 10), (HOLE_BYTES_MAX + 1, 10), (u64::MAX, 10), (11, 10)] {
        let (refused, _directory) = fetch(move |far| {
            far.announce("a", announced);
            hole(far, hole_bytes);
        });
        assert!(matches!(refused, Err(BulkError::Rule { .. } | BulkError::Length { .. })), "{refused:?}");
    }
}

#[test]
fn a_hostile_host_is_refused() {
    let long = "a".repeat(256);
    for path in ["../x", "/etc/x", "a/../../x", "", "a//b", "a\nb", &long] {
        let announced = path.to_owned();
        let (result, _directory) = fetch(move |far| far.announce(&announced, 1));
        assert!(matches!(result, Err(BulkError::Decode { .. })), "{path:?} gave {result:?}");
    }
    let (twice, _directory) = fetch(|far| {
        far.artifact("a", b"x");
        far.announce("a", 1);
    });
    assert!(matches!(twice, Err(BulkError::Rule { .. })), "{twice:?}");
    let (below_a_file, _directory) = fetch(|far| {
        far.artifact("a", b"x");
        far.announce("a/b", 1);
    });
    assert!(matches!(below_a_file, Err(BulkError::Rule { .. })), "{below_a_file:?}");
    let (longer, _directory) = fetch(|far| {
        far.announce("a", 3);
        far.frame(b"four");
    });
    assert!(matches!(longer, Err(BulkError::Length { announced: 3, bytes: 4, .. })), "{longer:?}");
    let (over_all, _directory) = fetch(|far| far.announce("a", LIMITS.bytes + 1));
    assert!(matches!(over_all, Err(BulkError::Rule { .. })), "{over_all:?}");
    let (too_many, _directory) = fetch(|far| {
        for number in 0..LIMITS.files {
            far.artifact(&number.to_string(), b"");
        }
        far.announce("one more", 0);
    });
    assert!(matches!(too_many, Err(BulkError::Rule { .. })), "{too_many:?}");
    let (too_deep, directory) = fetch(|far| {
        far.artifact("a/b/c", b"");
        far.artifact("a/d/e", b"");
        far.announce("a/b/f/g", 0);
    });
    assert!(matches!(too_deep, Err(BulkError::Rule { .. })), "{too_deep:?}");
    assert!(!directory.path().join("a/b/f").exists());
    let (damaged, _directory) = fetch(|far| {
        far.announce("a", 1);
        far.frame(b"x");
        far.frame(b"");
        far.say(&BulkAnswer::Checksum { blake3: "0".repeat(64) });
    });
    assert!(matches!(damaged, Err(BulkError::Checksum { .. })), "{damaged:?}");
    let (huge_frame, _directory) = fetch(|far| {
        far.announce("a", 1);
        far.output.write_all(&(1_u32 << 30).to_be_bytes()).unwrap();
    });
    assert!(matches!(huge_frame, Err(BulkError::Rule { .. })), "{huge_frame:?}");
    let (ends, _directory) = fetch(|far| {
        far.announce("a", 100);
        far.frame(b"half");
    });
    assert!(matches!(ends, Err(BulkError::Lost { .. })), "{ends:?}");
}

#[test]
fn a_link_in_the_directory_is_not_followed() {
    let elsewhere = tempfile::tempdir().unwrap();
    let directory = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), directory.path().join("link")).unwrap();
    symlink(elsewhere.path().join("file"), directory.path().join("file")).unwrap();
    for path in ["link/x", "file"] {
        let result = fetch_into(directory.path(), move |far| far.announce(path, 1));
        assert!(matches!(result, Err(BulkError::Rule { .. })), "{path} gave {result:?}");
    }
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn a_channel_that_ends_at_once_is_lost() {
    let (mut bulk, _server) = serve(|_| ());
    assert!(matches!(run(bulk.have(vec![TreeId([1; 20])])), Err(BulkError::Lost { .. })));
}

/// A host that does nothing until the channel ends, wherever it has come to.
fn stands_still(far: &mut Far) {
    let _ended = io::copy(&mut far.input, &mut io::sink());
}

fn expect_stalled<T: std::fmt::Debug>(result: Result<T, BulkError>, limit: &str) {
    let Err(error) = &result else { panic!("{result:?}") };
    assert!(error.spoils_the_channel());
    assert!(error.to_string().contains("stood still for") && error.to_string().contains(limit), "{error}");
}

#[test]
fn a_host_that_stands_still_is_noticed_wherever_it_does() {
    let (mut bulk, _server) = serve(stands_still);
    expect_stalled(run(bulk.have(vec![TreeId([1; 20])])), "`stall`");
    let (mut bulk, _server) = serve(|far| {
        far.line();
        far.frame(b"half");
        stands_still(far);
    });
    expect_stalled(run(bulk.log(AT, LogStream::Log, LogEnd::Known(100), Vec::new())), "`stall`");
    let directory = tempfile::tempdir().unwrap();
    let (mut bulk, _server) = serve(|far| {
        far.line();
        far.announce("a", 1000);
        far.frame(b"half");
        stands_still(far);
    });
    expect_stalled(run(bulk.artifacts(AT, directory.path().to_owned(), LIMITS)), "`stall`");
    // One that does not read what it is sent.
    let (tell, told) = mpsc::channel::<()>();
    let (mut bulk, _server) = serve(move |far| {
        far.line();
        let _over = told.recv();
    });
    let endless = |out: &mut dyn Write| -> io::Result<()> {
        loop {
            out.write_all(&[0; 4096])?;
        }
    };
    expect_stalled(run(bulk.pack(endless)), "`stall`");
    drop((bulk, tell));
}

#[test]
fn a_byte_now_and_then_is_no_progress_and_a_slow_line_is() {
    let (tell, told) = mpsc::channel::<()>();
    let (mut bulk, server) = serve(move |far| {
        far.line();
        while told.try_recv() == Err(mpsc::TryRecvError::Empty) {
            std::thread::sleep(TIMING.stall / 20);
            // Once it is given up, nobody reads.
            if far.output.write_all(&[0, 0, 0, 1, b'x']).is_err() {
                return;
            }
        }
    });
    expect_stalled(run(bulk.log(AT, LogStream::Log, LogEnd::Known(1 << 30), Vec::new())), "`stall`");
    drop((bulk, tell));
    server.join().unwrap();
    // Some times what has to move, for longer than a transfer may stand still.
    let (mut bulk, server) = serve(move |far| {
        far.line();
        far.line();
        for _ in 0..40 {
            std::thread::sleep(TIMING.stall / 20);
            far.frame(&[b'x'; 512]);
        }
        far.frame(b"");
    });
    let (_, bytes) = run(bulk.log(AT, LogStream::Log, LogEnd::Known(40 * 512), Vec::new())).unwrap();
    assert_eq!(bytes, 40 * 512);
    server.join().unwrap();
}

#[test]
fn working_on_each_of_many_answers_has_an_end() {
    let directory = tempfile::tempdir().unwrap();
    let (tell, told) = mpsc::channel::<()>();
    let (mut bulk, server) = serve(move |far| {
        far.line();
        let mut number = 0;
        while told.try_recv() == Err(mpsc::TryRecvError::Empty) && number < LIMITS.files {
            for _ in 0..5 {
                std::thread::sleep(TIMING.stall / 10);
                let mut line = Vec::new();
                codec::encode(&BulkAnswer::Working, &mut line);
                if far.output.write_all(&line).is_err() {
                    return;
                }
            }
            far.artifact(&number.to_string(), b"");
            number += 1;
        }
    });
    expect_stalled(run(bulk.artifacts(AT, directory.path().to_owned(), LIMITS)), "`standstill`");
    drop((bulk, tell));
    // The channel has ended in the middle of what it says.
    let _torn = server.join();
}

#[test]
fn a_host_that_says_that_it_works_has_longer_but_not_for_ever() {
    let working = |far: &mut Far, times: u32| {
        far.line();
        for _ in 0..times {
            far.say(&BulkAnswer::Working);
            std::thread::sleep(TIMING.stall / 10);
        }
    };
    let (mut bulk, server) = serve(move |far| {
        working(far, 15);
        far.say(&BulkAnswer::CheckedOut { tree: TreeId([5; 20]) });
    });
    run(bulk.check_out(TreeId([5; 20]), None)).unwrap();
    server.join().unwrap();
    let (mut bulk, _server) = serve(move |far| working(far, 30));
    expect_stalled(run(bulk.check_out(TreeId([5; 20]), None)), "`standstill`");
}

#[test]
fn what_takes_time_on_this_computer_is_not_the_hosts() {
    let (mut bulk, server) = serve(|far| {
        far.line();
        assert!(far.data().1);
        far.say(&BulkAnswer::Stored);
    });
    let begun = Instant::now();
    let slow = |out: &mut dyn Write| {
        std::thread::sleep(TIMING.stall * 2);
        out.write_all(b"late")
    };
    run(bulk.pack(slow)).unwrap();
    assert!(begun.elapsed() > TIMING.stall);
    server.join().unwrap();
}
