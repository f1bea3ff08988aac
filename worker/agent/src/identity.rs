//! Becoming a guest of its own after being restored from another one's memory. What is answered was
//! read back.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crewboss_protocol::Name;
use crewboss_protocol::guest::Identity;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::error::AgentError;
use super::place::Place;

/// `RNDADDENTROPY` and `RNDRESEEDCRNG` of `linux/random.h`; these are the numbers of x86, ARM and
/// RISC-V.
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
const RESEED: libc::Ioctl = 0x5207;

/// Most random bytes that are taken.
const SEED_BYTES_MAX: usize = 512;

/// Longest host name of Linux.
const HOST_NAME_MAX: usize = 64;

/// The kind of network device that has an address of six bytes.
const ETHERNET: u16 = 1;

/// What the kernel takes with random bytes: their worth in bits, their length, and they.
#[repr(C)]
struct Pool {
    bits: libc::c_int,
    length: libc::c_int,
    bytes: [u8; SEED_BYTES_MAX],
}

/// Takes on an identity. Below another root only files are changed.
pub(super) fn renew(place: &Place, identity: &Identity) -> Result<Identity, AgentError> {
    let seed = parse_seed(&identity.seed)?;
    let id = &identity.machine_id;
    if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad("machine id", id));
    }
    if identity.host_name.as_str().len() > HOST_NAME_MAX {
        return Err(bad("host name", identity.host_name.as_str()));
    }
    let mac =
        identity.mac.as_deref().map(|text| parse_mac(text).ok_or_else(|| bad("mac", text))).transpose()?;
    if place.is_system() {
        stir(&seed).map_err(AgentError::at(Path::new("/dev/urandom")))?;
        set_clock(identity.clock_ms)?;
        rustix::system::sethostname(identity.host_name.as_str().as_bytes())
            .map_err(|error| AgentError::System { what: "set the host name", source: error.into() })?;
    }
    let read_id = set_machine_id(place, id)?;
    let mac = match mac {
        Some(mac) if place.is_system() => set_mac(mac)?,
        other => other.map(show_mac),
    };
    let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let now = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Ok(Identity {
        clock_ms: seconds.saturating_mul(1000) + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000,
        seed: blake3::hash(&seed).to_hex().to_string(),
        machine_id: read_id,
        host_name: host_name.parse::<Name>().map_err(|_| bad("host name", &host_name))?,
        mac,
    })
}

fn bad(what: &'static str, value: &str) -> AgentError {
    AgentError::Identity { what, value: value.chars().take(80).collect() }
}

fn parse_seed(text: &str) -> Result<Vec<u8>, AgentError> {
    let length = text.len() / 2;
    if !text.is_ascii() || !text.len().is_multiple_of(2) || !(16..=SEED_BYTES_MAX).contains(&length) {
        return Err(bad("seed", text));
    }
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok();
    (0..length).map(byte).collect::<Option<_>>().ok_or_else(|| bad("seed", text))
}

/// Gives the kernel random bytes, and lets it begin anew with them at once: it has the same state
/// as all other guests that were restored from the same memory.
fn stir(seed: &[u8]) -> io::Result<()> {
    let device = fs::File::options().write(true).open("/dev/urandom")?;
    let length = libc::c_int::try_from(seed.len()).map_err(io::Error::other)?;
    let mut pool = Pool { bits: length.saturating_mul(8), length, bytes: [0; SEED_BYTES_MAX] };
    pool.bytes[..seed.len()].copy_from_slice(seed);
    // SAFETY: the kernel reads `length` bytes behind the two numbers, and they are there.
    let added = unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, &raw const pool) };
    // SAFETY: the call takes no argument.
    if added != 0 || unsafe { libc::ioctl(device.as_raw_fd(), RESEED, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn set_clock(milliseconds: u64) -> Result<(), AgentError> {
    let tv_sec = i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX);
    let tv_nsec = i64::try_from(milliseconds % 1000).unwrap_or(0) * 1_000_000;
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec })
        .map_err(|error| AgentError::System { what: "set the clock", source: error.into() })
}

/// Writes the machine id, also where D-Bus keeps a copy. Returns what is there then.
fn set_machine_id(place: &Place, id: &str) -> Result<String, AgentError> {
    let path = place.at("/etc/machine-id");
    write(&path, id).map_err(AgentError::at(&path))?;
    let copy = place.at("/var/lib/dbus/machine-id");
    if copy.symlink_metadata().is_ok_and(|found| found.is_file()) {
        write(&copy, id).map_err(AgentError::at(&copy))?;
    }
    fs::read_to_string(&path).map(|text| text.trim().to_owned()).map_err(AgentError::at(&path))
}

/// Over the old one if there is one: a guest that has just been restored does that in a fraction of
/// the time that a new file takes, and nobody reads it yet.
fn write(path: &Path, id: &str) -> io::Result<()> {
    let line = format!("{id}\n");
    let old = fs::File::options().read(true).write(true).open(path);
    let old = old.and_then(|file| Ok((file.metadata()?.len(), file)));
    match old {
        Ok((length, file)) if length == line.len() as u64 => file.write_all_at(line.as_bytes(), 0),
        _ => fs::write(path, line),
    }
}

pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    // The lowest bit of the first byte is for groups, which no device is.
    (parts.next().is_none() && bytes[0] & 1 == 0).then_some(bytes)
}

pub(super) fn show_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Sets the address of the first network device, and says what the device then has; `None` if there
/// is no device.
fn set_mac(mac: [u8; 6]) -> Result<Option<String>, AgentError> {
    let Some(name) = first_device() else { return Ok(None) };
    let what = "set the address of the network device";
    change_address(&name, mac).map_err(|source| AgentError::System { what, source })?;
    let path = Path::new("/sys/class/net").join(&name).join("address");
    fs::read_to_string(&path).map(|text| Some(text.trim().to_owned())).map_err(AgentError::at(&path))
}

/// The Ethernet device that the kernel found first.
fn first_device() -> Option<String> {
    let number =
        |path: &Path, file| -> Option<u32> { fs::read_to_string(path.join(file)).ok()?.trim().parse().ok() };
    let entries = fs::read_dir("/sys/class/net").ok()?.flatten();
    let devices = entries.filter_map(|entry| {
        let path = entry.path();
        let is_ethernet = number(&path, "type") == Some(ETHERNET.into());
        is_ethernet.then_some((number(&path, "ifindex")?, entry.file_name().into_string().ok()?))
    });
    devices.min().map(|(_, name)| name)
}

/// Takes the device down for it only if its driver wants that, since its routes are lost then; and
/// up again if it was.
fn change_address(name: &str, mac: [u8; 6]) -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    let call = |code: libc::Ioctl, request: &mut libc::ifreq| {
        // SAFETY: the kernel reads and writes one ifreq, for which all of these calls are.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), code, std::ptr::from_mut(request)) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    let mut address = request(name)?;
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().zip(mac) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    address.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: ETHERNET, sa_data: data };
    if call(libc::SIOCSIFHWADDR as libc::Ioctl, &mut address).is_ok() {
        return Ok(());
    }
    let mut flags = request(name)?;
    call(libc::SIOCGIFFLAGS as libc::Ioctl, &mut flags)?;
    // SAFETY: SIOCGIFFLAGS has filled in the flags.
    let before = unsafe { flags.ifr_ifru.ifru_flags };
    let up = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    flags.ifr_ifru.ifru_flags = before & !up;
    call(libc::SIOCSIFFLAGS as libc::Ioctl, &mut flags)?;
    let set = call(libc::SIOCSIFHWADDR as libc::Ioctl, &mut address);
    flags.ifr_ifru.ifru_flags = before;
    call(libc::SIOCSIFFLAGS as libc::Ioctl, &mut flags)?;
    set
}

pub(super) fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            clock_ms: 1,
            seed: "00ff".repeat(16),
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            host_name: "guest-1".parse().unwrap(),
            mac: Some("52:54:00:12:34:56".to_owned()),
        }
    }

    #[test]
    fn below_another_root_only_files_are_changed() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir_all(base.path().join("etc")).unwrap();
        let place = Place::new(Some(base.path().to_owned()));
        let name = rustix::system::uname().nodename().to_owned();
        let renewed = renew(&place, &identity()).unwrap();
        assert_eq!(renewed.machine_id, identity().machine_id);
        assert_eq!(renewed.seed, blake3::hash(&[0, 0xff].repeat(16)).to_hex().to_string());
        assert!(renewed.clock_ms > 1_600_000_000_000, "the clock was set");
        assert_eq!(rustix::system::uname().nodename(), name.as_c_str());
        let text = fs::read_to_string(base.path().join("etc/machine-id")).unwrap();
        assert_eq!(text, format!("{}\n", identity().machine_id));
    }

    #[test]
    fn an_identity_that_cannot_be_is_refused() {
        let place = Place::new(Some("/nonexistent".into()));
        let refused = |change: &dyn Fn(&mut Identity), what: &str| {
            let mut identity = identity();
            change(&mut identity);
            let error = renew(&place, &identity).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        refused(&|one| one.seed = "00".to_owned(), "seed");
        refused(&|one| one.seed = "é".repeat(16), "seed");
        refused(&|one| one.seed = "zz".repeat(16), "seed");
        refused(&|one| one.machine_id = "../".to_owned(), "machine id");
        refused(&|one| one.host_name = "x".repeat(65).parse().unwrap(), "host name");
        for mac in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "01:00:00:00:00:00", "52:54:00:12:34:+6"] {
            refused(&|one| one.mac = Some(mac.to_owned()), "mac");
        }
    }
}
