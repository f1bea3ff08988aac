use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use crewboss_host::tar::{Attributes, Writer};

use proptest::prelude::*;

use super::*;

const ATTRIBUTES: Attributes = Attributes { mode: 0o644, time: 1 };

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (name, text) in files {
        match text.strip_prefix("-> ") {
            Some(target) => writer.link(name.as_bytes(), target.as_bytes(), ATTRIBUTES).unwrap(),
            None => {
                let size = text.len() as u64;
                writer.file(name.as_bytes(), ATTRIBUTES, size, &mut text.as_bytes()).unwrap();
            }
        }
    }
    writer.finish().unwrap().0
}

fn take(bytes: &[u8], length: u64, globs: &[&str], limits: ArchiveLimits) -> Result<Taken, ArchiveError> {
    let base = tempfile::tempdir().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let globs: Vec<String> = globs.iter().map(|glob| (*glob).to_owned()).collect();
    let into = base.path().join("into");
    let unpacked = unpack(&file, length, &into, &globs, limits)?;
    let read = |files: &BTreeMap<String, PathBuf>| {
        let read = |(name, file): (&String, &PathBuf)| {
            assert!(file.starts_with(&into) && file.symlink_metadata().unwrap().is_file());
            format!("{name}={}", fs::read_to_string(file).unwrap())
        };
        files.iter().map(read).collect::<Vec<_>>()
    };
    let (files, uploads) = (read(&unpacked.found.files), read(&unpacked.uploads));
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1, "something was written beside the directory");
    Ok(Taken { files, uploads, bytes: unpacked.found.bytes, problems: unpacked.found.problems.join("; ") })
}

#[derive(Debug)]
struct Taken {
    files: Vec<String>,
    uploads: Vec<String>,
    bytes: u64,
    problems: String,
}

fn taken(files: &[(&str, &str)], globs: &[&str]) -> Taken {
    let bytes = archive(files);
    take(&bytes, bytes.len() as u64, globs, ArchiveLimits::within(u64::MAX)).unwrap()
}

#[test]
fn out_wins_over_src_and_what_matches_nothing_is_left() {
    let files = [
        ("./src/a.bin", "old"),
        ("out/a.bin", "new"),
        ("src/b.bin", "b"),
        ("src/only.txt", "t"),
        ("out/deep/c.o", "c"),
        ("out/other", "o"),
    ];
    let got = taken(&files, &["*.bin", "only.txt", "**/c.o", "none", "["]);
    assert_eq!(got.files, ["a.bin=new", "deep/c.o=c", "only.txt=t"]);
    assert_eq!(got.bytes, 5);
    assert!(
        got.problems
            .starts_with("nothing matches the artifact \"none\"; \"[\" cannot name files of a task: ")
    );
    assert!(got.uploads.is_empty());
}

#[test]
fn an_archive_gives_what_looking_on_a_disk_gives() {
    let base = tempfile::tempdir().unwrap();
    let files = [
        ("out/a.bin", "1"),
        ("out/d/a.bin", "2"),
        ("src/a.bin", "3"),
        ("src/d/e/f.o", "4"),
        ("src/g.o", "5"),
    ];
    for (name, text) in files {
        let path = base.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    for globs in [["a.bin", "*.o"], ["**/*.bin", "**/*.o"], ["d/*", "d/**"], ["{a,g}.*", "?.o"], ["x", "d"]] {
        let owned = globs.map(str::to_owned);
        let (out, src) = (base.path().join("out"), base.path().join("src"));
        let found = crewboss_host::artifacts::find(&owned, &[&out, &src], Default::default()).unwrap();
        let expected: Vec<String> = found
            .files
            .iter()
            .map(|(name, file)| format!("{name}={}", fs::read_to_string(file).unwrap()))
            .collect();
        let got = taken(&files, &globs);
        assert_eq!((got.files, got.bytes), (expected, found.bytes), "{globs:?}");
        assert_eq!(got.problems.is_empty(), found.problems.is_empty(), "{globs:?}");
    }
}

#[test]
fn uploads_are_kept_apart() {
    let got = taken(&[("out/upload/p/x", "1"), ("src/upload/y", "2"), ("out/z", "3")], &["z", "upload/p/x"]);
    assert_eq!(got.uploads, ["p/x=1"]);
    assert_eq!(got.files, ["upload/p/x=1", "z=3"]);
}

#[test]
fn an_upload_that_is_a_file_and_a_directory_is_reported() {
    let files = [("out/upload/a/b", "file"), ("out/upload/a/b/c", "below"), ("out/upload/a/d/e", "good")];
    let got = taken(&files, &[]);
    assert_eq!(got.uploads, ["a/b/c=below", "a/d/e=good"]);
    assert_eq!(got.problems, "the archive has the upload \"a/b\" as a file, and \"a/b/c\" below it");
}

#[test]
fn names_that_lead_elsewhere_are_refused_and_reported() {
    for name in ["out/../../evil", "/etc/passwd", "out//x", "out/a\nb", "elsewhere/x", "../x", "out/.", "out"]
    {
        let got = taken(&[(name, "x"), ("out/good", "g")], &["**"]);
        assert_eq!(got.files, ["good=g"], "{name:?}");
        assert!(!got.problems.is_empty(), "{name:?} was not reported");
    }
}

#[test]
fn a_name_that_no_file_system_can_have_is_refused_and_reported() {
    for name in [format!("out/{}.bin", "a".repeat(256)), format!("out/{}b", "a/".repeat(256))] {
        let got = taken(&[(&name, "x"), ("out/good", "g")], &["**"]);
        assert_eq!(got.files, ["good=g"], "{name:?}");
        assert!(got.problems.contains("cannot be brought back: \"a"), "{:?}", got.problems);
    }
}

#[test]
fn links_are_never_made_nor_written_through() {
    let got = taken(&[("out/a", "-> /tmp"), ("out/a/b", "x"), ("out/a", "second")], &["a", "a/b"]);
    assert_eq!(got.files, ["a/b=x"]);
    assert!(got.problems.contains("\"a\" is a symbolic link") && got.problems.contains("twice"), "{got:?}");
    let ignored = taken(&[("out/a", "-> /tmp"), ("out/b", "x")], &["b"]);
    assert!(ignored.problems.is_empty(), "what nobody wants is no problem: {ignored:?}");
}

#[test]
fn limits_hold_and_lengths_are_checked() {
    let bytes = archive(&[("out/a", "12345"), ("out/b", "12345")]);
    let length = bytes.len() as u64;
    let limits = |entries, bytes| ArchiveLimits { entries, bytes };
    let error = |length, limits| take(&bytes, length, &["*"], limits).unwrap_err();
    assert!(matches!(error(length, limits(1, 100)), ArchiveError::TooMany { limit: 1 }));
    assert!(matches!(error(length, limits(9, 9)), ArchiveError::TooBig { bytes: 10, limit: 9 }));
    assert!(matches!(error(length + 1, limits(9, 10)), ArchiveError::Length { .. }));
    assert!(matches!(error(length - 1024, limits(9, 10)), ArchiveError::Tar(TarError::CutOff { .. })));
    assert_eq!(take(&bytes, length, &["*"], limits(2, 10)).unwrap().files.len(), 2);
    let none = take(&bytes, 0, &["a"], limits(2, 10)).unwrap();
    assert_eq!(none.problems, "nothing matches the artifact \"a\"");
}

#[test]
fn modes_and_holes_are_kept_and_special_bits_are_not() {
    let base = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(Vec::new());
    let sparse = [vec![0; 1 << 20], b"data".to_vec(), vec![0; 1 << 20]].concat();
    for (name, mode, data) in
        [("out/x", 0o6751, b"x".as_slice()), ("out/y", 0o040, b""), ("out/z", 0o644, &sparse)]
    {
        let attributes = Attributes { mode, time: 1 };
        writer.file(name.as_bytes(), attributes, data.len() as u64, &mut { data }).unwrap();
    }
    let bytes = writer.finish().unwrap().0;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let into = base.path().join("into");
    let length = bytes.len() as u64;
    let unpacked = unpack(&file, length, &into, &["*".to_owned()], ArchiveLimits::within(u64::MAX)).unwrap();
    let state = |name: &str| fs::metadata(&unpacked.found.files[name]).unwrap();
    let mode = |name: &str| state(name).permissions().mode() & 0o7777;
    assert_eq!((mode("x"), mode("y"), mode("z")), (0o751, 0o440, 0o644));
    assert!(fs::read(&unpacked.found.files["z"]).unwrap() == sparse);
    assert!(state("z").blocks() * 512 < 1 << 20, "{} blocks", state("z").blocks());
    assert!(
        unpack(&file, 0, &into, &[], ArchiveLimits::within(u64::MAX)).is_err(),
        "the directory is there already"
    );
}

proptest! {
    #[test]
    fn no_damage_makes_it_panic_or_write_elsewhere(
        damage in prop::collection::vec((0_usize..8192, any::<u8>()), 0..40),
        length in 0_u64..9000,
        names in prop::collection::vec("(\\./|/)?(out|src|\\.\\.)?/?[a-z./]{0,8}", 1..5),
    ) {
        let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "text")).collect();
        let mut bytes = archive(&files);
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(got) = take(&bytes, length, &["**", "*"], ArchiveLimits::within(u64::MAX)) {
            for file in got.files.iter().chain(&got.uploads) {
                prop_assert!(!file.starts_with('/') && !file.contains("../"));
            }
        }
    }
}
