//! TAP devices: how a guest is put on a bridge of the host.
//!
//! The device is not persistent: it lives as long as a descriptor of it is open, which only QEMU
//! has. So there is nothing to remove, however QEMU ends.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// The device that makes TAP devices.
const TUN: &str = "/dev/net/tun";

/// Adds a device to a bridge (`SIOCBRADDIF` of linux/sockios.h, which libc lacks).
const ADD_TO_BRIDGE: libc::c_ulong = 0x89a2;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The system does not let us make one.
    #[error(
        "cannot make a TAP device with {TUN}; it needs the right to configure the network (CAP_NET_ADMIN)"
    )]
    Make(#[source] io::Error),
    /// There is no such device.
    #[error("there is no bridge {bridge} on this host; `ip link add {bridge} type bridge` makes one")]
    NoBridge {
        /// What was looked for.
        bridge: String,
    },
    /// There is one that guests cannot be plugged into.
    #[error("{bridge} is no bridge but another kind of network device")]
    NotBridge {
        /// What was looked for.
        bridge: String,
    },
    /// The bridge does not take it.
    #[error("cannot put the TAP device {device} on the bridge {bridge}")]
    Bridge {
        /// The device.
        device: String,
        /// The bridge.
        bridge: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl TapError {
    /// Whether it would be the same at the next try, unless somebody sets the host up otherwise.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Make(error) => {
                matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound)
            }
            Self::NoBridge { .. } | Self::NotBridge { .. } => true,
            Self::Bridge { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
        }
    }
}

/// Makes a TAP device on a bridge, up and ready.
///
/// # Errors
/// If the system refuses, or there is no such bridge.
#[expect(clippy::disallowed_methods, reason = "a device of the system")]
pub fn open(bridge: &str) -> Result<OwnedFd, TapError> {
    let tap = File::options().read(true).write(true).open(TUN).map_err(TapError::Make)?;
    let mut request = request("cbtap%d");
    let flags = libc::IFF_TAP | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    control(&tap, libc::TUNSETIFF, &mut request).map_err(TapError::Make)?;
    let device = name(&request);
    let failed = |source| TapError::Bridge { device: device.clone(), bridge: bridge.to_owned(), source };
    let socket = socket().map_err(failed)?;
    join(&socket, &device, bridge).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => TapError::NoBridge { bridge: bridge.to_owned() },
        Some(libc::EOPNOTSUPP) => TapError::NotBridge { bridge: bridge.to_owned() },
        _ => failed(error),
    })?;
    switch_on(&socket, &device).map_err(failed)?;
    Ok(tap.into())
}

/// Any socket does for requests about devices.
fn socket() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(socket)
}

fn join(socket: &OwnedFd, device: &str, bridge: &str) -> io::Result<()> {
    let mut own = request(device);
    control(socket, libc::SIOCGIFINDEX, &mut own)?;
    // SAFETY: the call before has filled in this member.
    let index = unsafe { own.ifr_ifru.ifru_ifindex };
    let mut joined = request(bridge);
    joined.ifr_ifru.ifru_ifindex = index;
    control(socket, ADD_TO_BRIDGE, &mut joined)
}

fn switch_on(socket: &OwnedFd, device: &str) -> io::Result<()> {
    let mut up = request(device);
    control(socket, libc::SIOCGIFFLAGS, &mut up)?;
    // SAFETY: the call before has filled in this member.
    let flags = unsafe { up.ifr_ifru.ifru_flags };
    up.ifr_ifru.ifru_flags = flags | libc::c_short::try_from(libc::IFF_UP).unwrap_or_default();
    control(socket, libc::SIOCSIFFLAGS, &mut up)
}

/// A request about a device. A name that is too long is cut, and then there is no such device.
fn request(device: &str) -> libc::ifreq {
    // SAFETY: the structure is made of integers and arrays of integers, for which all zeros are
    // valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let last = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..last].iter_mut().zip(device.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

fn name(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.map(|byte| byte.to_ne_bytes()[0]);
    CStr::from_bytes_until_nul(&bytes).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn control(fd: &impl std::os::fd::AsFd, code: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: all requests that are made here read and write exactly this structure.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), code, request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_bridge_is_named_and_no_device_stays() {
        let devices = || {
            std::fs::read_dir("/sys/class/net")
                .unwrap()
                .flatten()
                .map(|one| one.file_name())
                .filter(|name| name.to_string_lossy().starts_with("cbtap"))
                .count()
        };
        let before = devices();
        for (bridge, words) in
            [("no-such-bridge", "there is no bridge no-such-bridge"), ("lo", "lo is no bridge")]
        {
            let error = open(bridge).unwrap_err();
            assert!(error.to_string().contains(words) || matches!(error, TapError::Make(_)), "{error}");
        }
        assert_eq!(devices(), before);
    }
}
