//! What people usually get wrong, and files as large as they may be.

use super::{build, crew};

/// Processor time of this thread.
fn cost<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let begun = now();
    (work(), now() - begun)
}

#[test]
fn ten_times_the_targets_take_ten_times_as_long() {
    let read = |count: usize| {
        let target = |n| {
            format!(
                "[target.t{n}]\nstages.configure = \"./configure\"\nstages.build = \"make\"\nartifacts = [\"*.bin\"]\n"
            )
        };
        let text: String = (0..count).map(target).collect();
        let (mut plan, took) = cost(|| build(&text).unwrap());
        assert_eq!(plan.targets.len(), count);
        plan.select(&[format!("t{}", count - 1)]).unwrap();
        assert_eq!(plan.targets.len(), 1);
        took
    };
    let few = (0..3).map(|_| read(500)).fold(f64::INFINITY, f64::min);
    let many = read(5000);
    assert!(many < 35.0 * few, "{few} s for 500, {many} s for 5000");
}

#[test]
fn what_people_mean_by_what_is_not_understood_is_said() {
    let hint = |error: Option<String>| error.unwrap().split_once("hint: ").map(|(_, hint)| hint.to_owned());
    let of_build = |text: &str| hint(build(text).err());
    for (text, said) in [
        ("[target]\nstages.b = 'make'\n", "[target.NAME]"),
        ("[target.x]\nstages = 'make'\n", "stages.build = \"make\""),
        ("[target.x]\nstages = ['make']\n", "stages.build = \"make\""),
        ("[target.x]\ncommits = 'HEAD'\nstages.b = 'make'\n", "above the first table"),
        ("[host.x]\nssh = 'x'\n[target.x]\nstages.b = 'make'\n", "crew.toml"),
    ] {
        assert!(of_build(text).is_some_and(|hint| hint.contains(said)), "{text}: {:?}", of_build(text));
    }
    let hint = hint(crew("[host]\nssh = 'x'\n").err());
    assert!(hint.as_ref().is_some_and(|hint| hint.contains("[host.NAME]")), "{hint:?}");
}
