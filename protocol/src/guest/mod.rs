//! What a host and the agent in a guest say to each other over a virtio-serial port.
//!
//! JSON lines with the prefix of [`crate::codec`], as on the control channel. The host drives: it
//! sends the task's document, then one stage after the other, then asks for the artifacts. Output
//! of a stage is a line with its length, and that many raw bytes after it, so that nothing has to
//! be escaped; whoever reads slowly slows the stage down.
//!
//! Guests without a port speak TFTP: they get the same task document, and put the same result
//! document.

mod document;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

pub use document::{DocumentError, Ending, PROBLEMS_MAX, ResultDocument, Served, TaskDocument};

use crate::id::Name;
use crate::limits::{GUEST_LOG_BYTES_MAX, LINE_BYTES_MAX, NUMBER_MAX, TEXT_BYTES_MAX, VERSIONS_MAX};
use crate::message::{Invalid, Validate, is_variable};
use crate::outcome::StageResult;

/// The name of the agent's virtio-serial port, as in `/sys/class/virtio-ports/*/name`.
pub const AGENT_PORT: &str = "crewboss.agent";

/// The name of the port that carries a person's shell: raw bytes of a terminal both ways.
pub const SHELL_PORT: &str = "crewboss.shell";

/// The serial number of the read-only disk that holds the source as a tar archive, as in
/// `/sys/block/*/serial`.
pub const SOURCE_DISK: &str = "crewboss-source";

/// The serial number of the disk that the agent writes the archive of artifacts to, from its first
/// byte.
pub const RESULT_DISK: &str = "crewboss-result";

/// The serial number of the read-only disk with agent and toolchain, present while a machine is
/// bootstrapped.
pub const BOOTSTRAP_DISK: &str = "crewboss-boot";

/// Where a task lies in its guest: `src`, `out`, `home` and `tmp` are below.
pub const GUEST_WORK: &str = "/crewboss";

/// Where bootstrap puts the agent, the static binary itself, in the guest.
pub const GUEST_AGENT: &str = "/usr/lib/crewboss/crewboss";

/// Where the toolchain's files lie in the guest while it is bootstrapped.
pub const GUEST_TOOLCHAIN: &str = "/usr/lib/crewboss/toolchain";

/// How much of an address in the private network of a task's guests is the network's, in bits.
pub const NETWORK_BITS: u8 = 24;

/// The address of a guest in the private network of its task: auxiliary machines come first, in
/// their order, and the build machine is the last one.
pub fn network_address(place: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, place.saturating_add(2))
}

/// To the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToGuest {
    /// Bootstrap: run the toolchain's `bootstrap` script. Answered by `bootstrapped`.
    Bootstrap {
        /// The toolchain's name.
        toolchain: Name,
    },
    /// Take this address in the private network of the task's guests. Answered by `networked`.
    Network {
        /// The network device with this address gets it.
        mac: String,
        /// The address; [`NETWORK_BITS`] of it are the network's.
        address: Ipv4Addr,
    },
    /// Unpack the source and be ready for stages. Answered by `prepared`.
    Task {
        /// A [`TaskDocument`] as text.
        document: String,
    },
    /// Serve: start the machine's service. Answered by `environment`.
    Serve {
        /// What the task calls this machine.
        name: Name,
    },
    /// Run a stage of the task. Answered by `log` and `ended`.
    Stage {
        /// Which.
        name: Name,
        /// Variables on top of those of the task.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        variables: BTreeMap<String, String>,
        /// Unpack the source anew and empty `$CREWBOSS_OUT` first.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        wipe: bool,
    },
    /// Stop the stage that runs: it ends as if by itself, with `stopped` set.
    Cancel,
    /// Write artifacts and uploads to the result disk. Answered by `collected`.
    Collect,
    /// Become a guest of its own after being restored from saved memory. Answered by `renewed`.
    Renew(Identity),
    /// Say how you are. Answered by `alive`.
    Ping {
        /// Counted by the host.
        number: u64,
    },
    /// Write everything to disk and switch off.
    PowerOff,
}

/// From the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromGuest {
    /// The first line: the guest is up and asks what to do.
    Ready {
        /// [`crate::machine::AGENT_VERSION`] of the agent.
        agent: u32,
    },
    /// The toolchain is installed.
    Bootstrapped {
        /// Programs and their versions.
        #[serde(default)]
        versions: BTreeMap<String, String>,
    },
    /// The guest has its address.
    Networked,
    /// The source is in place.
    Prepared,
    /// The service of an auxiliary machine is up, and what the task needs to know of it.
    Environment {
        /// Without prefix.
        #[serde(default)]
        variables: BTreeMap<String, String>,
    },
    /// Output of a stage: so many raw bytes follow this line.
    Log {
        /// Which stream.
        stream: GuestStream,
        /// At most [`GUEST_LOG_BYTES_MAX`].
        bytes: u32,
    },
    /// A stage has ended, and nothing of it runs any more.
    Ended {
        /// How.
        result: StageResult,
        /// Largest resident size of one process, in KiB.
        rss_kib_max: u64,
        /// Whether it was stopped by `cancel`.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        stopped: bool,
    },
    /// The archive is on the result disk.
    Collected {
        /// A [`ResultDocument`] as text.
        document: String,
        /// The length of the archive; 0 if there is nothing to bring.
        bytes: u64,
    },
    /// What the guest has become, read back from its kernel.
    Renewed(Identity),
    /// The state of the guest.
    Alive {
        /// The number of the last `ping`.
        number: u64,
        /// What it has and does.
        #[serde(flatten)]
        load: GuestLoad,
        /// Whether a stage, or another job, is running: the next one would be refused.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        busy: bool,
    },
    /// What was asked for last cannot be done.
    Failed {
        /// What failed, where and why.
        text: String,
        /// Whether it is the result disk that is full: the task has made more than there is room
        /// for.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        full: bool,
    },
}

/// How a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestLoad {
    /// One-minute load average in hundredths.
    pub load_percent: u32,
    /// Memory that could be had without swapping, in bytes.
    pub memory_available: u64,
    /// Free space below [`GUEST_WORK`], in bytes.
    pub disk_free: u64,
}

/// Which stream a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestStream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// What makes a guest itself and not the one whose memory was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The time, in milliseconds since 1970.
    pub clock_ms: u64,
    /// Random bytes for the kernel's entropy pool, in hexadecimal; in the answer their BLAKE3 hash.
    pub seed: String,
    /// The machine id, 32 hexadecimal digits.
    pub machine_id: String,
    /// The host name.
    pub host_name: Name,
    /// The address of the first network device, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

impl Validate for ToGuest {
    fn validate(&self) -> Result<(), Invalid> {
        match self {
            ToGuest::Task { document } => at_most("document", document.len(), LINE_BYTES_MAX),
            ToGuest::Stage { variables, .. } => are_variables(variables),
            ToGuest::Bootstrap { .. }
            | ToGuest::Network { .. }
            | ToGuest::Serve { .. }
            | ToGuest::Cancel
            | ToGuest::Collect
            | ToGuest::Renew(_)
            | ToGuest::Ping { .. }
            | ToGuest::PowerOff => Ok(()),
        }
    }
}

impl Validate for FromGuest {
    fn validate(&self) -> Result<(), Invalid> {
        match self {
            FromGuest::Log { bytes, .. } => at_most("bytes", *bytes as usize, GUEST_LOG_BYTES_MAX),
            FromGuest::Collected { document, .. } => at_most("document", document.len(), LINE_BYTES_MAX),
            FromGuest::Environment { variables } => are_variables(variables),
            FromGuest::Failed { text, .. } => at_most("text", text.len(), TEXT_BYTES_MAX),
            FromGuest::Ended { result, rss_kib_max, .. } => {
                let largest = result.wall_ms.max(result.cpu_ms).max(*rss_kib_max);
                let why = || format!("{largest} is over the limit of {NUMBER_MAX}");
                if largest > NUMBER_MAX {
                    return Err(Invalid { field: "result", why: why() });
                }
                let why = || "a stage in a guest ends with a code or by a signal".to_owned();
                if result.exit.is_its_own() { Ok(()) } else { Err(Invalid { field: "result", why: why() }) }
            }
            FromGuest::Bootstrapped { versions } => at_most("versions", versions.len(), VERSIONS_MAX),
            FromGuest::Ready { .. }
            | FromGuest::Networked
            | FromGuest::Prepared
            | FromGuest::Renewed(_)
            | FromGuest::Alive { .. } => Ok(()),
        }
    }
}

fn at_most(field: &'static str, len: usize, max: usize) -> Result<(), Invalid> {
    let why = || format!("{len} is over the limit of {max}");
    if len <= max { Ok(()) } else { Err(Invalid { field, why: why() }) }
}

fn are_variables(variables: &BTreeMap<String, String>) -> Result<(), Invalid> {
    at_most("variables", variables.len(), 1024)?;
    match variables.iter().find(|(name, value)| !is_variable(name) || value.contains('\0')) {
        Some((name, _)) => Err(Invalid { field: "variables", why: format!("{name:?} cannot be one") }),
        None => Ok(()),
    }
}
