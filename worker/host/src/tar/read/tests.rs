use std::io::Cursor;
use std::process::Command;

use proptest::prelude::*;

use super::super::{Attributes, Writer};
use super::*;

const ATTRIBUTES: Attributes = Attributes { mode: 0o755, time: 1_700_000_000 };

/// Everything in an archive: names, kinds and contents.
fn all(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(Cursor::new(archive), archive.len() as u64);
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        let position = entry.position;
        reader.read_to_end(&mut content).map_err(|source| TarError::Io { position, source })?;
        assert_eq!(content.len() as u64, entry.size);
        found.push((entry, content));
    }
    Ok(found)
}

fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    writer.file(name.as_bytes(), ATTRIBUTES, content.len() as u64, &mut &*content).unwrap();
    writer.finish().unwrap().0
}

fn names(found: &[(Entry, Vec<u8>)]) -> Vec<String> {
    found.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.name).into_owned()).collect()
}

#[test]
fn what_the_writer_writes_the_program_tar_understands() {
    let directory = tempfile::tempdir().unwrap();
    let long = format!("deep/{}/end", "x".repeat(150));
    let mut writer = Writer::new(Vec::new());
    writer.directory(b"deep", ATTRIBUTES).unwrap();
    writer.file(b"deep/a b", ATTRIBUTES, 3, &mut b"abc".as_slice()).unwrap();
    writer.file(long.as_bytes(), ATTRIBUTES, 5, &mut b"ab".as_slice()).unwrap();
    writer.link(b"link", format!("/{}", "t".repeat(120)).as_bytes(), ATTRIBUTES).unwrap();
    let (bytes, length) = writer.finish().unwrap();
    assert_eq!(bytes.len() as u64, length);
    std::fs::write(directory.path().join("x.tar"), &bytes).unwrap();
    crate::testing::run(Command::new("tar").args(["-xf", "x.tar"]).current_dir(directory.path()));
    let read = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
    assert_eq!(read("deep/a b"), b"abc");
    assert_eq!(read(&long), b"ab\0\0\0");
    assert_eq!(std::fs::read_link(directory.path().join("link")).unwrap().as_os_str().len(), 121);
    assert_eq!(names(&all(&bytes).unwrap()), ["deep", "deep/a b", &long, "link"]);
}

#[test]
fn what_other_tars_write_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(140));
    let short = format!("{}/{}", "d".repeat(90), "f".repeat(60));
    std::fs::create_dir(directory.path().join("d".repeat(90))).unwrap();
    for name in [&long, &short] {
        std::fs::write(directory.path().join(name), "text").unwrap();
    }
    std::os::unix::fs::symlink("somewhere", directory.path().join("link")).unwrap();
    for format in ["gnu", "pax", "ustar"] {
        let long = if format == "ustar" { &short } else { &long };
        let mut tar = Command::new("tar");
        tar.args(["-cf", "/dev/stdout", "--format", format, "link", long, &short]);
        let output = tar.current_dir(directory.path()).output().unwrap();
        let found = all(&output.stdout).unwrap();
        assert_eq!(names(&found), ["link", long.as_str(), short.as_str()], "{format}");
        assert_eq!(found[0].0.kind, Kind::Link(b"somewhere".to_vec()));
        assert_eq!(found[1].1, b"text");
        assert_eq!(found[1].0.kind, Kind::File);
    }
}

#[test]
fn an_archive_that_is_cut_off_anywhere_is_an_error() {
    let whole = archive(&"n".repeat(200), &[7; 1000]);
    for length in 0..whole.len() - BLOCK {
        let cut = all(&whole[..length]);
        assert!(matches!(cut, Err(TarError::CutOff { .. })), "{length} bytes: {cut:?}");
    }
    assert_eq!(all(&whole[..whole.len() - BLOCK]).unwrap().len(), 1, "one end block is enough");
}

#[test]
fn what_an_archive_claims_is_not_believed() {
    let fix = |bytes: &mut [u8]| {
        let block: &mut [u8; BLOCK] = (&mut bytes[..BLOCK]).try_into().unwrap();
        let sum = format!("{:06o}\0 ", checksum(block));
        block[148..156].copy_from_slice(sum.as_bytes());
    };
    let mut huge = archive("a", b"x");
    huge[124..136].copy_from_slice(b"77777777777\0");
    fix(&mut huge);
    assert!(matches!(all(&huge), Err(TarError::CutOff { .. })));
    let mut binary = archive("a", b"x");
    binary[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    fix(&mut binary);
    assert!(matches!(all(&binary), Err(TarError::CutOff { .. })));
    let mut name = archive("a", &[b'x'; 20_000]);
    name[156] = b'L';
    fix(&mut name);
    let error = all(&name).unwrap_err().to_string();
    assert!(error.contains("longer than a path"), "{error}");
    let mut again = Vec::new();
    for _ in 0..20 {
        let mut one = archive("a", b"x");
        one[156] = b'L';
        fix(&mut one);
        again.extend_from_slice(&one[..2 * BLOCK]);
    }
    assert!(all(&again).unwrap_err().to_string().contains("too many headers"));
}

proptest! {
    #[test]
    fn any_damage_ends_in_an_answer_and_never_in_a_panic(
        damage in prop::collection::vec((0_usize..4096, any::<u8>()), 0..12),
        fixed in any::<bool>(),
        kind in prop::sample::select(b"01257LKxgS\0".to_vec()),
    ) {
        let mut bytes = archive(&"n".repeat(120), &[b'1'; 700]);
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes[field::KIND] = kind;
        if fixed {
            let block: &mut [u8; BLOCK] = (&mut bytes[..BLOCK]).try_into().unwrap();
            let sum = format!("{:06o}\0 ", checksum(block));
            block[148..156].copy_from_slice(sum.as_bytes());
        }
        drop(all(&bytes));
    }

    #[test]
    fn archives_survive_the_way(files in prop::collection::vec(("[a-z/]{1,300}x", prop::collection::vec(any::<u8>(), 0..1200)), 0..6)) {
        let mut writer = Writer::new(Vec::new());
        for (name, content) in &files {
            writer.file(name.as_bytes(), ATTRIBUTES, content.len() as u64, &mut content.as_slice()).unwrap();
        }
        let found = all(&writer.finish().unwrap().0).unwrap();
        prop_assert_eq!(found.len(), files.len());
        for ((entry, content), (name, expected)) in found.iter().zip(&files) {
            prop_assert_eq!(&entry.name, name.as_bytes());
            prop_assert_eq!(content, expected);
            prop_assert_eq!((entry.mode, entry.time), (ATTRIBUTES.mode, ATTRIBUTES.time));
        }
    }
}
