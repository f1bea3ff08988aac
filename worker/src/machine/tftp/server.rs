//! The sockets of a server, and what it may touch.
