//! Whether a packet comes from the guest.
//!
//! QEMU's user network has a UDP socket of its own for every port that the guest sends from. So the
//! sender of a packet is looked up among the sockets of this computer, and must be one of QEMU's.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

/// Decides whether the sender of a packet may use a server. It answers why not.
pub type Check = Box<dyn FnMut(SocketAddrV4) -> Result<(), Stranger> + Send>;

/// Why a sender is not the guest.
#[derive(Debug, thiserror::Error)]
pub enum Stranger {
    /// Nobody was named yet.
    #[error("no guest has been started yet")]
    NoGuest,
    /// No socket has this port, or it is gone again.
    #[error("no socket has this port")]
    NoSocket,
    /// Another process has it.
    #[error("the socket is not the guest's")]
    Other,
    /// It cannot be found out.
    #[error("cannot read {}", path.display())]
    Proc {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A check that lets one process through, and no descendant of it.
pub fn owned_by(pid: u32) -> Check {
    Box::new(move |from| {
        let mut inodes = Vec::new();
        for table in ["/proc/self/net/udp", "/proc/self/net/udp6"] {
            match crewboss_ground::kernel_text(table) {
                Ok(text) => inodes.extend(senders(&text, from)),
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Stranger::Proc { path: table.into(), source }),
            }
        }
        if inodes.is_empty() {
            return Err(Stranger::NoSocket);
        }
        // Several can share a port: then any of them may have sent it.
        let open = sockets(pid)?;
        if inodes.iter().all(|inode| open.contains(inode)) { Ok(()) } else { Err(Stranger::Other) }
    })
}

/// The sockets that a process has open.
fn sockets(pid: u32) -> Result<Vec<u64>, Stranger> {
    let path = PathBuf::from(format!("/proc/{pid}/fd"));
    let entries = fs::read_dir(&path).map_err(|source| Stranger::Proc { path, source })?;
    let target = |entry: io::Result<fs::DirEntry>| fs::read_link(entry.ok()?.path()).ok();
    Ok(entries.filter_map(target).filter_map(|target| socket(target.to_str()?)).collect())
}

/// The inode in the target of a link like `socket:[1234]`.
fn socket(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The inodes of the sockets in a table of the kernel (`/proc/net/udp` or `/proc/net/udp6`) that
/// can have sent a packet from an IPv4 address. A line that cannot be read counts as none.
pub fn senders(table: &str, from: SocketAddrV4) -> Vec<u64> {
    // The first line is the head.
    table.lines().skip(1).filter_map(|line| entry(line, from)).collect()
}

fn entry(line: &str, from: SocketAddrV4) -> Option<u64> {
    // sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...
    let mut words = line.split_ascii_whitespace();
    let (address, port) = words.nth(1)?.split_once(':')?;
    let same_port = u16::from_str_radix(port, 16).ok()? == from.port();
    let inode = words.nth(7)?.parse().ok()?;
    (same_port && sends_as(address, *from.ip())?).then_some(inode)
}

/// Whether a socket that is bound to this address can send from that one: it is the same, or the
/// socket is bound to any.
fn sends_as(address: &str, from: Ipv4Addr) -> Option<bool> {
    let local = match address.len() {
        8 => group(address)?,
        32 => {
            let groups: Option<Vec<_>> = (0..4).map(|at| group(address.get(at * 8..at * 8 + 8)?)).collect();
            match groups?.as_slice() {
                [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0] | [0, 0, 0xff, 0xff], last] => *last,
                _ => return Some(false),
            }
        }
        _ => return None,
    };
    // `::1` ends in 0.0.0.1, which is nobody's address.
    Some(local == [0; 4] || local == from.octets())
}

/// Four bytes of an address: a number as it lies in memory.
fn group(text: &str) -> Option<[u8; 4]> {
    u32::from_str_radix(text, 16).ok().map(u32::to_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

    const HEAD: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n";

    fn line(local: &str, inode: u64) -> String {
        format!(
            "  123: {local} 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 {inode} 2 0000000000000000 0\n"
        )
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_senders_of_a_port_are_found_in_the_kernels_table() {
        let table = [
            HEAD.to_owned(),
            line("0100007F:1F90", 1),
            line("00000000:1F90", 2),
            line("0100007F:1F91", 3),
            line("0200000A:1F90", 4),
            line("00000000000000000000000000000000:1F90", 5),
            line("0000000000000000FFFF00000100007F:1F90", 6),
            line("0000000000000000FFFF00000200007F:1F90", 7),
            line("00000000000000000000000001000000:1F90", 8),
            line("000080FE00000000000000000100007F:1F90", 9),
            "nonsense\n".to_owned(),
            line("0100007F", 10),
            line("100007F:1F90", 11),
        ];
        assert_eq!(senders(&table.concat(), "127.0.0.1:8080".parse().unwrap()), [1, 2, 5, 6]);
        assert_eq!(senders(&table.concat(), "127.0.0.1:8082".parse().unwrap()), [0_u64; 0]);
    }

    /// The check must name this process, and deny process 1.
    fn is_ours(socket: &UdpSocket) {
        let port = socket.local_addr().unwrap().port();
        let from = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        owned_by(std::process::id())(from).unwrap();
        assert!(matches!(owned_by(1)(from), Err(Stranger::Other | Stranger::Proc { .. })));
    }

    #[test]
    fn sockets_of_every_kind_are_known_as_ours() {
        let target = UdpSocket::bind("127.0.0.1:0").unwrap();
        for local in ["127.0.0.1:0", "0.0.0.0:0"] {
            is_ours(&UdpSocket::bind(local).unwrap());
        }
        // Needs IPv6, which a container may lack.
        if let Ok(mapped) = UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))) {
            let to =
                SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), target.local_addr().unwrap().port()));
            mapped.send_to(b"x", to).unwrap();
            is_ours(&mapped);
            let mapped =
                UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0))).unwrap();
            is_ours(&mapped);
        }
    }

    #[test]
    fn a_port_that_nobody_has_is_nobodys() {
        let from = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let from = SocketAddrV4::new(Ipv4Addr::LOCALHOST, from.port());
        assert!(matches!(owned_by(std::process::id())(from), Err(Stranger::NoSocket)));
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic(text in "([0-9A-F: ]{0,60}\n){0,5}", any in ".{0,200}") {
            let from = "127.0.0.1:8080".parse().unwrap();
            senders(&text, from);
            senders(&any, from);
        }
    }
}
