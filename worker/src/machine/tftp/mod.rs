//! A TFTP server for one guest: it can get what was put out for it and put what is expected, and reaches nothing else.

pub mod packet;
pub mod server;
pub mod transfer;
