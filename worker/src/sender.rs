//! Who has sent a signal, told to the person whose worker ends by it, with what to do about it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crewboss_ground::{kernel_bytes, kernel_text, user_name};
use crewboss_host::sys::Sender;

/// Longest name that is told further.
const NAME_CHARS_MAX: usize = 100;

/// The option by which `crewboss clean` is told who wants it. It is there to be read by [`story`].
pub const BY: &str = "--by";

/// For a worker that got a signal, and has this guardian. Looked up at once: most who send one end
/// soon after.
pub fn story(sender: Option<Sender>, guardian: Option<u32>) -> String {
    let Some(sender) = sender.filter(|sender| sender.pid != 0) else {
        return "the kernel; `dmesg` there may say why".to_owned();
    };
    let place = format!("/proc/{}", sender.pid);
    let user = sender.uid.or_else(|| fs::metadata(&place).ok().map(|found| found.uid()));
    let user = user.map_or_else(|| "an unknown user".to_owned(), user_name);
    let process = format!("process {} of {user}", sender.pid);
    // The kernel tells of its end in its name. By then it may be gone, and its place as a parent
    // taken by another.
    if guardian == Some(sender.pid) {
        return format!("its guardian there ({process}), which was ended itself; `dmesg` there may say why");
    }
    let Ok(name) = kernel_text(format!("{place}/comm")) else {
        return format!("{process}, which has ended; ask them");
    };
    if let Some(person) = cleaner(&kernel_bytes(format!("{place}/cmdline")).unwrap_or_default()) {
        return format!("`crewboss kill-workers` of {person}; ask them");
    }
    match sender.pid {
        1 => "process 1, as when the host is shut down; wait until it is back".to_owned(),
        _ => format!("{process} ({}); ask them", shown(&name)),
    }
}

/// On whose behalf a command line of ours cleans up.
fn cleaner(line: &[u8]) -> Option<String> {
    let mut words = line.split(|byte| *byte == 0).skip(1);
    (words.next() == Some(b"clean")).then_some(())?;
    let person = words.skip_while(|word| *word != BY.as_bytes()).nth(1)?;
    Some(shown(&String::from_utf8_lossy(person)))
}

fn shown(name: &str) -> String {
    name.trim().chars().filter(|character| !character.is_control()).take(NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn whoever_sends_a_signal_is_named_as_far_as_can_be_seen() {
        let uid = rustix::process::geteuid().as_raw();
        let of = |pid, uid| story(Some(Sender { pid, uid }), None);
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let pid = child.id();
        let expected = format!("process {pid} of {} (sleep); ask them", user_name(uid));
        while of(pid, Some(uid)) != expected {
            // It is still this program.
            std::thread::yield_now();
        }
        assert_eq!(of(pid, None), expected);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(
            of(pid, Some(uid)),
            format!("process {pid} of {}, which has ended; ask them", user_name(uid))
        );
        assert!(of(pid, None).contains("an unknown user"));
        assert!(story(None, None).starts_with("the kernel"));
        assert!(of(1, Some(0)).starts_with("process 1, as when"));
        let of_guardian = story(Some(Sender { pid, uid: Some(uid) }), Some(pid));
        assert!(of_guardian.starts_with("its guardian there (process"), "{of_guardian}");
    }

    #[test]
    fn whoever_wants_workers_to_end_is_in_the_command_line() {
        let of = |line: &str| cleaner(line.replace(' ', "\0").as_bytes());
        assert_eq!(of("/x/crewboss clean --force --by ann@laptop --work /w "), Some("ann@laptop".to_owned()));
        assert_eq!(of("/x/crewboss clean --force"), None);
        assert_eq!(of("/x/crewboss clean --by"), None);
        assert_eq!(of("/bin/sh clean-up --by ann@laptop"), None);
        assert_eq!(of(""), None);
    }
}
