//! The address of a guest in the private network of its task's guests.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crewboss_protocol::guest::NETWORK_BITS;

use super::error::AgentError;
use super::identity::{parse_mac, request, show_mac};
use super::place::Place;

/// The driver may be loaded only later in the boot.
const DEVICE_WITHIN: Duration = Duration::from_secs(20);

/// Between two looks for the device.
const LOOK: Duration = Duration::from_millis(20);

/// Gives the address to the device with this MAC address, and takes it into use. Below another root
/// nothing is changed.
pub(super) fn set(place: &Place, mac: &str, address: Ipv4Addr) -> Result<(), AgentError> {
    let bytes = parse_mac(mac);
    let mac = bytes
        .map(show_mac)
        .ok_or_else(|| AgentError::Identity { what: "mac", value: mac.chars().take(80).collect() })?;
    if !place.is_system() {
        return Ok(());
    }
    let until = Instant::now() + DEVICE_WITHIN;
    let name = loop {
        if let Some(name) = device(&mac) {
            break name;
        }
        if Instant::now() >= until {
            return Err(AgentError::NoDevice { mac });
        }
        std::thread::sleep(LOOK);
    };
    let what = "set the address of the private network";
    configure(&name, address).map_err(|source| AgentError::System { what, source })
}

/// The name of the device with this MAC address.
fn device(mac: &str) -> Option<String> {
    let entries = fs::read_dir("/sys/class/net").ok()?.flatten();
    let has =
        |path: &Path| crewboss_ground::kernel_text(path.join("address")).is_ok_and(|text| text.trim() == mac);
    let found = entries.into_iter().find(|entry| has(&entry.path()))?;
    found.file_name().into_string().ok()
}

fn configure(name: &str, address: Ipv4Addr) -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    let call = |code: libc::c_ulong, request: &mut libc::ifreq| {
        // SAFETY: the kernel reads and writes one ifreq, for which all of these calls are.
        let result =
            unsafe { libc::ioctl(socket.as_raw_fd(), code as libc::Ioctl, std::ptr::from_mut(request)) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    let mut ours = request(name)?;
    ours.ifr_ifru.ifru_addr = socket_address(address);
    call(libc::SIOCSIFADDR, &mut ours)?;
    let mut mask = request(name)?;
    let bits = u32::MAX.checked_shl(32 - u32::from(NETWORK_BITS)).unwrap_or(0);
    mask.ifr_ifru.ifru_netmask = socket_address(Ipv4Addr::from(bits));
    call(libc::SIOCSIFNETMASK, &mut mask)?;
    let mut flags = request(name)?;
    call(libc::SIOCGIFFLAGS, &mut flags)?;
    // SAFETY: SIOCGIFFLAGS has filled in the flags.
    let before = unsafe { flags.ifr_ifru.ifru_flags };
    flags.ifr_ifru.ifru_flags = before | libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    call(libc::SIOCSIFFLAGS, &mut flags)
}

/// As the kernel wants it: a family, a port that does not count here, then the address.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: plain data, for which zeros are valid.
    let mut plain: libc::sockaddr = unsafe { std::mem::zeroed() };
    plain.sa_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(2);
    for (to, from) in plain.sa_data[2..].iter_mut().zip(address.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stands_where_the_kernel_looks_for_it() {
        let plain = socket_address(Ipv4Addr::new(10, 77, 0, 2));
        let bytes = plain.sa_data.map(|byte| byte.to_ne_bytes()[0]);
        assert_eq!(
            (i32::from(plain.sa_family), &bytes[..6]),
            (libc::AF_INET, [0, 0, 10, 77, 0, 2].as_slice())
        );
    }

    #[test]
    fn what_is_no_address_is_refused_and_the_system_of_a_test_is_left_alone() {
        let place = Place::new(Some("/nonexistent".into()));
        let address = Ipv4Addr::new(10, 77, 0, 2);
        assert!(set(&place, "52:54:01:12:34", address).unwrap_err().to_string().contains("mac"));
        set(&place, "52:54:01:12:34:56", address).unwrap();
        assert_eq!(device("52:54:01:ff:ff:ff"), None);
    }
}
