//! Writing an archive.

use std::io::{self, Read, Write};

use super::{BLOCK, checksum, field, padding};

/// What is collected before it is written.
const BUFFER_BYTES: usize = 1 << 20;

/// The name of an entry that holds the long name of the next one.
const LONG: &[u8] = b"././@LongLink";

/// What an archive says of an entry besides its name and content. The owner is always root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Time of modification in seconds since 1970.
    pub time: u64,
}

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W: Write> {
    output: W,
    buffer: Vec<u8>,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// An archive that begins where `output` stands. It needs no buffer of its own.
    pub fn new(output: W) -> Self {
        Self { output, buffer: Vec::with_capacity(BUFFER_BYTES), written: 0 }
    }

    /// Adds a file of exactly `size` bytes: content that is longer is cut off, and one that is
    /// shorter (the file shrank meanwhile) is filled up with zeros.
    ///
    /// # Errors
    /// If reading or writing fails.
    pub fn file(
        &mut self,
        name: &[u8],
        attributes: Attributes,
        size: u64,
        content: &mut dyn Read,
    ) -> io::Result<()> {
        self.header(b'0', name, b"", attributes, size)?;
        let mut rest = size;
        while rest > 0 {
            let count = self.read_some(content, rest)?;
            if count == 0 {
                self.zeros(rest)?;
                break;
            }
            rest -= count;
        }
        self.zeros(padding(size))
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// If writing fails.
    pub fn directory(&mut self, name: &[u8], attributes: Attributes) -> io::Result<()> {
        self.header(b'5', &[name, b"/"].concat(), b"", attributes, 0)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// If writing fails.
    pub fn link(&mut self, name: &[u8], target: &[u8], attributes: Attributes) -> io::Result<()> {
        self.header(b'2', name, target, attributes, 0)
    }

    /// Ends the archive. Returns the output and the archive's length.
    ///
    /// # Errors
    /// If writing fails.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.zeros(2 * BLOCK as u64)?;
        self.flush()?;
        Ok((self.output, self.written))
    }

    fn header(
        &mut self,
        kind: u8,
        name: &[u8],
        link: &[u8],
        attributes: Attributes,
        size: u64,
    ) -> io::Result<()> {
        if link.len() > field::LINK.1 {
            self.long(b'K', link)?;
        }
        if name.len() > field::NAME.1 {
            self.long(b'L', name)?;
        }
        self.block(&header(kind, name, link, attributes, size))
    }

    fn long(&mut self, kind: u8, text: &[u8]) -> io::Result<()> {
        let size = text.len() as u64 + 1;
        self.block(&header(kind, LONG, b"", Attributes { mode: 0, time: 0 }, size))?;
        self.put(text)?;
        self.zeros(1 + padding(size))
    }

    fn block(&mut self, block: &[u8; BLOCK]) -> io::Result<()> {
        self.put(block)
    }

    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        let mut rest = count;
        while rest > 0 {
            let now = self.room()?.min(usize::try_from(rest).unwrap_or(usize::MAX));
            self.buffer.resize(self.buffer.len() + now, 0);
            rest -= now as u64;
        }
        Ok(())
    }

    /// Reads once, right into the buffer.
    fn read_some(&mut self, content: &mut dyn Read, limit: u64) -> io::Result<u64> {
        let now = self.room()?.min(usize::try_from(limit).unwrap_or(usize::MAX));
        let from = self.buffer.len();
        self.buffer.resize(from + now, 0);
        let count = loop {
            match content.read(&mut self.buffer[from..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                count => break count,
            }
        };
        self.buffer.truncate(from + count.as_ref().map_or(0, |count| *count));
        Ok(count? as u64)
    }

    /// How much fits into the buffer; at least one byte.
    fn room(&mut self) -> io::Result<usize> {
        if self.buffer.len() == BUFFER_BYTES {
            self.flush()?;
        }
        Ok(BUFFER_BYTES - self.buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

fn header(kind: u8, name: &[u8], link: &[u8], attributes: Attributes, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |(at, length): (usize, usize), bytes: &[u8]| {
        let length = bytes.len().min(length);
        block[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(field::NAME, name);
    put(field::LINK, link);
    put(field::MODE, format!("{:07o}", attributes.mode & 0o7777).as_bytes());
    put(field::OWNER, b"0000000");
    put(field::GROUP, b"0000000");
    put(field::SIZE, &number(size));
    put(field::TIME, &number(attributes.time));
    // The magic of GNU, whose way of writing long names every tar knows, the smallest ones too.
    put(field::MAGIC, b"ustar  \0");
    block[field::KIND] = kind;
    let sum = format!("{:06o}\0 ", checksum(&block));
    let (at, length) = field::CHECKSUM;
    block[at..at + length].copy_from_slice(sum.as_bytes());
    block
}

/// Eleven octal digits, or the binary form for what needs more.
fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if value < 1 << 33 {
        field[..11].copy_from_slice(format!("{value:011o}").as_bytes());
    } else {
        field[0] = 0x80;
        field[4..].copy_from_slice(&value.to_be_bytes());
    }
    field
}
