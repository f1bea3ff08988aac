//! Tasks in guests, from the build file to the result directory, on a host with machines made from Debian packages.

mod support;

use support::machines::{PLAIN, Site, TINY, live, target};
use support::scene::Scene;

/// Both ways to talk to a guest.
const BOTH: [&str; 2] = [TINY, PLAIN];

fn build_file(targets: &[String]) -> String {
    format!("commits = 'HEAD'\n{}", targets.concat())
}

#[test]
fn a_task_in_a_guest_ends_like_any_other_and_leaves_nothing() {
    let site = Site::shared();
    let lines = r#"
stages.build = 'echo made of $(cat number); echo beside >&2; mkdir -p "$CREWBOSS_OUT/lib"; echo 42 >"$CREWBOSS_OUT/lib/answer"'
stages.test = 'cat "$CREWBOSS_OUT/lib/answer"; uname -n'
artifacts = ["lib/*"]
"#;
    let scene = Scene::with_commits(&build_file(&BOTH.map(|machine| target(machine, machine, lines))), 1);
    let ended = site.run(&scene).expect_code(0).expect_tasks(2, "success");
    for machine in BOTH {
        let file = |name: &str| ended.results.file(machine, name);
        assert!(file("log").contains("made of 1\n") && file("log").contains("42\n"), "{}", file("log"));
        assert_eq!(file("err"), "beside\n");
        assert_eq!(file("artifacts/lib/answer"), "42\n");
        let result: serde_json::Value = serde_json::from_str(&file("result.json")).expect("JSON");
        let used = &result["machine"];
        assert_eq!(used["name"], machine, "{result:#}");
        assert_eq!(used["accelerator"], "tcg", "{result:#}");
        assert_eq!(used["boots"], 1, "{result:#}");
        assert!(live(&ended, machine).contains("made of 1"), "not shown live in {machine}: {ended:#?}");
    }
    site.expect_no_guests();
}
