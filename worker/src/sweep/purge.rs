//! Removing all that is kept on a host for later runs.

use std::fs;
use std::io;

use crewboss_host::layout::Layout;
use crewboss_host::owner::sessions;
use crewboss_host::storage::remove_tree;
use crewboss_protocol::clean::CleanReport;

use super::remove_but_record;
use crate::slots::lock_alone;

/// So many names of what stays are told.
const KEPT_MAX: usize = 20;

/// Removes everything of ours below the work directory, and that directory if nothing else is in
/// it. Machines stay, since somebody made them. Nothing is removed as long as a worker lives or a
/// guest is kept.
pub(crate) fn purge(layout: &Layout, report: &mut CleanReport) {
    let work = layout.work().display();
    if !report.left.is_empty() || !report.held_left.is_empty() {
        report.errors.push(format!("{work} is in use, so it was not removed"));
        return;
    }
    match purge_alone(layout, report) {
        Ok(true) => report.purged = work.to_string(),
        Ok(false) => report.errors.push(format!("{work} is in use by a worker, so it was not removed")),
        Err(error) => report.errors.push(format!("cannot remove {work}: {error}")),
    }
}

/// Whether nobody else was there.
fn purge_alone(layout: &Layout, report: &mut CleanReport) -> io::Result<bool> {
    if !layout.work().exists() {
        return Ok(true);
    }
    let Some(_alone) = lock_alone(layout)? else { return Ok(false) };
    // What cannot be removed stays with the record that says whose it is.
    for session in sessions(layout) {
        remove_but_record(&layout.session(&session))?;
    }
    for path in layout.all() {
        remove_tree(&path)?;
    }
    // Machines that nobody ever made.
    let _not_empty = fs::remove_dir(layout.machines());
    match fs::remove_dir(layout.work()) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            let names = fs::read_dir(layout.work())?.flatten().take(KEPT_MAX);
            report.kept = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            report.kept.sort();
            Ok(true)
        }
        removed => removed.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::super::clean;
    use super::*;
    use crate::slots::lock_as_user;
    use crewboss_host::owner::Owner;
    use crewboss_host::process::ProcessId;
    use crewboss_host::testing::owner_of;
    use crewboss_host::testing::{Mount, Swap};
    use crewboss_machine::images::directory::Machines;

    fn used() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("work"));
        for path in layout.all() {
            fs::create_dir_all(path.join("a/b")).unwrap();
        }
        (dir, layout)
    }

    #[test]
    fn everything_of_ours_goes_and_nothing_else() {
        let (_dir, layout) = used();
        fs::create_dir_all(layout.machines().join("debian")).unwrap();
        fs::write(layout.work().join("notes"), "precious").unwrap();
        let mut report = CleanReport::default();
        purge(&layout, &mut report);
        assert_eq!(
            (report.errors.as_slice(), report.kept.as_slice()),
            (&[] as &[String], &["machines".to_owned(), "notes".to_owned()][..])
        );
        assert_eq!(fs::read_dir(layout.work()).unwrap().count(), 2);
        fs::remove_dir(layout.machines().join("debian")).unwrap();
        fs::remove_file(layout.work().join("notes")).unwrap();
        for _ in 0..2 {
            let mut report = CleanReport::default();
            purge(&layout, &mut report);
            assert_eq!((report.errors, report.kept), (Vec::new(), Vec::new()));
            assert_eq!(report.purged, layout.work().display().to_string());
            assert!(!layout.work().exists());
        }
    }

    #[test]
    fn what_cannot_be_removed_stays_with_its_record_and_is_named_every_time() {
        let disk = Mount::btrfs();
        let layout = Layout::new(disk.path().join("work"));
        let owner = owner_of("stuck.1", &ProcessId { pid: 1, start: 0 });
        owner.write(&layout).unwrap();
        let attempt = layout.session(&owner.session).join("1.1");
        fs::create_dir_all(&attempt).unwrap();
        let swap = Swap::on(&attempt.join("file"));
        let reports = [true, false].map(|purges| {
            let mut report = clean(&layout, &Machines::new(layout.machines()), false);
            if purges {
                purge(&layout, &mut report);
            }
            report
        });
        assert_eq!(Owner::load(&layout, &owner.session).unwrap(), Some(owner));
        drop(swap);
        for report in reports {
            assert!(report.errors.iter().any(|error| error.contains("stuck.1/1.1/file")), "{report:?}");
        }
        let mut report = clean(&layout, &Machines::new(layout.machines()), false);
        purge(&layout, &mut report);
        assert_eq!(report.errors, Vec::<String>::new());
        assert!(!layout.tasks().exists());
    }

    #[test]
    fn a_directory_without_a_record_goes_at_once_if_nobody_can_be_about_to_write_one() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        layout.make().unwrap();
        let nameless = layout.tasks().join("nameless.1");
        fs::create_dir_all(nameless.join("1.1")).unwrap();
        let machines = Machines::new(layout.machines());
        let user = lock_as_user(&layout).unwrap();
        assert!(clean(&layout, &machines, true).removed.is_empty() && nameless.exists());
        drop(user);
        assert_eq!(clean(&layout, &machines, false).removed, ["nameless.1".parse().unwrap()]);
        assert!(!nameless.exists());
    }

    #[test]
    fn nothing_goes_while_a_worker_lives() {
        let (_dir, layout) = used();
        let user = lock_as_user(&layout).unwrap();
        let mut report = CleanReport::default();
        purge(&layout, &mut report);
        assert!(report.errors[0].ends_with("is in use by a worker, so it was not removed"), "{report:?}");
        assert!(layout.objects().join("a/b").exists() && report.purged.is_empty());
        drop(user);
        purge(&layout, &mut CleanReport::default());
        assert!(!layout.work().exists());
    }
}
