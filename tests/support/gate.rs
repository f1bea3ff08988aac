//! Where guests wait until a test lets them go on.

use std::net::TcpListener;
use std::os::fd::AsFd as _;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::machines::Site;

/// A port of `host1`, for guests with a network of QEMU's own.
#[derive(Debug)]
pub struct Gate {
    listener: TcpListener,
}

impl Gate {
    /// One that is closed.
    pub fn new(site: &Site) -> Self {
        let network = std::fs::File::open(site.network()).expect("the network of host1");
        let listen = move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("to enter it");
            TcpListener::bind("127.0.0.1:0").expect("a free port")
        };
        // A thread of its own, since it stays in that network.
        Self { listener: std::thread::spawn(listen).join().expect("a port") }
    }

    /// A shell line that ends when this is open.
    pub fn line(&self) -> String {
        format!("nc 10.0.2.2 {} </dev/null", self.listener.local_addr().expect("its address").port())
    }

    /// Opens it for good: whoever is connected, and whoever will be, is hung up on.
    pub fn open(self) {
        std::thread::spawn(move || self.listener.incoming().for_each(drop));
    }
}
