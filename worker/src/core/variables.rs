//! The environment variables of a target's stages that are the same for all its tasks.

use std::time::Duration;

use crewboss_protocol::message::Hello;
use crewboss_protocol::{Environment, HostFacts, Target, Toolchain};

use crate::runner::message::Spec;

/// Where programs are looked for if whoever started the worker has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Puts together what a runner needs to know of a target. The target's own variables win.
pub fn spec(target: &Target, facts: &HostFacts, hello: &Hello) -> Spec {
    // That of a machine is in its guests, whatever the host has under the same name.
    let of_host =
        target.toolchain.as_ref().filter(|_| !matches!(target.environment, Environment::Machine(_)));
    let toolchain = of_host.and_then(|name| facts.toolchains.iter().find(|one| one.name == *name));
    let user = crewboss_ground::account().name.clone();
    let jobs = (facts.threads / facts.slots.max(1)).max(1);
    let mut variables: Vec<(String, String)> = [
        ("PATH", std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned())),
        ("LANG", "C.UTF-8".to_owned()),
        ("LOGNAME", user.clone()),
        ("USER", user),
        ("SHELL", "/bin/sh".to_owned()),
        ("CREWBOSS_JOBS", jobs.to_string()),
        ("CREWBOSS_TARGET", target.name.to_string()),
        (crewboss_host::marked::MARK, hello.session.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    if let Some(Toolchain { compiler, prefix, .. }) = toolchain {
        for (name, value) in [
            ("CC", compiler),
            ("CREWBOSS_CC", compiler),
            ("CREWBOSS_CROSS", prefix),
            ("CROSS_COMPILE", prefix),
        ] {
            variables.push((name.to_owned(), value.clone()));
        }
    }
    // The mark must stay what it is: clean-up finds processes by it.
    let own = target.variables.iter().filter(|(name, _)| *name != crewboss_host::marked::MARK);
    variables.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    let standstill = Duration::from_millis(hello.standstill_ms);
    Spec {
        target: target.clone(),
        toolchain: toolchain.cloned(),
        variables,
        standstill,
        limits: hello.limits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(environment: &str) -> Spec {
        let target = format!(
            r#"{{"name":"t","toolchain":"gcc12","environment":{environment},"timeout_ms":1,"stages":[]}}"#
        );
        let hello = r#"{"protocol":1,"build":"","boss":"a@b","run":"r","session":"r.0.1","host":"h","heartbeat_ms":10,
            "silence_ms":20}"#;
        let facts = r#"{"kernel":"","architecture":"","threads":4,"memory":1,"disk_free":1,"work":"","slots":2,"speed":1,
            "speed_source":"measured","toolchains":[{"name":"gcc12","version":"12","compiler":"/opt/gcc","prefix":""}],
            "features":[],"load":{"load_percent":0,"memory_available":0,"disk_free":0}}"#;
        let facts: HostFacts = serde_json::from_str(facts).unwrap();
        spec(&serde_json::from_str(&target).unwrap(), &facts, &serde_json::from_str(hello).unwrap())
    }

    #[test]
    fn the_compiler_of_a_host_is_no_concern_of_its_guests() {
        let has =
            |spec: &Spec| (spec.toolchain.is_some(), spec.variables.iter().any(|(name, _)| name == "CC"));
        assert_eq!(has(&of(r#""directory""#)), (true, true));
        assert_eq!(has(&of(r#"{"machine":{"name":"debian"}}"#)), (false, false));
    }
}
