//! The tar format, as far as it is needed here: files, directories and symbolic links with long
//! names.
//!
//! Written by hand since the archive of a guest is not to be trusted: the reader holds a name at
//! most, whatever an archive claims, and never makes a file itself.

mod read;
mod walk;
mod write;

pub use read::{Entry, Kind, Reader, TarError};
pub use walk::Walk;
pub use write::{Attributes, Writer};

/// The unit of the format.
pub const BLOCK: usize = 512;

/// Where things lie in a header: offset and length.
mod field {
    pub(crate) const NAME: (usize, usize) = (0, 100);
    pub(crate) const MODE: (usize, usize) = (100, 8);
    pub(crate) const OWNER: (usize, usize) = (108, 8);
    pub(crate) const GROUP: (usize, usize) = (116, 8);
    pub(crate) const SIZE: (usize, usize) = (124, 12);
    pub(crate) const TIME: (usize, usize) = (136, 12);
    pub(crate) const CHECKSUM: (usize, usize) = (148, 8);
    pub(crate) const KIND: usize = 156;
    pub(crate) const LINK: (usize, usize) = (157, 100);
    pub(crate) const MAGIC: (usize, usize) = (257, 8);
    pub(crate) const PREFIX: (usize, usize) = (345, 155);
}

/// The sum of a header's bytes, its own field counted as spaces.
fn checksum(header: &[u8; BLOCK]) -> u64 {
    let (at, length) = field::CHECKSUM;
    let all: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = header[at..at + length].iter().map(|byte| u64::from(*byte)).sum();
    all - own + u64::from(b' ') * length as u64
}

/// Bytes from the end of something so long to the next block.
fn padding(length: u64) -> u64 {
    length.wrapping_neg() % BLOCK as u64
}
