//! Uploads: what a task leaves below `$CREWBOSS_OUT/upload/<type>/<instance>/` becomes one archive
//! per instance, with its SHA-256 beside it, and is brought back like artifacts.
//!
//! The same files give the same archive: entries are sorted, and times and owners are left out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use crewboss_ground::{Directory, Open, Replace};
use crewboss_host::artifacts::{Found, is_of_host};
use crewboss_protocol::Name;
use crewboss_protocol::limits::{ARTIFACTS_MAX, UPLOADS_MAX};
use sha2::{Digest as _, Sha256};

/// Directories in each other that are looked through.
const DEPTH_MAX: usize = 256;

/// What a tar archive is made of.
const BLOCK: usize = 512;

/// One upload, as it lies in the output of a task.
struct Instance {
    kind: Name,
    name: Name,
    root: PathBuf,
}

/// Whether a task has left anything that is an upload.
pub fn are_in(out: &Path) -> bool {
    out.join("upload").symlink_metadata().is_ok_and(|meta| meta.is_dir())
}

/// Makes the archives of a task below `dir` and adds them to what was found. That there are none is
/// the ordinary case.
///
/// # Errors
/// If the host has no room, or its disk fails. All else is what the task did wrong, and among the
/// problems of `found`.
pub fn add(out: &Path, dir: &Path, found: &mut Found) -> io::Result<()> {
    if !are_in(out) {
        return Ok(());
    }
    let uploads = out.join("upload");
    let instances = match instances(&uploads, found) {
        Err(error) if !is_of_host(&error) => {
            found.problem(format!("the uploads cannot be looked through: {error}"));
            return Ok(());
        }
        instances => instances?,
    };
    // Said before anything is written: these are as many commands at the boss, and there it would
    // be too late.
    if instances.len() > UPLOADS_MAX {
        found.problem(format!("there are more than {UPLOADS_MAX} uploads"));
        return Ok(());
    }
    if found.files.len() + 2 * instances.len() > ARTIFACTS_MAX {
        found.problem(format!(
            "there are more than {ARTIFACTS_MAX} artifacts, uploads and their checksums included"
        ));
        return Ok(());
    }
    for instance in instances {
        match add_one(&instance, dir, found) {
            Ok(()) => {}
            // A name too long, a right that the task took away from itself: trying again elsewhere
            // would not help.
            Err(error) if !is_of_host(&error) => {
                found.problem(format!("the upload {} cannot be archived: {error}", instance.name));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Puts files below `out` where [`add`] looks for them, by hard links. Fails with the name that
/// cannot be there.
///
/// # Errors
/// See [`is_of_host`].
#[expect(
    clippy::disallowed_methods,
    reason = "it is the build's directory, below which nothing of ours lies"
)]
pub fn place<'a>(out: &Path, files: &'a BTreeMap<String, PathBuf>) -> Result<(), (&'a str, io::Error)> {
    for (name, file) in files {
        let path = out.join("upload").join(name);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all);
        made.and_then(|()| fs::hard_link(file, path)).map_err(|error| (name.as_str(), error))?;
    }
    Ok(())
}

/// All uploads, or as many as are enough to know that they are too many.
fn instances(uploads: &Path, found: &mut Found) -> io::Result<Vec<Instance>> {
    let mut all = Vec::new();
    for kind in sorted(uploads)? {
        let Some(kind_name) = directory(uploads, &kind, found) else { continue };
        let place = uploads.join(&kind);
        for instance in sorted(&place).map_err(at(&Path::new("upload").join(&kind)))? {
            let Some(name) = directory(&place, &instance, found) else { continue };
            all.push(Instance { kind: kind_name.clone(), name, root: place.join(&instance) });
            if all.len() > UPLOADS_MAX {
                return Ok(all);
            }
        }
    }
    Ok(all)
}

/// Adds one archive and its checksum, if it can be made.
fn add_one(instance: &Instance, dir: &Path, found: &mut Found) -> io::Result<()> {
    let Instance { kind, name, root } = instance;
    let place = dir.join("uploads").join(kind.as_str());
    Directory::make(&place)?;
    let file = place.join(format!("{name}.tar"));
    let Some(sum) = archive(root, name, &file, found)? else { return Ok(()) };
    let beside = place.join(format!("{name}.tar.sha256"));
    // As `sha256sum` writes it, so that `sha256sum -c` reads it.
    Replace::with_mode(0o644).path(&beside, format!("{sum}  {name}.tar\n").as_bytes())?;
    for (path, end) in [(file, ""), (beside, ".sha256")] {
        found.bytes += path.metadata()?.len();
        found.files.insert(format!("upload/{kind}/{name}.tar{end}"), path);
    }
    Ok(())
}

/// What is in a directory. Of one that has far too much, enough to find that out.
fn sorted(directory: &Path) -> io::Result<Vec<OsString>> {
    let entries = fs::read_dir(directory)?.take(ARTIFACTS_MAX + 1);
    let names: io::Result<Vec<OsString>> = entries.map(|entry| Ok(entry?.file_name())).collect();
    let mut names = names?;
    names.sort();
    Ok(names)
}

/// Says what cannot be read, if that is the task's doing: of an error of the host only the number
/// counts.
fn at(shown: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| match is_of_host(&error) {
        true => error,
        // One that is too long is known by its beginning.
        false => io::Error::new(error.kind(), format!("{:.300}: {error}", shown.to_string_lossy())),
    }
}

/// The name of a type or instance, if it is a directory that can have one.
fn directory(parent: &Path, entry: &OsString, found: &mut Found) -> Option<Name> {
    let shown = entry.to_string_lossy();
    if !parent.join(entry).symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        found.problem(format!("the upload {shown:?} is not a directory; it is upload/<type>/<instance>/"));
        return None;
    }
    match shown.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            found.problem(format!("an upload cannot be brought back: {error}"));
            None
        }
    }
}

/// Writes the archive of one instance and returns its SHA-256, or `None` if something in it cannot
/// be archived.
fn archive(root: &Path, name: &Name, file: &Path, found: &mut Found) -> io::Result<Option<String>> {
    let mut tar = Tar::new(Open::create().path(file)?);
    let mut entries = 0;
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        let full = root.join(&path);
        let shown = Path::new(name.as_str()).join(&path);
        let meta = full.symlink_metadata().map_err(at(&shown))?;
        entries += 1;
        let problem = if meta.is_dir() {
            tar.directory(&shown)?;
            let names = sorted(&full).map_err(at(&shown))?;
            // Taken from the end, so that the first one is next.
            open.extend(names.into_iter().rev().map(|name| path.join(name)));
            (path.components().count() >= DEPTH_MAX).then_some("directories are too deep in each other")
        } else if meta.is_file() {
            tar.file(&shown, &full, &meta)?;
            None
        } else if meta.is_symlink() {
            let target = fs::read_link(&full).map_err(at(&shown))?;
            tar.link(&shown, &target)?;
            (!stays_below(&path, &target)).then_some("a link leads out of it, or has a `..` behind a name")
        } else {
            Some("it has what is neither file, directory nor link")
        };
        let problem = problem.or((entries + open.len() > ARTIFACTS_MAX).then_some("it has too many files"));
        if let Some(problem) = problem {
            found.problem(format!("the upload {name} cannot be archived: {problem} ({:?})", shown.display()));
            return Ok(None);
        }
    }
    tar.finish().map(Some)
}

/// Whether a link in an archive leads to a place in the same archive. A `..` behind a name is
/// refused, since that name may be a link, too: then it does not lead back to where the name
/// stands.
fn stays_below(link: &Path, target: &Path) -> bool {
    let depth = link.components().count().saturating_sub(1);
    let mut parts = target.components().filter(|part| *part != Component::CurDir).peekable();
    let mut up = 0;
    while parts.next_if_eq(&Component::ParentDir).is_some() {
        up += 1;
    }
    up <= depth && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// A tar archive that is being written, in the format that GNU tar writes.
struct Tar {
    out: BufWriter<File>,
    hash: Sha256,
}

impl Tar {
    fn new(file: File) -> Self {
        Self { out: BufWriter::with_capacity(256 << 10, file), hash: Sha256::new() }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }

    fn pad(&mut self, written: u64) -> io::Result<()> {
        let over = usize::try_from(written % BLOCK as u64).unwrap_or(0);
        if over == 0 { Ok(()) } else { self.write(&[0; BLOCK][over..]) }
    }

    fn directory(&mut self, path: &Path) -> io::Result<()> {
        let mut name = path.as_os_str().as_bytes().to_vec();
        if name.last() != Some(&b'/') {
            name.push(b'/');
        }
        self.entry(b'5', &name, &[], 0o755, 0)
    }

    fn link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        self.entry(b'2', path.as_os_str().as_bytes(), target.as_os_str().as_bytes(), 0o777, 0)
    }

    fn file(&mut self, path: &Path, from: &Path, meta: &Metadata) -> io::Result<()> {
        let mode = if meta.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
        self.entry(b'0', path.as_os_str().as_bytes(), &[], mode, meta.len())?;
        let file = Open::read().of_anybody().path(from).map_err(|error| at(path)(error.without_path()))?;
        let mut file = file.take(meta.len());
        let mut buffer = vec![0; 256 << 10];
        let mut written = 0;
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            self.write(&buffer[..count])?;
            written += count as u64;
        }
        if written != meta.len() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a file of an upload got shorter"));
        }
        self.pad(written)
    }

    fn entry(&mut self, kind: u8, name: &[u8], link: &[u8], mode: u64, size: u64) -> io::Result<()> {
        for (kind, text) in [(b'L', name), (b'K', link)] {
            // A name that does not fit comes before its entry, as the content of an entry of its
            // own.
            if text.len() > 100 {
                let size = text.len() as u64 + 1;
                self.write(&header(kind, b"././@LongLink", &[], 0, size))?;
                self.write(text)?;
                self.write(&[0])?;
                self.pad(size)?;
            }
        }
        self.write(&header(kind, name, link, mode, size))
    }

    fn finish(mut self) -> io::Result<String> {
        self.write(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

fn header(kind: u8, name: &[u8], link: &[u8], mode: u64, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, room: usize, bytes: &[u8]| {
        let bytes = &bytes[..bytes.len().min(room)];
        block[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, 100, name);
    put(100, 8, format!("{mode:07o}").as_bytes());
    put(108, 8, b"0000000");
    put(116, 8, b"0000000");
    if size < 1 << 33 {
        put(124, 12, format!("{size:011o}").as_bytes());
    } else {
        // Too large for eleven octal digits: a binary number, marked by its first bit.
        put(124, 12, &[0x80, 0, 0, 0]);
        put(128, 8, &size.to_be_bytes());
    }
    put(136, 12, b"00000000000");
    put(148, 8, b"        ");
    put(156, 1, &[kind]);
    put(157, 100, link);
    put(257, 8, b"ustar  \0");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crewboss_host::testing::as_stranger;
    use rustix::io::Errno;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    fn put(base: &Path, name: &str, data: &str) {
        let file = base.join("out/upload").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, data).unwrap();
    }

    fn added(base: &Path) -> Found {
        let mut found = Found::default();
        add(&base.join("out"), &base.join("task"), &mut found).unwrap();
        found
    }

    fn names(found: &Found) -> Vec<&str> {
        found.files.keys().map(String::as_str).collect()
    }

    fn output(command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn each_instance_becomes_an_archive_that_others_can_read() {
        let base = tempfile::tempdir().unwrap();
        let deep = format!("package/hello/{0}/{0}/{0}.txt", "long-name".repeat(8));
        put(base.path(), &deep, "deep\n");
        put(base.path(), "package/hello/bin/run", "#!/bin/sh\n");
        put(base.path(), "package/other/empty", "");
        put(base.path(), "log/all/x", &"x".repeat(100_000));
        let upload = base.path().join("out/upload/package/hello");
        fs::set_permissions(upload.join("bin/run"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("bin/run", upload.join("go")).unwrap();
        let found = added(base.path());
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        let archives = ["log/all", "package/hello", "package/other"];
        let expected: Vec<String> = archives
            .iter()
            .flat_map(|name| ["", ".sha256"].map(|end| format!("upload/{name}.tar{end}")))
            .collect();
        assert_eq!(names(&found), expected);
        assert_eq!(found.bytes, found.files.values().map(|file| file.metadata().unwrap().len()).sum::<u64>());

        let place = base.path().join("task/uploads/package");
        output(Command::new("sha256sum").args(["-c", "hello.tar.sha256"]).current_dir(&place));
        output(Command::new("tar").args(["xf", "hello.tar"]).current_dir(&place));
        assert_eq!(fs::read_to_string(place.join(deep.strip_prefix("package/").unwrap())).unwrap(), "deep\n");
        assert_eq!(fs::read_link(place.join("hello/go")).unwrap(), Path::new("bin/run"));
        let mode = place.join("hello/bin/run").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o100, 0o100);
        let listed = output(Command::new("tar").args(["tf", "hello.tar"]).current_dir(&place));
        assert_eq!(listed.lines().next(), Some("hello/"));
        let first = fs::read(place.join("hello.tar")).unwrap();
        put(base.path(), "package/hello/bin/run", "#!/bin/sh\n");
        added(base.path());
        assert_eq!(fs::read(place.join("hello.tar")).unwrap(), first, "the time of a file is in the archive");
    }

    #[test]
    fn what_cannot_be_an_upload_is_said_and_not_brought_back() {
        let problem = |prepare: &dyn Fn(&Path)| {
            let base = tempfile::tempdir().unwrap();
            let upload = base.path().join("out/upload");
            fs::create_dir_all(upload.join("kind/one")).unwrap();
            prepare(&upload);
            let found = added(base.path());
            assert!(found.files.keys().all(|name| name.contains("kind/one")), "{:?}", names(&found));
            found.problems.join("; ")
        };
        assert_eq!(problem(&|_| ()), "");
        assert!(problem(&|upload| fs::write(upload.join("file"), "").unwrap()).contains("not a directory"));
        assert!(
            problem(&|upload| fs::write(upload.join("kind/x.tar"), "").unwrap()).contains("not a directory")
        );
        assert!(
            problem(&|upload| symlink("/etc", upload.join("kind/etc")).unwrap()).contains("not a directory")
        );
        assert!(problem(&|upload| fs::create_dir(upload.join("a b")).unwrap()).contains("the character ' '"));
        for target in ["/etc/passwd", "../../secret", "x/../../../secret"] {
            let leaves = |upload: &Path| symlink(target, upload.join("kind/one/link")).unwrap();
            assert!(problem(&leaves).contains("leads out"), "{target}");
        }
        let fifo = |upload: &Path| {
            output(Command::new("mkfifo").arg(upload.join("kind/one/fifo")));
        };
        assert!(problem(&fifo).contains("neither file"));
        let linked = tempfile::tempdir().unwrap();
        fs::create_dir(linked.path().join("out")).unwrap();
        symlink("/etc", linked.path().join("out/upload")).unwrap();
        assert!(added(linked.path()).files.is_empty());
    }

    #[test]
    fn what_a_task_makes_impossible_is_not_the_failure_of_the_host() {
        let base = tempfile::tempdir().unwrap();
        put(base.path(), "kind/one/x", "");
        // More than a path can have, as a build can make it by changing into one directory after
        // the other.
        let mut at = File::open(base.path().join("out/upload/kind/one")).unwrap();
        for _ in 0..20 {
            let name = "x".repeat(250);
            rustix::fs::mkdirat(&at, &*name, rustix::fs::Mode::RWXU).unwrap();
            let flags = rustix::fs::OFlags::DIRECTORY;
            at = rustix::fs::openat(&at, &*name, flags, rustix::fs::Mode::empty()).unwrap().into();
        }
        let found = added(base.path());
        let said = found.problems.join("; ");
        assert_eq!(names(&found).len(), 0);
        assert!(said.starts_with("the upload one cannot be archived: one/xxx"), "{said}");
        assert!(said.ends_with("xxx: File name too long (os error 36)") && said.len() < 400, "{said}");

        let numbered = base.path().join("0");
        fs::write(&numbered, "x").unwrap();
        let files = ["kind/two", "kind/two/below"].map(|name| (name.to_owned(), numbered.clone())).into();
        let (name, error) = place(&base.path().join("placed"), &files).unwrap_err();
        assert!(name == "kind/two/below" && !is_of_host(&error), "{error}");
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::IO] {
            assert!(is_of_host(&errno.into()), "{errno}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let base = tempfile::tempdir().unwrap();
        for (name, denied) in
            [("kind/one/x", "kind/one/x"), ("kind/two/x/y", "kind/two/x"), ("other/one/x", "other")]
        {
            put(base.path(), name, "");
            let denied = base.path().join("out/upload").join(denied);
            fs::set_permissions(denied, fs::Permissions::from_mode(0o0)).unwrap();
        }
        for directory in ["", "out", "out/upload", "out/upload/kind"] {
            fs::set_permissions(base.path().join(directory), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let said = || as_stranger(|| added(base.path())).problems.join("; ");
        assert_eq!(
            said(),
            "the uploads cannot be looked through: upload/other: Permission denied (os error 13)"
        );
        let other = base.path().join("out/upload/other");
        fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(
            said(),
            "the upload one cannot be archived: one/x: Permission denied (os error 13); \
             the upload two cannot be archived: two/x: Permission denied (os error 13)"
        );
    }

    #[test]
    fn too_many_uploads_are_said_and_not_brought_back() {
        let base = tempfile::tempdir().unwrap();
        let kind = base.path().join("out/upload/kind");
        for number in 0..UPLOADS_MAX {
            fs::create_dir_all(kind.join(number.to_string())).unwrap();
        }
        let all = added(base.path());
        assert_eq!((all.files.len(), all.problems.len()), (2 * UPLOADS_MAX, 0), "{:?}", all.problems);
        fs::create_dir_all(base.path().join("out/upload/other/one")).unwrap();
        let found = added(base.path());
        assert_eq!((found.files.len(), found.bytes), (0, 0));
        assert_eq!(found.problems, ["there are more than 1000 uploads"]);
    }

    #[test]
    fn uploads_count_among_the_artifacts_of_their_task() {
        let base = tempfile::tempdir().unwrap();
        put(base.path(), "kind/one/x", "");
        let names = |count: usize| (0..count).map(|number| (number.to_string(), PathBuf::new())).collect();
        let mut found = Found { files: names(ARTIFACTS_MAX - 1), ..Found::default() };
        add(&base.path().join("out"), &base.path().join("task"), &mut found).unwrap();
        assert_eq!(found.files.len(), ARTIFACTS_MAX - 1, "the boss refuses more, and the host with it");
        assert!(found.problems.join("; ").contains("more than 1000000 artifacts"), "{:?}", found.problems);
        found = Found { files: names(ARTIFACTS_MAX - 2), ..Found::default() };
        add(&base.path().join("out"), &base.path().join("task"), &mut found).unwrap();
        assert_eq!((found.files.len(), found.problems.len()), (ARTIFACTS_MAX, 0));
    }

    #[test]
    fn no_links_together_lead_out_of_an_upload() {
        let stays = |link: &str, target: &str| stays_below(Path::new(link), Path::new(target));
        // Each looks harmless alone, and `p/q/L/..` is beside the upload.
        assert!(stays("p/q/d", "../.."));
        assert!(!stays("p/q/L", "d/../.."));
        for target in ["a/..", "../a/../b", "./a/./..", "/", "../../..", "./../../../x"] {
            assert!(!stays("p/q/L", target), "{target}");
        }
        for target in ["a", "a/b", "./a", "..", ".././../a", "../../p/q/a", "..a/b.."] {
            assert!(stays("p/q/L", target), "{target}");
        }
        assert!(stays("L", "a") && stays("L", ".") && !stays("L", ".."));
    }

    #[test]
    fn a_file_beyond_eight_gibibytes_has_its_size_in_binary() {
        let block = header(b'0', b"x", &[], 0o644, (1 << 33) + 5);
        assert_eq!(block[124..136], [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 5]);
        assert_eq!(&header(b'0', b"x", &[], 0o644, 9)[124..135], b"00000000011");
    }
}
