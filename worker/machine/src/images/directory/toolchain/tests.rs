use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Instant;

use crewboss_host::testing::run;

use super::*;
use crate::images::directory::tests::name;

/// Makes a toolchain of a few files.
pub(in crate::images::directory) fn toolchain(machines: &Machines, text: &str) -> PathBuf {
    let path = machines.toolchains().join(text);
    fs::create_dir_all(path.join("lib")).unwrap();
    fs::write(path.join("bootstrap"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(path.join("bootstrap"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(path.join("lib/data"), "data").unwrap();
    symlink("lib/data", path.join("link")).unwrap();
    path
}

#[test]
fn the_id_of_a_toolchain_changes_with_everything_that_a_guest_would_see() {
    let root = tempfile::tempdir().unwrap();
    let machines = Machines::new(root.path());
    let path = toolchain(&machines, "gcc");
    let id = || machines.toolchain(&name("gcc")).unwrap().id;
    let mut seen = vec![id()];
    let mut changed = |what: &str| {
        let id = id();
        assert!(!seen.contains(&id), "{what} changed nothing");
        seen.push(id);
    };
    fs::write(path.join("lib/data"), "datb").unwrap();
    changed("content");
    fs::set_permissions(path.join("lib/data"), fs::Permissions::from_mode(0o755)).unwrap();
    changed("permissions");
    fs::rename(path.join("lib/data"), path.join("lib/date")).unwrap();
    changed("a name");
    fs::create_dir(path.join("empty")).unwrap();
    changed("an empty directory");
    fs::remove_file(path.join("link")).unwrap();
    symlink("lib/date", path.join("link")).unwrap();
    changed("a link");
    // A copy elsewhere with other times is the same.
    let copy = machines.toolchains().join("copy");
    run(std::process::Command::new("cp").arg("-r").arg(&path).arg(&copy));
    fs::set_permissions(copy.join("lib/date"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(machines.toolchain(&name("copy")).unwrap().id, id());
    assert_eq!(machines.toolchain_names(), [name("copy"), name("default"), name("gcc")]);
}

#[test]
fn a_toolchain_that_cannot_be_installed_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let machines = Machines::new(root.path());
    let path = toolchain(&machines, "gcc");
    let error = || machines.toolchain(&name("gcc")).unwrap_err().to_string();
    run(std::process::Command::new("mkfifo").arg(path.join("pipe")));
    assert!(error().ends_with("pipe is neither file, directory nor symbolic link"));
    fs::remove_file(path.join("pipe")).unwrap();
    fs::set_permissions(path.join("bootstrap"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(error().ends_with("bootstrap is not executable"));
    fs::remove_file(path.join("bootstrap")).unwrap();
    assert!(error().ends_with("bootstrap is not there"));
    symlink("/bin/true", path.join("bootstrap")).unwrap();
    assert!(error().ends_with("bootstrap is not a regular file"));
    let deep = path.join("x/".repeat(70));
    fs::create_dir_all(deep).unwrap();
    assert!(error().contains("too large: directories are nested"));
    assert!(
        machines.toolchain(&name("none")).unwrap_err().to_string().starts_with("there is no toolchain none")
    );
    assert!(machines.toolchain(&name("default")).unwrap().path.is_none());
}

#[test]
fn the_files_of_a_toolchain_are_read_again_only_when_they_look_different() {
    let root = tempfile::tempdir().unwrap();
    let machines = Machines::new(root.path());
    let path = toolchain(&machines, "gcc");
    let cache = machines.toolchains().join(".ids.json");
    let id = machines.toolchain(&name("gcc")).unwrap().id;
    assert!(!cache.exists(), "what was just changed is remembered");
    // Only time makes it old enough.
    let end = Instant::now() + Duration::from_secs(20);
    while !cache.exists() {
        assert!(Instant::now() < end, "it is never remembered");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(machines.toolchain(&name("gcc")).unwrap().id, id);
    }
    let text = fs::read_to_string(&cache).unwrap();
    fs::write(&cache, text.replace(&id, "remembered")).unwrap();
    assert_eq!(machines.toolchain(&name("gcc")).unwrap().id, "remembered");
    fs::write(path.join("lib/data"), "atad").unwrap();
    assert_ne!(machines.toolchain(&name("gcc")).unwrap().id, "remembered");
    fs::write(&cache, "nonsense").unwrap();
    assert_ne!(machines.toolchain(&name("gcc")).unwrap().id, "remembered");
}
