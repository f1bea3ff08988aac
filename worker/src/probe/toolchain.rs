//! Toolchains: compilers on `PATH` and in the crew file, each tried before it is offered.
//!
//! | compiler | offered as |
//! |---|---|
//! | `gcc`, or else `cc`, or else `clang` | `native`, and the machine's architecture |
//! | `<triplet>-gcc` | the triplet, and its first word |
//! | named in the crew file | that name, before all others |
//!
//! If several compilers could have one name, the first that works gets it: the native one, then
//! triplets ending in `linux-gnu`, other `linux-gnu...`, `linux-musl...`, other `linux`, then the
//! rest, each by the alphabet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crewboss_protocol::Name;
use crewboss_protocol::host::{BrokenToolchain, Toolchain};

use super::cache::Cache;
use super::trial::{self, Identity, Trial};

/// Toolchains offered (the protocol's limit).
const TOOLCHAINS_MAX: usize = 1024;

/// Words that stand before `-gcc` and are a whole target. All other targets have a dash.
const SHORT_TARGETS: [&str; 2] = ["avr", "msp430"];

/// A compiler and the names that it would like to have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    names: Vec<Name>,
    compiler: PathBuf,
    prefix: String,
}

/// Finds and tries all compilers; those that work and those that do not.
pub(super) fn find(
    named: &BTreeMap<Name, String>,
    cache: &mut Cache,
) -> (Vec<Toolchain>, Vec<BrokenToolchain>) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    let mut broken = Vec::new();
    let mut candidates = in_crew_file(named, &directories, &mut broken);
    candidates.extend(on_path(&directories, &sysinfo::System::cpu_arch()));
    candidates.truncate(TOOLCHAINS_MAX);
    let trials = try_all(&candidates, cache);
    let mut taken = BTreeSet::new();
    let mut toolchains = Vec::new();
    for (candidate, trial) in candidates.into_iter().zip(trials) {
        let compiler = candidate.compiler.to_string_lossy().into_owned();
        match trial {
            Trial::Works(version) => {
                for name in candidate.names.into_iter().filter(|name| taken.insert(name.clone())) {
                    let (version, compiler) = (version.clone(), compiler.clone());
                    toolchains.push(Toolchain { name, version, compiler, prefix: candidate.prefix.clone() });
                }
            }
            Trial::Broken(why) | Trial::Disturbed(why) => {
                broken.extend(candidate.names.into_iter().next().map(|name| BrokenToolchain {
                    name,
                    compiler,
                    why,
                }));
            }
        }
    }
    toolchains.truncate(TOOLCHAINS_MAX);
    toolchains.sort_by(|a, b| a.name.cmp(&b.name));
    (toolchains, broken)
}

fn in_crew_file(
    named: &BTreeMap<Name, String>,
    directories: &[PathBuf],
    broken: &mut Vec<BrokenToolchain>,
) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (name, compiler) in named {
        let found = if compiler.contains('/') {
            Some(PathBuf::from(compiler)).filter(|path| path.is_absolute() && is_program(path))
        } else {
            directories.iter().map(|directory| directory.join(compiler)).find(|path| is_program(path))
        };
        match found {
            Some(path) => {
                let prefix = prefix_of(compiler);
                candidates.push(Candidate { names: vec![name.clone()], compiler: path, prefix });
            }
            None => {
                let why = if compiler.contains('/') {
                    "there is no such program; a path must be absolute"
                } else {
                    "there is no such program on the host's PATH"
                };
                let (name, compiler) = (name.clone(), compiler.clone());
                broken.push(BrokenToolchain { name, compiler, why: why.to_owned() });
            }
        }
    }
    candidates
}

/// What has to be put before `ld` or `size` to get those that belong to a compiler.
fn prefix_of(compiler: &str) -> String {
    // `gcc-12` or `clang-15` belong to the same tools as `gcc`.
    let unversioned = compiler.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    let unversioned =
        unversioned.strip_suffix('-').filter(|rest| rest.len() < compiler.len()).unwrap_or(compiler);
    let stem = ["gcc", "clang", "cc"].iter().find_map(|tool| unversioned.strip_suffix(tool));
    stem.unwrap_or_default().to_owned()
}

fn on_path(directories: &[PathBuf], architecture: &str) -> Vec<Candidate> {
    let mut programs: BTreeMap<String, PathBuf> = BTreeMap::new();
    for directory in directories {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            if let Some(name) = name.to_str().filter(|name| is_compiler(name))
                && !programs.contains_key(name)
                && is_program(&entry.path())
            {
                programs.insert(name.to_owned(), entry.path());
            }
        }
    }
    let names = |texts: &[&str]| texts.iter().filter_map(|text| text.parse().ok()).collect::<Vec<Name>>();
    let native = ["gcc", "cc", "clang"].iter().find_map(|name| programs.get(*name));
    let mut candidates: Vec<Candidate> = native
        .map(|path| Candidate {
            names: names(&["native", architecture]),
            compiler: path.clone(),
            prefix: String::new(),
        })
        .into_iter()
        .collect();
    let mut triplets: Vec<_> =
        programs.iter().filter_map(|(name, path)| Some((name.strip_suffix("-gcc")?, path))).collect();
    triplets.sort_by_key(|(triplet, _)| (rank(triplet), triplet.to_owned()));
    candidates.extend(triplets.into_iter().map(|(triplet, path)| {
        let first = triplet.split('-').next().unwrap_or(triplet);
        Candidate { names: names(&[triplet, first]), compiler: path.clone(), prefix: format!("{triplet}-") }
    }));
    candidates
}

/// Whether a program's name is one that we look for.
fn is_compiler(name: &str) -> bool {
    match name.strip_suffix("-gcc") {
        Some(target) => target.contains('-') || SHORT_TARGETS.contains(&target),
        None => matches!(name, "gcc" | "cc" | "clang"),
    }
}

/// Who gets the name of an architecture first.
fn rank(triplet: &str) -> usize {
    let kinds =
        [triplet.ends_with("-linux-gnu"), triplet.contains("-linux-gnu"), triplet.contains("-linux-musl")];
    let kind = kinds.iter().position(|is| *is);
    kind.unwrap_or(if triplet.contains("-linux") { kinds.len() } else { kinds.len() + 1 })
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Tries what is not known yet, as many at once as there are processors.
fn try_all(candidates: &[Candidate], cache: &mut Cache) -> Vec<Trial> {
    let identities: Vec<_> = candidates.iter().map(|candidate| Identity::of(&candidate.compiler)).collect();
    let known = |index: usize| {
        let path = candidates[index].compiler.to_string_lossy();
        cache.trial(&path, identities[index].as_ref()?).cloned()
    };
    let mut trials: Vec<Option<Trial>> = (0..candidates.len()).map(known).collect();
    let unknown: Vec<usize> = (0..candidates.len()).filter(|index| trials[*index].is_none()).collect();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(index) = unknown.get(next.fetch_add(1, Ordering::Relaxed)) {
            let trial = trial::run(&candidates[*index].compiler);
            results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((*index, trial));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(unknown.len());
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Without a thread more, this one does all of it.
            let _none = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    for (index, trial) in results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        let lasting = !matches!(trial, Trial::Disturbed(_));
        if let Some(identity) = identities[index].clone().filter(|_| lasting) {
            let path = candidates[index].compiler.to_string_lossy().into_owned();
            cache.note_trial(path, identity, trial.clone());
        }
        trials[index] = Some(trial);
    }
    trials
        .into_iter()
        .map(|trial| trial.unwrap_or_else(|| Trial::Broken("it was not tried".to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_compilers_for_a_target_are_taken() {
        for name in ["gcc", "cc", "clang", "aarch64-linux-gnu-gcc", "arm-none-eabi-gcc", "avr-gcc"] {
            assert!(is_compiler(name), "{name}");
        }
        for name in ["c89-gcc", "c99-gcc", "musl-gcc", "gcc-12", "x86_64-linux-gnu-gcc-ar", "-gcc", "g++"] {
            assert!(!is_compiler(name), "{name}");
        }
    }

    #[test]
    fn tools_are_found_beside_their_compiler() {
        for (compiler, prefix) in [
            ("gcc", ""),
            ("gcc-12", ""),
            ("clang-15", ""),
            ("arm-none-eabi-gcc", "arm-none-eabi-"),
            ("/opt/a/bin/arm-none-eabi-gcc", "/opt/a/bin/arm-none-eabi-"),
            ("/opt/a/bin/gcc-12.2", "/opt/a/bin/"),
            ("tcc2000", ""),
            ("icx", ""),
        ] {
            assert_eq!(prefix_of(compiler), prefix, "{compiler}");
        }
    }

    #[test]
    fn linux_gnu_has_the_architectures_name() {
        let mut triplets = [
            "arm-none-eabi",
            "arm-linux-musleabi",
            "arm-linux-gnueabihf",
            "arm-linux-gnu",
            "arm-linux-android",
        ];
        triplets.sort_by_key(|triplet| rank(triplet));
        assert_eq!(
            triplets,
            [
                "arm-linux-gnu",
                "arm-linux-gnueabihf",
                "arm-linux-musleabi",
                "arm-linux-android",
                "arm-none-eabi"
            ]
        );
    }
}
