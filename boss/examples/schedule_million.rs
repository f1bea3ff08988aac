//! How much the scheduler itself costs: a simulated crew of unequal hosts works off many tasks in
//! virtual time.
//!
//! `schedule_million [TASKS] [HOSTS] [known]`; by default 1,000,000 tasks over 1,000 hosts, with
//! nothing known of their durations. Prints one line of JSON: seconds of CPU inside the scheduler
//! and of the whole process, its peak memory in MiB, and the makespan as a ratio to the lower
//! bound.
#![allow(clippy::print_stdout, reason = "printing the figures is what it is for")]

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use crewboss_boss::scheduler::{
    Action, Ended, HostIndex, Input, Offer, Requirement, RequirementId, Scheduler, TaskEntry,
};
use crewboss_protocol::{Millis, Name, TaskId, TaskRef};

/// Different sets of needs among the tasks.
const CLASSES: u32 = 50;
/// One way to any host.
const LATENCY_MS: u64 = 10;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Order(u32, TaskRef),
    Recall(u32, Vec<TaskRef>),
    Report(Report),
    Finish(u32, TaskRef),
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Report {
    Started(u32, TaskRef),
    Ended(u32, TaskRef),
    Returned(u32, Vec<TaskRef>),
}

#[derive(Debug)]
struct Worker {
    slots: usize,
    speed: u64,
    queue: VecDeque<TaskRef>,
    running: usize,
}

#[derive(Debug)]
struct Crew {
    now: u64,
    scheduler: Scheduler,
    workers: Vec<Worker>,
    durations: Vec<u64>,
    // Earliest first; the number keeps what was put in first in front.
    events: BinaryHeap<std::cmp::Reverse<(u64, u64, Event)>>,
    sequence: u64,
    spent: Duration,
    inputs: u64,
}

impl Crew {
    fn at(&mut self, time: u64, event: Event) {
        self.sequence += 1;
        self.events.push(std::cmp::Reverse((time, self.sequence, event)));
    }

    fn input(&mut self, input: Input) {
        let mut out = Vec::new();
        let begin = Instant::now();
        self.scheduler.handle(input, Millis(self.now), &mut out);
        self.spent += begin.elapsed();
        self.inputs += 1;
        for action in out {
            match action {
                Action::Send { host, at } => self.at(self.now + LATENCY_MS, Event::Order(host.0, at)),
                Action::Recall { host, tasks } => {
                    self.at(self.now + LATENCY_MS, Event::Recall(host.0, tasks));
                }
                _ => {}
            }
        }
    }

    fn report(&mut self, report: Report) {
        self.at(self.now + LATENCY_MS, Event::Report(report));
    }

    fn start(&mut self, host: u32) {
        loop {
            let worker = &mut self.workers[host as usize];
            if worker.running >= worker.slots {
                return;
            }
            let Some(at) = worker.queue.pop_front() else { return };
            worker.running += 1;
            let wall = (self.durations[at.task.0 as usize] * 1000).div_ceil(worker.speed);
            self.report(Report::Started(host, at));
            self.at(self.now + wall, Event::Finish(host, at));
        }
    }

    fn run(&mut self) {
        while let Some(std::cmp::Reverse((time, _, event))) = self.events.pop() {
            self.now = time;
            match event {
                Event::Order(host, at) => {
                    self.workers[host as usize].queue.push_back(at);
                    self.start(host);
                }
                Event::Recall(host, tasks) => {
                    let queue = &mut self.workers[host as usize].queue;
                    let wanted: BTreeSet<TaskRef> = tasks.into_iter().collect();
                    let back = queue.iter().filter(|at| wanted.contains(at)).copied().collect();
                    queue.retain(|at| !wanted.contains(at));
                    self.report(Report::Returned(host, back));
                }
                Event::Finish(host, at) => {
                    self.workers[host as usize].running -= 1;
                    self.report(Report::Ended(host, at));
                    self.start(host);
                }
                Event::Report(Report::Started(host, at)) => {
                    self.input(Input::Started { host: HostIndex(host), at });
                }
                Event::Report(Report::Ended(host, at)) => {
                    self.input(Input::Ended { host: HostIndex(host), at, ended: Ended::Result });
                }
                Event::Report(Report::Returned(host, tasks)) => {
                    self.input(Input::Returned { host: HostIndex(host), tasks });
                }
            }
        }
    }
}

fn requirements(
    scheduler: &mut Scheduler,
) -> Result<Vec<(RequirementId, Name)>, crewboss_protocol::id::IdError> {
    let mut made = Vec::new();
    for class in 0..CLASSES {
        let name: Name = format!("tc{class}").parse()?;
        let requirement = Requirement { toolchain: Some(name.clone()), ..Requirement::default() };
        made.push((scheduler.intern(requirement), name));
    }
    Ok(made)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: u32| words.get(place).map_or(Ok(default), |word| word.parse());
    let (tasks, hosts) = (number(0, 1_000_000)?, number(1, 1000)?);
    let known = words.get(2).is_some_and(|word| word == "known");
    let mut random = fastrand::Rng::with_seed(7);
    let mut crew = Crew {
        now: 0,
        scheduler: Scheduler::new(hosts),
        workers: Vec::new(),
        durations: (0..tasks).map(|_| 10 + random.u64(0..100).pow(2)).collect(),
        events: BinaryHeap::new(),
        sequence: 0,
        spent: Duration::ZERO,
        inputs: 0,
    };
    let classes = requirements(&mut crew.scheduler)?;
    let entries = (0..tasks).map(|task| TaskEntry {
        task: TaskId(task),
        requirement: classes[random.usize(0..classes.len())].0,
        priority: 0,
        expected_ms: known.then(|| crew.durations[task as usize]),
        limit_ms: None,
        tree: task / 1000,
        chain: None,
    });
    let entries: Vec<TaskEntry> = entries.collect();
    crew.input(Input::AddTasks(entries));
    for host in 0..hosts {
        let (slots, speed) = (random.u32(1..17), random.u32(500..4000));
        // The first toolchains are everywhere, the last on one host in five.
        let has = |class: usize| class < classes.len() / 2 || (host as usize + class).is_multiple_of(5);
        let toolchains = classes.iter().enumerate().filter(|(class, _)| has(*class));
        let toolchains = toolchains.map(|(_, (_, name))| name.clone()).collect();
        let offer = Offer { slots, speed, toolchains, ..Offer::default() };
        let worker =
            Worker { slots: slots as usize, speed: u64::from(speed), queue: VecDeque::new(), running: 0 };
        crew.workers.push(worker);
        crew.input(Input::HostUp { host: HostIndex(host), offer });
        crew.input(Input::RoundTrip { host: HostIndex(host), micros: LATENCY_MS * 2000 });
    }
    crew.run();
    report(&crew);
    Ok(())
}

fn report(crew: &Crew) {
    let weight: u64 = crew.workers.iter().map(|worker| worker.slots as u64 * worker.speed).sum();
    let fastest = crew.workers.iter().map(|worker| worker.speed).max().unwrap_or(1);
    let longest = crew.durations.iter().max().copied().unwrap_or(0);
    let work: u64 = crew.durations.iter().sum();
    let bound = (work * 1000 / weight.max(1)).max(longest * 1000 / fastest).max(1);
    let counts = crew.scheduler.counts();
    let ratio = crew.now * 10_000 / bound;
    println!(
        "{{\"tasks\":{},\"hosts\":{},\"done\":{},\"scheduler_seconds\":{:.3},\"process_seconds\":{:.3},\
         \"peak_mib\":{},\"inputs\":{},\"makespan_ratio\":{}.{:04}}}",
        counts.total,
        crew.workers.len(),
        counts.done,
        crew.spent.as_secs_f64(),
        cpu_seconds(),
        peak_mib(),
        crew.inputs,
        ratio / 10_000,
        ratio % 10_000,
    );
}

fn cpu_seconds() -> f64 {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(clock.tv_sec).unwrap_or(0), u32::try_from(clock.tv_nsec).unwrap_or(0))
        .as_secs_f64()
}

/// Peak memory of the process, as the kernel says; 0 if it does not.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let fields: BTreeMap<&str, &str> = status.lines().filter_map(|line| line.split_once(':')).collect();
    let peak = fields.get("VmHWM").and_then(|text| text.split_whitespace().next());
    peak.and_then(|text| text.parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}
