//! Named limits. Whoever enforces one refers to it here, so that both sides agree.

use std::time::Duration;

/// Longest line on the control channel, prefix and newline included.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// A finished log up to this size travels inside `done`; a longer one, or one that is not UTF-8,
/// over a bulk channel.
pub const INLINE_LOG_BYTES_MAX: usize = 16 << 10;

/// Longest piece of live output in one `log` message.
pub const LIVE_CHUNK_BYTES_MAX: usize = 32 << 10;

/// Live output that may wait at the worker for a slow boss; beyond it the live view is shortened.
/// The stored log is not affected.
pub const LIVE_BUFFER_BYTES_MAX: usize = 1 << 20;

/// Files of this length or more travel by themselves, and are written and read piece by piece: what
/// is in a pack has to fit into memory, some of it several times.
pub const LONG_FILE_BYTES: u64 = 16 << 20;

/// Longest piece of data in one frame of a bulk channel.
pub const BULK_CHUNK_BYTES_MAX: usize = 256 << 10;

/// Channels that the boss opens on one connection: control, source, and two for results. sshd's
/// default `MaxSessions` is 10, and a person's own sessions may share the connection.
pub const CHANNELS_MAX: usize = 4;

/// Longest name of a host, target, stage, toolchain, tag or run.
pub const NAME_BYTES_MAX: usize = 128;

/// Longest relative path of an artifact; Linux allows 4096 for a whole path.
pub const PATH_BYTES_MAX: usize = 3072;

/// Longest part of the path of an artifact: what file systems take as the name of one file.
pub const PATH_PART_BYTES_MAX: usize = 255;

/// Parts of the path of an artifact.
pub const PATH_PARTS_MAX: usize = 256;

/// Targets in one build file.
pub const TARGETS_MAX: usize = 100_000;

/// Stages of one target.
pub const STAGES_MAX: usize = 64;

/// Longest word of a command, and longest variable with its name: what Linux gives to a program in
/// one piece, which is 128 KiB with the NUL behind it.
pub const WORD_BYTES_MAX: usize = (128 << 10) - 1;

/// Largest definition of a target, as it is sent. All variables and the words of a command go to a
/// program together, for which there are 2 MiB on most systems; this leaves room for what a build
/// adds.
pub const TARGET_BYTES_MAX: usize = 512 << 10;

/// Tasks in one message (`recall`, `returned`).
pub const TASKS_PER_MESSAGE_MAX: usize = 4096;

/// Tasks that one worker accepts before any of them has started.
pub const QUEUED_TASKS_MAX: usize = 4096;

/// Artifacts of one task.
pub const ARTIFACTS_MAX: usize = 1_000_000;

/// Bytes of all artifacts of one task, holes included, unless something else is said.
pub const ARTIFACT_BYTES: u64 = 100 << 30;

/// What a directory of artifacts takes on a disk, and counts among their bytes: deep in each other,
/// they could fill any.
pub const DIRECTORY_BYTES: u64 = 4096;

/// Bytes of the log of one task, unless something else is said.
pub const LOG_BYTES: u64 = 4 << 30;

/// Bytes of what the boss writes down of one session with a host, unless something else is said.
pub const HOST_LOG_BYTES: u64 = 256 << 20;

/// Lines that a host may say in a second, unless something else is said: some ten times as many as
/// the fastest tasks need.
pub const MESSAGES_PER_SECOND: u32 = 50_000;

/// Uploads of one task: each is an archive, a checksum and a command at the boss.
pub const UPLOADS_MAX: usize = 1000;

/// Auxiliary machines of one target.
pub const AUXILIARIES_MAX: usize = 9;

/// Longest piece of raw output that follows a `log` line of a guest.
pub const GUEST_LOG_BYTES_MAX: usize = 64 << 10;

/// Machines, or guests, in one list.
pub const MACHINES_MAX: usize = 1024;

/// Versions that a bootstrap can report.
pub const VERSIONS_MAX: usize = 1024;

/// Guests that are held on one host at the same time. Each takes as much disk as its memory; those
/// that came first stay.
pub const HELD_MAX: usize = 8;

/// How long a guest is held for a person, unless something else is said.
pub const HOLD: Duration = Duration::from_secs(3600);

/// How long a task waits for the person in its guest, unless something else is said.
pub const INTERACTIVE: Duration = Duration::from_secs(3600);

/// Length of a text that is shown to a person: errors, notices, reasons.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// Largest number of bytes or milliseconds in a message: what every reader of JSON keeps exactly,
/// and small enough that the numbers of one task can be added up.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;

/// How often each side says that it is there, when nothing else is said.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// After this long without a line the other side counts as gone.
pub const SILENCE: Duration = Duration::from_secs(20);

/// A transfer that should move and moves less than [`STALL_BYTES`] in this time stands still.
pub const STALL: Duration = Duration::from_secs(30);

/// See [`STALL`]; the same if a person has set another time. With 30 s it is 136 bytes in a second:
/// a seventh of a line of 9600 baud, which two transfers of results, one of source and what is said
/// between may share.
pub const STALL_BYTES: u32 = 4 << 10;

/// How long a process of ours may do one thing without a sign of life (collect artifacts, write a
/// disk, check a tree out) before whoever started it takes it for one that stands still.
pub const STANDSTILL: Duration = Duration::from_secs(600);

/// Between asking a task's processes to end (SIGTERM) and ending them (SIGKILL).
pub const KILL_GRACE: Duration = Duration::from_secs(2);

/// From the first Ctrl-C to the end of the boss.
pub const STOP_WITHIN: Duration = Duration::from_secs(5);

// All times of a task together are a number, too.
const _: () = assert!(NUMBER_MAX < u64::MAX / (STAGES_MAX as u64 + 16));
// A heartbeat may be lost to a busy machine twice before it counts as silence.
const _: () = assert!(SILENCE.as_millis() >= 3 * HEARTBEAT.as_millis());
// Killing must be over before the boss stops waiting for it.
const _: () = assert!(KILL_GRACE.as_millis() + 2000 <= STOP_WITHIN.as_millis());
// Even if every byte of both inlined logs is escaped to six, the line holds, with room for the
// rest.
const _: () = assert!(2 * 6 * INLINE_LOG_BYTES_MAX + (256 << 10) <= LINE_BYTES_MAX);
const _: () = assert!(TARGET_BYTES_MAX + 1024 <= LINE_BYTES_MAX);
const _: () = assert!(6 * LIVE_CHUNK_BYTES_MAX + 1024 <= LINE_BYTES_MAX);
