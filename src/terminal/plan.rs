//! The plan that `build --dry-run` shows.

use std::collections::BTreeMap;

use crewboss_protocol::{HostName, Name};

use super::table::Table;
use super::text::{counted, one_line, put};
use super::way_in::here;

/// Host names that are listed for one target before the rest is only counted.
const HOSTS_LISTED_MAX: usize = 6;

/// A target of the plan.
#[derive(Debug)]
pub struct PlannedTarget {
    /// Its name.
    pub name: Name,
    /// Its tasks that are to be run.
    pub tasks: u32,
    /// Its tasks that are done already.
    pub done: u32,
    /// Per host: whether it can take them, and if not, why.
    pub hosts: BTreeMap<HostName, Result<(), String>>,
}

impl PlannedTarget {
    /// Whether there is something to do and nobody who can.
    pub fn is_impossible(&self) -> bool {
        self.tasks > 0 && !self.hosts.values().any(Result::is_ok)
    }
}

/// The plan: counts, who can take what, and what nobody can take.
pub fn render(commits: u32, targets: &[PlannedTarget]) -> String {
    let sum = |of: fn(&PlannedTarget) -> u32| targets.iter().map(|target| u64::from(of(target))).sum::<u64>();
    let mut text = format!(
        "{} to run ({} at {}), {} done before\n\n",
        counted(sum(|target| target.tasks), "task"),
        counted(targets.len() as u64, "target"),
        counted(commits, "commit"),
        sum(|target| target.done),
    );
    let mut table = Table::new(&["target", "tasks", "done", "hosts"]);
    for target in targets {
        let able: Vec<&str> =
            target.hosts.iter().filter(|(_, can)| can.is_ok()).map(|(host, _)| host.as_str()).collect();
        table.row([
            target.name.to_string(),
            target.tasks.to_string(),
            target.done.to_string(),
            listed(&able),
        ]);
    }
    text.push_str(&table.render("  "));
    for target in targets.iter().filter(|target| target.is_impossible()) {
        put(
            &mut text,
            format_args!("\nno host can build {} ({}):\n", target.name, counted(target.tasks, "task")),
        );
        for (host, reason) in &target.hosts {
            let reason = reason.as_ref().err().map(|reason| here(&one_line(reason))).unwrap_or_default();
            put(&mut text, format_args!("  {host}: {reason}\n"));
        }
    }
    text
}

fn listed(hosts: &[&str]) -> String {
    match hosts.len() {
        0 => "none".to_owned(),
        count if count > HOSTS_LISTED_MAX => {
            format!("{} and {} more", hosts[..HOSTS_LISTED_MAX].join(", "), count - HOSTS_LISTED_MAX)
        }
        _ => hosts.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::samples::{host, name};

    #[test]
    fn a_plan_with_an_impossible_target() {
        let no = |why: &str| Err(why.to_owned());
        let native = PlannedTarget {
            name: name("native"),
            tasks: 9,
            done: 1,
            hosts: (0..8).map(|n| (host(&format!("lab{n}")), Ok(()))).collect(),
        };
        let sparc = PlannedTarget {
            name: name("sparc"),
            tasks: 10,
            done: 0,
            hosts: [(host("lab0"), no("no toolchain sparc")), (host("lab1"), no("away: refused\n"))].into(),
        };
        let targets = [native, sparc];
        assert!(!targets[0].is_impossible() && targets[1].is_impossible());
        insta::assert_snapshot!(render(10, &targets), @r"
19 tasks to run (2 targets at 10 commits), 1 done before

  TARGET  TASKS  DONE  HOSTS
  native      9     1  lab0, lab1, lab2, lab3, lab4, lab5 and 2 more
  sparc      10     0  none

no host can build sparc (10 tasks):
  lab0: no toolchain sparc
  lab1: away: refused
");
    }
}
