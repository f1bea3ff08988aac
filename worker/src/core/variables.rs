//! The environment variables of a target's stages that are the same for all its tasks.

use crewboss_protocol::message::Hello;
use crewboss_protocol::{HostFacts, Target, Toolchain};

use crate::runner::message::Spec;

/// Where programs are looked for if whoever started the worker has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Puts together what a runner needs to know of a target. The target's own variables win.
pub fn spec(target: &Target, facts: &HostFacts, hello: &Hello) -> Spec {
    let toolchain =
        target.toolchain.as_ref().and_then(|name| facts.toolchains.iter().find(|one| one.name == *name));
    let user =
        std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "crewboss".to_owned());
    let jobs = (facts.threads / facts.slots.max(1)).max(1);
    let mut variables: Vec<(String, String)> = [
        ("PATH", std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned())),
        ("LANG", "C.UTF-8".to_owned()),
        ("LOGNAME", user.clone()),
        ("USER", user),
        ("SHELL", "/bin/sh".to_owned()),
        ("CREWBOSS_JOBS", jobs.to_string()),
        ("CREWBOSS_TARGET", target.name.to_string()),
        (crate::sweep::MARK, hello.session.to_string()),
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
    let own = target.variables.iter().filter(|(name, _)| *name != crate::sweep::MARK);
    variables.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    Spec { target: target.clone(), toolchain: toolchain.cloned(), variables }
}
