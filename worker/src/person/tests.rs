//! Who may do what with which guest.

use crewboss_host::process::ProcessId;
use crewboss_machine::books::record::{GuestRecord, Owners, Step, guests};
use crewboss_machine::images::directory::Machines;
use crewboss_machine::life::hold::{HoldError, check_number};
use crewboss_protocol::limits::HELD_MAX;
use crewboss_protocol::machine::HeldGuest;
use crewboss_protocol::overview::Waiting;
use crewboss_protocol::{Outcome, TreeId};

use super::release::{Released, release};
use super::*;

fn who() -> Who {
    Who { person: "eve@desk".to_owned(), host: "lab1".parse().unwrap() }
}

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
    assert!(matches!(claim(&machines, &unknown, &who()), Err(PersonError::NoGuest { .. })));
    let mut record = guest(&machines, true);
    let id = record.id.clone();
    assert!(matches!(claim(&machines, &id, &who()), Err(PersonError::Runs { .. })));
    record.hold(&machines, held()).unwrap();
    let claimed = claim(&machines, &id, &who()).unwrap();
    let refused = claim(&machines, &id, &who()).unwrap_err().to_string();
    let told = format!("eve@desk, since just now, process {}", std::process::id());
    assert!(refused.contains(&told), "{refused}");
    assert!(refused.ends_with(&format!(
        "`crewboss enter lab1/{id} --take-over` saves what was done there and lets you in"
    )));
    assert!(matches!(release(&machines, &id, &who()), Err(PersonError::Entered { .. })));
    drop(claimed);
    assert_eq!(release(&machines, &id, &who()).unwrap(), Released::Removed);
    assert!(!record.snapshot(&machines).exists() && GuestRecord::load(&machines, &id).is_none());
    assert!(matches!(release(&machines, &id, &who()), Err(PersonError::NoGuest { .. })));
}

#[test]
fn a_host_holds_so_many_guests_and_no_more() {
    let base = tempfile::tempdir().unwrap();
    let machines = Machines::new(base.path());
    for _ in 0..HELD_MAX {
        assert!(check_number(&machines).is_ok());
        guest(&machines, true).hold(&machines, held()).unwrap();
    }
    assert!(matches!(check_number(&machines), Err(HoldError::Full)));
    // One whose time is over does not count, even if nobody has removed it yet.
    let mut last = GuestRecord::load(&machines, &guests(&machines)[0]).unwrap();
    last.hold(&machines, HeldGuest { until: now(), ..held() }).unwrap();
    assert!(check_number(&machines).is_ok());
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
    assert!(matches!(claim(&machines, &record.id, &who()), Err(PersonError::Abandoned { .. })));
    assert!(matches!(release(&machines, &record.id, &who()), Err(PersonError::Abandoned { .. })));
    record.advance(&machines, Step::Running).unwrap();
    assert_eq!(record.waiting, None);
}
