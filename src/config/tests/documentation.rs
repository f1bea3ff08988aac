//! What the documents say of the files is true.

use super::{build, crew};

/// The keys that the parser knows in a table, which it lists when it meets one that it does not
/// know.
fn known_keys<T>(table: &str, load: impl Fn(&str) -> Result<T, String>) -> Vec<String> {
    let error = load(&format!("{table}zzzzzzzz = 1\n")).err().unwrap();
    let list = error.lines().next().unwrap().split_once("expected ").unwrap().1;
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_setting_is_documented_and_nothing_else() {
    let documentation = include_str!("../../../CONFIGURATION.md");
    let tables = [
        ("build.toml", known_keys("", build), vec!["target", "upload"]),
        ("environment", known_keys("[target.x]\nenvironment.", build), vec![]),
        ("[upload.TYPE]", known_keys("[upload.x]\n", build), vec![]),
        ("[target.NAME]", known_keys("[target.x]\n", build), vec!["needs"]),
        ("needs", known_keys("[target.x.needs]\n", build), vec![]),
        ("[ssh]", known_keys("[ssh]\n", crew), vec![]),
        ("[limits]", known_keys("[limits]\n", crew), vec![]),
        ("[host.NAME]", known_keys("[host.x]\n", crew), vec![]),
    ];
    for (table, keys, subtables) in tables {
        let heading = format!("### `{table}`");
        let section = documentation.split(&heading).nth(1).unwrap_or_else(|| panic!("{heading} is missing"));
        let section = section.split("\n#").next().unwrap();
        let mut documented: Vec<&str> =
            section.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '.']).next()).collect();
        let mut known: Vec<&str> =
            keys.iter().map(String::as_str).filter(|key| !subtables.contains(key)).collect();
        documented.sort_unstable();
        known.sort_unstable();
        assert_eq!(documented, known, "{table}");
    }
}

#[test]
fn the_examples_of_the_documentation_are_accepted() {
    let documentation = include_str!("../../../CONFIGURATION.md");
    let mut blocks = documentation.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    crew(&blocks.next().unwrap().replace("config = ", "# config = ")).unwrap();
    build(blocks.next().unwrap()).unwrap();
}

/// Each begins with a comment that says which file it is.
#[test]
fn the_examples_of_the_readme_are_accepted() {
    let blocks: Vec<&str> = include_str!("../../../README.md")
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    let (crews, builds): (Vec<&str>, Vec<&str>) =
        blocks.into_iter().partition(|block| block.starts_with("# crew.toml"));
    assert!(!crews.is_empty() && !builds.is_empty());
    crews.into_iter().for_each(|block| drop(crew(block).unwrap()));
    for block in builds {
        assert!(block.starts_with("# build.toml"), "which file is this?\n{block}");
        build(block).unwrap();
    }
}
