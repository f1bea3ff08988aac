use std::fs;

use super::*;

/// The lines of a manifest that is right.
const GOOD: [&str; 5] = [
    "id = \"debian12-1\"",
    "name = \"debian12\"",
    "role = \"build\"",
    "memory = { min = \"256 MiB\", max = \"1 GiB\" }",
    "disk = \"disk.img\"",
];

fn name() -> Name {
    "debian12".parse().unwrap()
}

struct Revision(tempfile::TempDir);

impl Revision {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("disk.img"), [7; 1024]).unwrap();
        fs::write(directory.path().join("vmlinuz"), "kernel").unwrap();
        fs::write(directory.path().join(MANIFEST), text).unwrap();
        Self(directory)
    }

    fn load(&self) -> Result<Manifest, ManifestError> {
        Manifest::load(self.0.path(), &name())
    }
}

/// A manifest in which the line of the same key is replaced, or another is added.
fn with(lines: &[&str]) -> String {
    let key = |line: &str| line.split(['=', '.']).next().unwrap_or_default().trim().to_owned();
    let mut all: Vec<String> = GOOD.iter().map(|line| (*line).to_owned()).collect();
    for line in lines {
        all.retain(|old| key(old) != key(line) || old == line);
        all.push((*line).to_owned());
    }
    all.join("\n")
}

#[test]
fn a_short_manifest_has_the_documented_defaults() {
    let manifest = Revision::new(&with(&[])).load().unwrap();
    assert_eq!((manifest.memory_min, manifest.memory_max), (256 << 20, Some(1 << 30)));
    assert_eq!((manifest.boot.clone(), manifest.network.clone()), (Boot::Bios, Network::None));
    assert_eq!((manifest.exchange, manifest.format), (Exchange::Agent, DiskFormat::Raw));
    assert_eq!(manifest.limits.startup, Duration::from_secs(120));
    assert_eq!(manifest.limits.bootstrap, Duration::from_secs(600));
    assert_eq!((manifest.limits.shutdown, manifest.limits.misboots), (Duration::from_secs(30), 2));
    assert_eq!(manifest.instances_max(), INSTANCES_MAX);
}

#[test]
fn everything_that_can_be_said_is_read() {
    let manifest = Revision::new(&with(&[
        "summary = \"Debian 12, gcc\"",
        "processors = 4",
        "format = \"raw\"",
        "kernel = \"vmlinuz\"",
        "append = \"root=/dev/vda rw\"",
        "mac = \"52:54:00:12:34:5A\"",
        "cpu = \"max\"",
        "options = [\"-device\", \"x\"]",
        "network = \"user\"",
        "protocol = 1",
        "refresh = \"7d\"",
        "display = true",
        "warm_start = true",
        "limits = { startup = \"1m\", misboots = 0 }",
    ]))
    .load()
    .unwrap();
    let boot =
        Boot::Kernel { kernel: "vmlinuz".to_owned(), initrd: None, append: "root=/dev/vda rw".to_owned() };
    assert_eq!(manifest.boot, boot);
    assert_eq!(manifest.mac.unwrap().to_string(), "52:54:00:12:34:5a");
    assert_eq!(manifest.network, Network::User);
    assert_eq!(manifest.refresh, Some(Duration::from_secs(7 * 86_400)));
    assert_eq!((manifest.limits.startup, manifest.limits.misboots), (Duration::from_secs(60), 0));
    assert_eq!(manifest.options, ["-device", "x"]);
    assert!(manifest.display && manifest.warm_start);
    let lines = ["mac = \"52:54:00:12:34:5A\"", "network = \"bridge:br0\""];
    let manifest = Revision::new(&with(&lines)).load().unwrap();
    assert_eq!(manifest.network, Network::Bridge("br0".to_owned()));
    assert_eq!(manifest.instances_max(), 1, "two guests with one address on one bridge");
}

#[test]
fn every_lie_is_found_and_named() {
    let long = format!("id = \"{}\"", "x".repeat(129));
    let many = format!("options = [{}]", "\"a\", ".repeat(65));
    let bad: &[(&[&str], &str)] = &[
        (&["name = \"other\""], "`name`: the machine's directory is called debian12, not other"),
        (&["name = \"../x\""], ":5:8: \"../x\" has the character '/'"),
        (&["id = \"\""], ":5:6: the id is empty"),
        (&[&long], "the id is 129 bytes long; the limit is 128"),
        (&["id = \"a\\u0007\""], "control character '\\u{7}'"),
        (&["id = \"caf\u{e9}\""], "only printable ASCII"),
        (&["id = \" a\""], "begins or ends with a space"),
        (&["id = 7"], "invalid type: integer `7`"),
        (&["summary = \"a\\nb\""], "control character '\\n'"),
        (&["role = \"cook\""], "unknown variant `cook`"),
        (
            &["memory = { min = \"2 GiB\", max = \"1 GiB\" }"],
            "`memory`: the maximum is less than the minimum",
        ),
        (&["memory = { max = \"1 GiB\" }"], "missing key `min`"),
        (&["memory = { min = \"1 KiB\" }"], "not between 1 MiB and 64 TiB"),
        (&["memory = { min = \"256\" }"], "its unit is missing"),
        (&["memory = { min = \"256 MiB\", size = 1 }"], "unknown key `size`"),
        (&["processors = 0"], "0 is not between 1 and 255"),
        (&["processors = -1"], "expected a whole number from 0"),
        (&["disk = \"none.img\""], "debian12/none.img is not there"),
        (&["disk = \"../disk.img\""], "not the plain name of a file"),
        (&["disk = \"\""], "not the plain name of a file"),
        (&["disk = \"..\""], "not the plain name of a file"),
        (&["format = \"qcow2\""], "disk.img is no qcow2 image"),
        (&["format = \"vmdk\""], "unknown variant `vmdk`"),
        (&["kernel = \"none\""], "debian12/none is not there"),
        (&["kernel = \"vmlinuz\"", "firmware = \"bios\""], "`firmware`: it starts from a kernel"),
        (&["kernel = \"vmlinuz\"", "initrd = \"none\""], "`initrd`: "),
        (&["append = \"quiet\""], "`append`: nothing uses it without `kernel`"),
        (&["initrd = \"initrd\""], "`initrd`: nothing uses it without `kernel`"),
        (&["warm_start = true", "network = \"bridge:br0\""], "`warm_start`: a guest gets"),
        (&["warm_start = true", "network = \"user\"", "exchange = \"tftp\""], "`warm_start`: a guest gets"),
        (&["mac = \"53:54:00:12:34:56\"", "network = \"user\""], "multicast"),
        (&["mac = \"52:54:00:12:34\"", "network = \"user\""], "no address of a network device"),
        (&["mac = \"52:54:00:12:34:+6\"", "network = \"user\""], "no address of a network device"),
        (&["mac = \"52:54:00:12:34:56:78\"", "network = \"user\""], "no address of a network device"),
        (&["mac = \"00:00:00:00:00:00\"", "network = \"user\""], "no device's address"),
        (&["mac = \"52:54:00:12:34:56\""], "`mac`: a machine without network"),
        (&["cpu = \"\""], "it is empty"),
        (&["options = [\"a\\u0000b\"]"], "control character '\\0'"),
        (&["options = [\"\"]"], "it is empty"),
        (&[&many], "65 words; the limit is 64"),
        (&["network = \"wifi\""], "it is \"none\", \"user\" or \"bridge:NAME\""),
        (&["network = \"bridge:\""], "has 1 to 15 characters, not 0"),
        (&["network = \"bridge:abcdefghijklmnop\""], "has 1 to 15 characters, not 16"),
        (&["network = \"bridge:br0,x=y\""], "cannot be the name of a bridge"),
        (&["exchange = \"tftp\""], "`exchange`: a guest reaches its TFTP server only"),
        (&["protocol = 2"], "speaks protocol 2, and this crewboss 1"),
        (&["instances = 0"], "0 is not between 1 and 256"),
        (
            &["instances = 2", "network = \"bridge:br0\"", "mac = \"52:54:00:12:34:56\""],
            "`instances`: several guests",
        ),
        (&["refresh = \"1ms\""], "less than a second"),
        (&["refresh = \"soon\""], "no duration"),
        (&["limits = { startup = \"25h\" }"], "more than a day"),
        (&["limits = { startup = \"0s\" }"], "it is nothing"),
        (&["limits = { misboots = 21 }"], "21 is not between 0 and 20"),
        (&["limits = { boot = \"1m\" }"], "unknown key `boot`"),
        (&["dsk = \"disk.img\""], "unknown key `dsk`"),
        (&["id = \"a\"\nid = \"b\""], "duplicate key"),
        (&["id = "], ":5:"),
    ];
    let mut missed = Vec::new();
    for (lines, expected) in bad {
        let text = with(lines);
        let revision = tempfile::tempdir().unwrap();
        let directory = revision.path().join("debian12");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("disk.img"), [7; 1024]).unwrap();
        fs::write(directory.join("vmlinuz"), "kernel").unwrap();
        fs::write(directory.join(MANIFEST), &text).unwrap();
        let error =
            Manifest::load(&directory, &name()).map_or_else(|error| error.to_string(), |_| "good".to_owned());
        if !error.contains(expected) || !error.contains("debian12/manifest.toml") {
            missed.push(format!("{lines:?}: {error}"));
        }
    }
    assert_eq!(missed, Vec::<String>::new());
}

#[test]
fn a_disk_that_is_no_file_of_the_revision_is_refused() {
    let revision = Revision::new(&with(&[]));
    let disk = revision.0.path().join("disk.img");
    let error = |revision: &Revision| revision.load().unwrap_err().to_string();
    fs::write(&disk, "").unwrap();
    assert!(error(&revision).contains("is empty"));
    fs::remove_file(&disk).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &disk).unwrap();
    assert!(error(&revision).contains("symbolic link"));
    fs::remove_file(&disk).unwrap();
    std::os::unix::fs::symlink("disk.img", &disk).unwrap();
    assert!(error(&revision).contains("symbolic link"));
    fs::remove_file(&disk).unwrap();
    fs::create_dir(&disk).unwrap();
    assert!(error(&revision).contains("not a regular file"));
    fs::remove_dir(&disk).unwrap();
    fs::write(&disk, b"QFI\xfb and more").unwrap();
    assert!(error(&revision).contains("is a qcow2 image"));
}

#[test]
fn a_qcow2_image_that_needs_another_file_is_refused() {
    let revision = Revision::new(&with(&["format = \"qcow2\""]));
    let mut header = [0; 112];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    let disk = revision.0.path().join("disk.img");
    fs::write(&disk, header).unwrap();
    revision.load().unwrap();
    // Its name stands behind the header; the data may lie elsewhere as well.
    for (at, value) in [(15, 104), (79, 1 << 2)] {
        let mut header = header;
        header[at] = value;
        fs::write(&disk, header).unwrap();
        assert!(revision.load().unwrap_err().to_string().contains("lies in another file"));
    }
    // Version 2 has no features, but other things there.
    header[7] = 2;
    header[79] = 1 << 2;
    fs::write(&disk, header).unwrap();
    revision.load().unwrap();
    fs::write(&disk, b"QFI\xfb").unwrap();
    revision.load().unwrap();
}

#[test]
fn a_manifest_that_is_no_small_text_is_refused() {
    let revision = Revision::new("");
    let path = revision.0.path().join(MANIFEST);
    let error = |revision: &Revision| revision.load().unwrap_err().to_string();
    fs::write(&path, b"id = \"a\"\n\xff").unwrap();
    assert!(error(&revision).ends_with("manifest.toml:2: this is not UTF-8"));
    fs::write(&path, vec![b'#'; 65 << 10]).unwrap();
    assert!(error(&revision).ends_with("is longer than 65536 bytes"));
    fs::remove_file(&path).unwrap();
    assert_eq!(revision.load().unwrap_err().hint(), Some("every revision of a machine has a manifest.toml"));
    for target in ["manifest.toml", "/etc/passwd"] {
        std::os::unix::fs::symlink(target, &path).unwrap();
        assert!(error(&revision).ends_with("is not a regular file"));
        fs::remove_file(&path).unwrap();
    }
    // Whoever opened a pipe would wait for ever.
    crewboss_host::testing::run(std::process::Command::new("mkfifo").arg(&path));
    assert!(error(&revision).ends_with("is not a regular file"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(error(&revision).ends_with("is not a regular file"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "([a-z_]+ = [\"{}\\[\\]a-z0-9 :.,=]*\n)*") {
        drop(raw::parse(&text, Path::new("manifest.toml")));
    }
}

#[test]
fn every_key_is_documented_and_the_example_is_accepted() {
    let documentation = include_str!("../../../../../CONFIGURATION.md");
    let section = documentation.split("### `manifest.toml`").nth(1).unwrap().split("\n#").next().unwrap();
    let example = section.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let path = Path::new("manifest.toml");
    raw::parse(example, path).unwrap_or_else(|error| panic!("the example: {error}"));
    let known = raw::parse(&format!("nonsense = 1\n{example}"), path).unwrap_err().to_string();
    let documented: Vec<&str> =
        section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    for key in &documented {
        assert!(known.contains(&format!("`{key}`")), "{key} is no key: {known}");
    }
    let (_, list) = known.split_once("expected one of").unwrap();
    assert_eq!(list.matches("`").count() / 2, documented.len(), "{list}");
}
