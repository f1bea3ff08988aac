//! The command line of a guest.
