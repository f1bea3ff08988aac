//! What of a working tree is taken, in all the ways that people set up repositories, by git and
//! without it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use git2::{ObjectType, TreeWalkMode, TreeWalkResult};
use tempfile::TempDir;

use super::library::Library;
use super::user::User;
use super::*;

/// A directory with a repository, to which things are done as people do them: by git.
struct Ground {
    directory: TempDir,
}

/// Mode and content of each file.
type Files = BTreeMap<Vec<u8>, (i32, Vec<u8>)>;

impl Ground {
    /// With an empty repository at `r`.
    fn new() -> Self {
        let ground = Self { directory: tempfile::tempdir().unwrap() };
        fs::create_dir(ground.path("home")).unwrap();
        ground.git(".", &["init", "-q", "-b", "main", "r"]);
        ground
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A line of shell, with nobody's settings.
    fn shell(&self, at: &str, line: &str) {
        let mut shell = Command::new("sh");
        shell.args(["-ec", line]).current_dir(self.path(at));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"GIT_")) {
            shell.env_remove(name);
        }
        shell.env("HOME", self.path("home")).env("GIT_CONFIG_NOSYSTEM", "1").env_remove("XDG_CONFIG_HOME");
        for who in ["AUTHOR", "COMMITTER"] {
            shell.env(format!("GIT_{who}_NAME"), "a").env(format!("GIT_{who}_EMAIL"), "a@example.org");
        }
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn git(&self, at: &str, words: &[&str]) {
        let words: Vec<String> = words.iter().map(|word| crate::link::quote(word)).collect();
        self.shell(at, &format!("git {}", words.join(" ")));
    }

    /// The source as git knows it.
    fn open(&self, at: &str, selection: &Selection) -> Result<Source, SourceError> {
        Source::open(&self.path(at), selection)
    }

    /// The source on a computer without git.
    fn open_without_git(&self, at: &str, selection: &Selection) -> Result<Source, SourceError> {
        let top = repository_of(&self.path(at)).unwrap();
        Source::of(&User::Library(Library::at(&top)?), top, selection)
    }

    /// The files of the working tree, which are the same by git and without it.
    fn taken(&self, at: &str) -> Files {
        let by_git = files(&self.open(at, &Selection::WorkingTree).unwrap());
        assert_eq!(by_git, files(&self.open_without_git(at, &Selection::WorkingTree).unwrap()));
        by_git
    }

    fn names(&self, at: &str) -> Vec<String> {
        self.taken(at).into_keys().map(|name| String::from_utf8_lossy(&name).into_owned()).collect()
    }

    fn subjects(&self, range: &str) -> Vec<String> {
        let source = self.open("r", &Selection::Range(range.to_owned()));
        source.unwrap().commits().iter().map(|commit| commit.subject.clone()).collect()
    }

    /// What is said and advised, without what differs from run to run.
    fn told(&self, error: &SourceError) -> (String, String) {
        let plain = |text: String| text.replace(&*self.directory.path().to_string_lossy(), "TOP");
        (plain(crate::chain(error)), plain(error.hint().unwrap_or_default().into_owned()))
    }

    /// Runs what a hint says in backquotes.
    fn obey(&self, at: &str, error: &SourceError) {
        let hint = error.hint().unwrap();
        self.shell(at, hint.split('`').nth(1).unwrap());
    }
}

fn files(source: &Source) -> Files {
    let repository = source.repository().unwrap();
    let tree = repository.find_tree(oid(source.commits()[0].tree).unwrap()).unwrap();
    let mut found = Files::new();
    tree.walk(TreeWalkMode::PreOrder, |parent, entry| {
        if entry.kind() == Some(ObjectType::Blob) {
            let blob = repository.find_blob(entry.id()).unwrap();
            let name = [parent.as_bytes(), entry.name_bytes()].concat();
            found.insert(name, (entry.filemode(), blob.content().to_vec()));
        }
        TreeWalkResult::Ok
    })
    .unwrap();
    found
}

#[test]
fn the_working_tree_is_around_the_dot_git_wherever_the_git_directory_is() {
    let ground = Ground::new();
    ground.write("stores/key", "SECRET");
    ground.git(".", &["init", "-q", "--separate-git-dir", "stores/far.git", "far"]);
    ground.git(".", &["init", "-q", "stores/linked"]);
    ground.write("stores/linked/key", "SECRET");
    fs::create_dir(ground.path("link")).unwrap();
    symlink("../stores/linked/.git", ground.path("link/.git")).unwrap();
    ground.write("r/main.c", "");
    ground.shell("r", "git add . && git commit -qm One && git worktree add -q ../tree");
    fs::remove_file(ground.path("tree/main.c")).unwrap();
    for at in ["far", "link", "tree"] {
        ground.write(&format!("{at}/new.c"), at);
        fs::create_dir_all(ground.path(&format!("{at}/deep/er"))).unwrap();
        assert_eq!(ground.names(&format!("{at}/deep/er")), ["new.c"], "{at}");
    }
}

#[test]
fn a_working_tree_that_is_elsewhere_is_refused() {
    let ground = Ground::new();
    ground.write("other/key", "SECRET");
    ground.git("r", &["config", "core.worktree", "../../other"]);
    for refused in [
        ground.open("r", &Selection::WorkingTree).unwrap_err(),
        ground.open_without_git("r", &Selection::WorkingTree).unwrap_err(),
    ] {
        let (text, hint) = ground.told(&refused);
        assert!(
            text.starts_with("the git repository at TOP/r has its working tree elsewhere, at TOP/"),
            "{text}"
        );
        assert!(hint.contains("name what to build by --commits"), "{hint}");
    }
}

#[test]
fn edits_are_taken_whatever_the_index_says_of_the_file() {
    let ground = Ground::new();
    for name in ["assumed", "skipped", "plain", "split"] {
        ground.write(&format!("r/{name}"), "old");
    }
    ground.shell("r", "git add . && git commit -qm One && touch intended && git add -N intended");
    ground.git("r", &["update-index", "--assume-unchanged", "assumed"]);
    ground.git("r", &["update-index", "--skip-worktree", "skipped"]);
    for name in ["assumed", "skipped", "plain", "intended"] {
        ground.write(&format!("r/{name}"), "new");
    }
    let content = |files: &Files| files.values().map(|(_, content)| content.clone()).collect::<Vec<_>>();
    let new: &[u8] = b"new";
    assert_eq!(content(&ground.taken("r")), [new, new, new, new, b"old"]);
    // Added by force, it is no ignored file any more; libgit2 cannot read such an index, and says
    // so.
    ground.write("r/.gitignore", "*.h");
    ground.write("r/config.h", "");
    ground.shell("r", "git add -f config.h && git update-index --split-index");
    assert!(files(&ground.open("r", &Selection::WorkingTree).unwrap()).contains_key(&b"config.h"[..]));
    let refused = ground.open_without_git("r", &Selection::WorkingTree).unwrap_err();
    let (text, hint) = ground.told(&refused);
    assert!(text.starts_with("cannot read the index TOP/r/.git/index: "), "{text}");
    assert!(hint.starts_with("install git here"), "{hint}");
}

#[test]
fn a_change_that_only_the_change_time_shows_is_seen_and_an_old_file_is_not_read_again() {
    let ground = Ground::new();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(100);
    let age = |name: &str| fs::File::open(ground.path(name)).unwrap().set_modified(old).unwrap();
    ground.write("r/edited", "old");
    ground.write("r/kept", "old");
    age("r/edited");
    age("r/kept");
    ground.git("r", &["add", "."]);
    ground.write("r/edited", "new");
    age("r/edited");
    assert_eq!(ground.taken("r")[&b"edited"[..]].1, b"new");
    let repository = Repository::open(ground.path("r")).unwrap();
    let odb = repository.odb().unwrap();
    let known = |known: &known::Known, name: &str| {
        let stat = rustix::fs::stat(ground.path("r").join(name)).unwrap();
        known.unchanged(name.as_bytes(), &stat, &odb).is_some()
    };
    let index = known::Known::read(&ground.path("r/.git/index"), known::Filtered::new());
    assert!(known(&index, "kept") && !known(&index, "edited"));
    let filtered = known::Known::read(&ground.path("r/.git/index"), [b"kept".to_vec()].into());
    assert!(!known(&filtered, "kept"));
}

#[test]
fn bytes_are_those_on_disk_and_no_filter_runs() {
    let ground = Ground::new();
    let ran = ground.path("ran").display().to_string();
    ground.git("r", &["config", "filter.rot.clean", &format!("touch {ran}; tr a-y b-z")]);
    ground.git("r", &["config", "filter.rot.smudge", &format!("touch {ran}; tr b-z a-y")]);
    ground.git("r", &["config", "core.fsmonitor", &format!("touch {ran}; true")]);
    let attributes = "*.rot filter=rot\n*.txt text eol=crlf\n*.id ident\n* text=auto\n*.u working-tree-encoding=UTF-16LE\n";
    ground.write("r/.gitattributes", attributes);
    let contents: [(&str, &[u8]); 5] = [
        ("a.rot", b"same size"),
        ("b.txt", b"one\r\ntwo\r\n"),
        ("c.id", b"$Id: long ago $\n"),
        ("d.c", b"mixed\r\nup\n"),
        ("e.u", b"x\0\n\0"),
    ];
    for (name, content) in contents {
        ground.write(&format!("r/{name}"), content);
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(100);
        fs::File::open(ground.path(&format!("r/{name}"))).unwrap().set_modified(old).unwrap();
    }
    ground.shell("r", "git -c core.fsmonitor=false -c core.safecrlf=false add . && git -c core.fsmonitor=false commit -qm One");
    fs::remove_file(ground.path("ran")).unwrap();
    let found = ground.taken("r");
    for (name, content) in contents {
        assert_eq!(found[name.as_bytes()].1, content, "{name}");
    }
    assert!(!ground.path("ran").exists(), "something of the repository was run");
}

#[test]
fn odd_names_and_what_stands_in_the_place_of_something_else() {
    let ground = Ground::new();
    let odd: [&[u8]; 6] = [b"a", b"a-b", b"a.b/c", b"\xff\xfe", b"new\nline\t\"", b" * "];
    for name in odd {
        let path = ground.path("r").join(OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    ground.write("r/was/directory", "");
    ground.write("r/was-file", "");
    ground.write("r/tool", "");
    ground.git("r", &["add", "."]);
    ground.write("elsewhere/directory", "SECRET");
    fs::remove_dir_all(ground.path("r/was")).unwrap();
    symlink("../elsewhere", ground.path("r/was")).unwrap();
    fs::remove_file(ground.path("r/was-file")).unwrap();
    ground.write("r/was-file/inner", "");
    fs::set_permissions(ground.path("r/tool"), Permissions::from_mode(0o755)).unwrap();
    let found = ground.taken("r");
    let mut expected: Vec<&[u8]> = odd.to_vec();
    expected.extend([&b"was"[..], b"was-file/inner", b"tool"]);
    expected.sort_unstable();
    assert_eq!(found.keys().collect::<Vec<_>>(), expected);
    assert_eq!(found[&b"was"[..]], (0o120_000, b"../elsewhere".to_vec()));
    assert_eq!(found[&b"tool"[..]].0, 0o100_755);
    // The tree is one that git itself would make.
    let tree = ground.open("r", &Selection::WorkingTree).unwrap().commits()[0].tree;
    ground.shell("r", &format!("git add -A && test $(git write-tree) = {tree}"));
    fs::remove_file(ground.path("r/tool")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, ground.path("r/tool"), rustix::fs::Mode::RWXU).unwrap();
    let refused = ground.open("r", &Selection::WorkingTree).unwrap_err();
    let (text, hint) = ground.told(&refused);
    assert_eq!(text, "TOP/r/tool cannot be sent to hosts: it is neither a file nor a link");
    assert_eq!(hint, "remove it, or move it: git tracks a file of that name");
}

#[test]
fn a_repository_in_the_working_tree_is_refused_with_a_hint_that_works() {
    let ground = Ground::new();
    ground.write("r/file", "");
    ground.shell("r", "git add . && git commit -qm One && git worktree add -q 'odd [name]*' -b other");
    for refused in [
        ground.open_without_git("r", &Selection::WorkingTree).unwrap_err(),
        ground.open("r", &Selection::WorkingTree).unwrap_err(),
    ] {
        let (text, _) = ground.told(&refused);
        let expected =
            "working tree: \"odd [name]*\" is a repository of its own, which cannot be sent to hosts";
        assert_eq!(text, expected);
    }
    ground.obey("r", &ground.open("r", &Selection::WorkingTree).unwrap_err());
    assert_eq!(ground.names("r"), [".gitignore", "file"]);
    ground.git("r", &["clone", "-q", ".", "clone"]);
    ground.obey("r", &ground.open("r", &Selection::WorkingTree).unwrap_err());
    assert_eq!(ground.names("r"), [".gitignore", "file"]);
    ground.shell("r", "git -c protocol.file.allow=always submodule --quiet add ./ module");
    let refused = ground.open("r", &Selection::WorkingTree).unwrap_err();
    assert!(matches!(&refused, SourceError::Submodule { path, .. } if path == "module"), "{refused:?}");
}

#[test]
fn sparse_and_partial_and_shallow_clones_are_built_as_far_as_they_go() {
    let ground = Ground::new();
    ground.git("r", &["config", "uploadpack.allowFilter", "true"]);
    for number in 1..=3 {
        ground.write("r/file", number.to_string());
        ground.write("r/deep/file", (number + 10).to_string());
        ground.git("r", &["add", "."]);
        ground.git("r", &["commit", "-qm", &format!("Number {number}")]);
    }
    let url = format!("file://{}", ground.path("r").display());
    ground.git(".", &["clone", "-q", "--filter=blob:none", &url, "partial"]);
    ground.git(".", &["clone", "-q", "--depth=1", &url, "shallow"]);
    ground.git(".", &["clone", "-q", "--filter=blob:none", "--sparse", &url, "sparse"]);
    ground.git("sparse", &["sparse-checkout", "init", "--cone", "--sparse-index"]);
    assert_eq!(ground.names("partial"), ["deep/file", "file"]);
    assert_eq!(ground.names("shallow"), ["deep/file", "file"]);
    let sparse = files(&ground.open("sparse", &Selection::WorkingTree).unwrap());
    assert_eq!(sparse.into_keys().collect::<Vec<_>>(), [b"file"]);
    let earlier = Selection::Range("HEAD~2..HEAD".to_owned());
    let refused = ground.open("partial", &earlier).unwrap_err();
    let (text, hint) = ground.told(&refused);
    assert!(text.contains("is not in the repository (deep/file)"), "{text}");
    assert!(hint.starts_with("the repository is partial"), "{hint}");
    ground.obey("partial", &refused);
    assert_eq!(ground.open("partial", &earlier).unwrap().commits().len(), 2);
    let refused = ground.open("shallow", &earlier).unwrap_err();
    assert!(ground.told(&refused).1.starts_with("the repository is shallow"), "{refused:?}");
    ground.obey("shallow", &refused);
    assert_eq!(ground.open("shallow", &earlier).unwrap().commits().len(), 2);
}

#[test]
fn a_directory_that_cannot_be_read_is_named() {
    let said = b"warning: could not open directory 'a b/u/': Permission denied\nwarning: could not open directory 'v/': x\n";
    assert_eq!(git::unread(said), Some(("a b/u/".into(), "Permission denied".to_owned())));
    assert_eq!(
        git::unread(b"warning: unable to access '/x/.config/git/attributes': Permission denied\n"),
        None
    );
}

#[test]
fn the_scratch_of_ours_is_no_part_of_a_working_tree_that_has_it() {
    let ground = Ground::new();
    ground.write("r/file", "x");
    ground.write("r/tmp/other", "x");
    let base = ground.path("r/tmp");
    let top = ground.path("r");
    let user = User::at(&top).unwrap();
    let settings = user.settings().unwrap();
    let scratch = Scratch::within(&base, &user.objects().unwrap(), &settings).unwrap();
    let source = Source::taken(&user, &top, &settings, scratch, &Selection::WorkingTree).unwrap();
    assert_eq!(files(&source).into_keys().collect::<Vec<_>>(), [&b"file"[..], b"tmp/other"]);
}

#[test]
fn repositories_of_newer_kinds_are_built_or_refused_with_a_way_out() {
    let ground = Ground::new();
    ground.shell(".", "git init -q --ref-format=reftable tables 2>/dev/null || git init -q tables");
    ground.git(".", &["init", "-q", "--object-format=sha256", "long"]);
    for at in ["tables", "long"] {
        ground.write(&format!("{at}/file"), at);
        ground.shell(at, "git add . && git commit -qm One");
    }
    let head = Selection::Range("HEAD".to_owned());
    assert_eq!(ground.open("tables", &head).unwrap().commits()[0].subject, "One");
    assert_eq!(files(&ground.open("tables", &Selection::WorkingTree).unwrap()).len(), 1);
    let refused = ground.open("long", &head).unwrap_err();
    let (text, _) = ground.told(&refused);
    assert_eq!(
        text,
        "the git repository at TOP/long names its objects by sha256, which cannot be sent to hosts"
    );
    ground.obey("long", &refused);
    assert_eq!(files(&ground.open("copy", &head).unwrap())[&b"file"[..]].1, b"long");
}

#[test]
fn revisions_are_what_git_takes() {
    let ground = Ground::new();
    for number in 1..=4 {
        ground.write("r/file", number.to_string());
        ground.shell(
            "r",
            &format!("git add . && git commit -qm 'Number {number}' && git tag -a v{number} -m v"),
        );
    }
    ground.shell(
        "r",
        "git checkout -q -b side v2 && git commit -q --allow-empty -m Side && git checkout -q main",
    );
    for (range, expected) in [
        ("HEAD", &["Number 4"][..]),
        ("v2", &["Number 2"]),
        ("HEAD^!", &["Number 4"]),
        ("main ^v2", &["Number 3", "Number 4"]),
        ("^v2 main side", &["Side", "Number 3", "Number 4"]),
        ("v3 v1", &["Number 1", "Number 3"]),
        (":/Number 3", &["Number 3"]),
        ("HEAD^{/Number 2}", &["Number 2"]),
        ("v3^@", &["Number 2"]),
        ("v2..v3", &["Number 3"]),
    ] {
        let mut found = ground.subjects(range);
        if range.contains("side") {
            found.sort_by_key(|subject| subject != "Side");
        }
        assert_eq!(found, expected, "{range}");
    }
    let mut both = ground.subjects("side...v4");
    both.sort();
    assert_eq!(both, ["Number 3", "Number 4", "Side"]);
    for (range, text, hint) in [
        (
            "HEAD -n1",
            "\"HEAD -n1\" names no commits: \"-n1\" is an option",
            "name revisions only: the last five commits are HEAD~5..HEAD",
        ),
        (
            "nowhere",
            "\"nowhere\" names no commit: bad revision 'nowhere'",
            "see `git log` for what there is; remote branches are named as in `origin/main`",
        ),
        (
            "HEAD:file",
            "\"HEAD:file\" names no commits",
            "in `a..b`, b must have commits that a does not have; a single revision builds that one",
        ),
    ] {
        let refused = ground.open("r", &Selection::Range(range.to_owned())).unwrap_err();
        assert_eq!(ground.told(&refused), (text.to_owned(), hint.to_owned()));
    }
    let only_git = ground.open_without_git("r", &Selection::Range("main ^v2".to_owned())).unwrap_err();
    let (text, _) = ground.told(&only_git);
    assert_eq!(text, "\"main ^v2\" is no range that can be built without git, which is not installed here");
    let plain = ground.open_without_git("r", &Selection::Range("v2..main".to_owned())).unwrap();
    assert_eq!(plain.commits().len(), 2);
}

#[test]
fn a_dot_git_that_is_none_is_named() {
    let ground = Ground::new();
    ground.write("r/sub/.git", "gitdir: /nowhere\n");
    let refused = ground.open("r/sub", &Selection::WorkingTree).unwrap_err();
    let (text, hint) = ground.told(&refused);
    assert!(text.starts_with("cannot read the git repository at TOP/r/sub: `git config` says: "), "{text}");
    assert_eq!(hint, "see `git -C 'TOP/r/sub' status`");
}

#[test]
fn a_long_file_goes_through_in_pieces_and_what_is_borrowed_is_seen() {
    let ground = Ground::new();
    ground.write("r/file", "x");
    ground.shell("r", "git add . && git commit -qm One && git repack -qad");
    ground.shell(".", "git clone -q --shared r borrower && printf '../../../r/.git/objects\\n' >borrower/.git/objects/info/alternates");
    let long: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    ground.write("borrower/long", &long);
    let found = ground.taken("borrower");
    assert_eq!((found[&b"file"[..]].1.as_slice(), found[&b"long"[..]].1.len()), (&b"x"[..], long.len()));
    assert!(found[&b"long"[..]].1 == long);
    assert_eq!(ground.open("borrower", &Selection::Range("HEAD".to_owned())).unwrap().commits().len(), 1);
}

#[test]
fn what_is_too_long_for_a_pack_travels_by_itself_from_the_disk_and_from_packs() {
    let ground = Ground::new();
    let length = usize::try_from(crewboss_protocol::limits::LONG_FILE_BYTES).unwrap();
    let content: Vec<u8> = (0_u32..).flat_map(|number| (number / 100).to_le_bytes()).take(length).collect();
    ground.write("r/long", &content);
    ground.write("r/short", &content[1..]);
    let from_disk = ground.open("r", &Selection::WorkingTree).unwrap();
    ground.shell("r", "git add . && git commit -qm One && git repack -qad");
    let from_pack = ground.open("r", &Selection::Range("HEAD".to_owned())).unwrap();
    for source in [from_disk, from_pack] {
        let missing = source.missing(&[source.commits()[0].tree], &[]).unwrap();
        let &[(id, bytes)] = missing.long() else { panic!("{missing:?}") };
        assert_eq!((missing.len(), bytes), (2, length as u64));
        let mut written = Vec::new();
        source.write(id, &mut written).unwrap();
        assert!(written == content);
        // A host that has it is not sent it again.
        assert!(source.missing(&[source.commits()[0].tree], &[source.commits()[0].tree]).unwrap().is_empty());
    }
}
