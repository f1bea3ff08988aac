//! Who may do what with which guest.

use crewboss_protocol::machine::HeldGuest;
use crewboss_protocol::overview::Waiting;
use crewboss_protocol::{Outcome, TreeId};

use super::release::{Released, release};
use super::*;
use crate::machine::record::{Owners, Step};
use crate::process::ProcessId;

fn owners(alive: bool) -> Owners {
    let own = ProcessId::own().unwrap();
    let own = if alive { own } else { ProcessId { start: own.start + 1, ..own } };
    Owners { guardian: own.clone(), worker: own.clone(), runner: own }
}

fn guest(machines: &Machines, alive: bool) -> GuestRecord {
    let machine = machines.machine(&"local".parse().unwrap(), &"tiny".parse().unwrap());
    let session = "run.1".parse().unwrap();
    let toolchain = "default".parse().unwrap();
    let record =
        GuestRecord::create(machines, &machine, &toolchain, &session, machines.root(), owners(alive))
            .unwrap();
    std::fs::create_dir_all(record.snapshot(machines)).unwrap();
    record
}

fn held() -> HeldGuest {
    HeldGuest {
        id: "x".parse().unwrap(),
        machine: "tiny".parse().unwrap(),
        target: "agent".parse().unwrap(),
        commit: TreeId([1; 20]),
        at: "1.1".parse().unwrap(),
        stage: None,
        outcome: Outcome::Timeout,
        boss: "ann@laptop".to_owned(),
        run: "run".parse().unwrap(),
        since: now(),
        until: now() + 3600,
        memory: true,
        entered: None,
    }
}

#[test]
fn only_guests_for_people_are_let_in() {
    let base = tempfile::tempdir().unwrap();
    let machines = Machines::new(base.path());
    let unknown = "tiny-default-aaaaaa".parse().unwrap();
    assert!(matches!(claim(&machines, &unknown), Err(PersonError::NoGuest { .. })));
    let mut record = guest(&machines, true);
    let id = record.id.clone();
    assert!(matches!(claim(&machines, &id), Err(PersonError::Runs { .. })));
    record.hold(&machines, held()).unwrap();
    let claimed = claim(&machines, &id).unwrap();
    let Err(PersonError::Entered { pid, .. }) = claim(&machines, &id) else { panic!("two people are in it") };
    assert_eq!(pid, std::process::id());
    assert!(matches!(release(&machines, &id), Err(PersonError::Entered { .. })));
    drop(claimed);
    assert_eq!(release(&machines, &id).unwrap(), Released::Removed);
    assert!(!record.snapshot(&machines).exists() && GuestRecord::load(&machines, &id).is_none());
    assert!(matches!(release(&machines, &id), Err(PersonError::NoGuest { .. })));
}

#[test]
fn what_a_dead_worker_left_is_nobodys() {
    let base = tempfile::tempdir().unwrap();
    let machines = Machines::new(base.path());
    let mut record = guest(&machines, false);
    let waiting = Waiting {
        target: "agent".parse().unwrap(),
        commit: TreeId([1; 20]),
        at: "1.1".parse().unwrap(),
        stage: None,
        until: now() + 3600,
        entered: None,
    };
    record.wait(&machines, waiting).unwrap();
    assert_eq!(record.step, Step::Waiting);
    assert!(matches!(claim(&machines, &record.id), Err(PersonError::Abandoned { .. })));
    assert!(matches!(release(&machines, &record.id), Err(PersonError::Abandoned { .. })));
    record.advance(&machines, Step::Running).unwrap();
    assert_eq!(record.waiting, None);
}
