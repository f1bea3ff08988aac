//! Reading an archive that anybody may have written.

use std::io::{self, BufReader, Read, Seek};

use super::{BLOCK, checksum, field, padding};

/// What is read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Longest name or target of a link: Linux takes no longer path.
const NAME_MAX: u64 = 4096;

/// Longest extended header; those of real archives have a few hundred bytes.
const EXTENDED_MAX: u64 = 64 << 10;

/// Headers in a row that belong to one entry; real archives have two or three.
const EXTRA_HEADERS_MAX: usize = 8;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The file that holds it cannot be read.
    #[error("cannot read the archive at byte {position}")]
    Io {
        /// Where in the archive.
        position: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ends before its end mark.
    #[error("the archive is cut off at byte {position}")]
    CutOff {
        /// Where in the archive.
        position: u64,
    },
    /// It is no archive.
    #[error("the archive is damaged at byte {position}: {why}")]
    Damaged {
        /// Where in the archive.
        position: u64,
        /// What is wrong.
        why: &'static str,
    },
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, and where it leads.
    Link(Vec<u8>),
    /// Anything else, by the format's letter: a hard link, a device, a FIFO, a sparse file.
    Other(u8),
}

/// One entry. Nothing in it has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, without a slash at the end.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Time of modification in seconds since 1970; 0 for what cannot be one.
    pub time: u64,
    /// Where its content begins in the archive.
    pub position: u64,
    /// Length of its content.
    pub size: u64,
}

/// Reads an archive entry by entry. As [`Read`] it gives the content of the last one.
#[derive(Debug)]
pub struct Reader<R> {
    input: BufReader<R>,
    position: u64,
    length: u64,
    /// Content of the entry that was not read yet.
    content: u64,
    /// What follows it up to the next block.
    padding: u64,
}

/// What the headers before an entry say of it.
#[derive(Default)]
struct Extra {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read + Seek> Reader<R> {
    /// An archive that begins where `input` stands, of at most `length` bytes.
    pub fn new(input: R, length: u64) -> Self {
        let input = BufReader::with_capacity(BUFFER_BYTES, input);
        Self { input, position: 0, length, content: 0, padding: 0 }
    }

    /// Goes to the next entry, over whatever of the last one was not read. `None` at the end mark.
    ///
    /// # Errors
    /// If the archive cannot be read, is cut off or damaged. It should not be read on then.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip()?;
        let mut extra = Extra::default();
        for _ in 0..=EXTRA_HEADERS_MAX {
            let at = self.position;
            let damaged = |why| TarError::Damaged { position: at, why };
            let mut block = [0; BLOCK];
            self.bytes(&mut block)?;
            if block == [0; BLOCK] {
                return Ok(None);
            }
            if octal(&block, field::CHECKSUM) != Some(checksum(&block)) {
                return Err(damaged("a header's checksum is wrong"));
            }
            let size = number(&block, field::SIZE).ok_or_else(|| damaged("a size is no number"))?;
            match block[field::KIND] {
                b'L' => extra.name = Some(self.text(size)?),
                b'K' => extra.link = Some(self.text(size)?),
                b'x' => self.extended(size, &mut extra)?,
                b'g' => {
                    self.open(size)?;
                    self.skip()?;
                }
                kind => return self.entry(&block, kind, size, extra).map(Some),
            }
        }
        Err(TarError::Damaged { position: self.position, why: "an entry has too many headers" })
    }

    fn entry(&mut self, block: &[u8; BLOCK], letter: u8, size: u64, extra: Extra) -> Result<Entry, TarError> {
        let mut name = extra.name.unwrap_or_else(|| own_name(block));
        let is_directory = letter == b'5' || (letter == 0 && name.ends_with(b"/"));
        while name.len() > 1 && name.ends_with(b"/") {
            name.pop();
        }
        let (kind, has_content) = match letter {
            _ if is_directory => (Kind::Directory, false),
            0 | b'0' | b'7' => (Kind::File, true),
            b'2' => (Kind::Link(extra.link.unwrap_or_else(|| text(block, field::LINK).to_vec())), false),
            // Links, devices and FIFOs have no content, whatever their size says.
            b'1'..=b'6' => (Kind::Other(letter), false),
            _ => (Kind::Other(letter), true),
        };
        let size = if has_content { extra.size.unwrap_or(size) } else { 0 };
        self.open(size)?;
        Ok(Entry {
            name,
            kind,
            mode: u32::try_from(octal(block, field::MODE).unwrap_or(0) & 0o7777).unwrap_or(0),
            time: number(block, field::TIME).unwrap_or(0),
            position: self.position,
            size,
        })
    }

    /// Begins content of this size; the whole of it must be there.
    fn open(&mut self, size: u64) -> Result<(), TarError> {
        let padding = padding(size);
        let needed = size.checked_add(padding).filter(|needed| *needed <= self.length - self.position);
        if needed.is_none() {
            return Err(TarError::CutOff { position: self.length });
        }
        (self.content, self.padding) = (size, padding);
        Ok(())
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let rest = self.content + self.padding;
        let by = i64::try_from(rest).map_err(io::Error::other);
        let moved = by.and_then(|by| self.input.seek_relative(by));
        moved.map_err(|source| TarError::Io { position: self.position, source })?;
        self.position += rest;
        (self.content, self.padding) = (0, 0);
        Ok(())
    }

    fn bytes(&mut self, bytes: &mut [u8]) -> Result<(), TarError> {
        let position = self.position;
        if bytes.len() as u64 > self.length - position {
            return Err(TarError::CutOff { position });
        }
        self.input.read_exact(bytes).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => TarError::CutOff { position },
            _ => TarError::Io { position, source },
        })?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn short(&mut self, size: u64, max: u64) -> Result<Vec<u8>, TarError> {
        let position = self.position;
        let size = usize::try_from(size).ok().filter(|_| size <= max);
        let size = size.ok_or(TarError::Damaged { position, why: "a name is longer than a path can be" })?;
        let mut bytes = vec![0; size];
        self.bytes(&mut bytes)?;
        self.padding = padding(size as u64);
        if self.padding > self.length - self.position {
            return Err(TarError::CutOff { position: self.length });
        }
        self.skip()?;
        Ok(bytes)
    }

    fn text(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut bytes = self.short(size, NAME_MAX + 1)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        bytes.truncate(end);
        Ok(bytes)
    }

    /// Records of the form `LENGTH KEY=VALUE\n`.
    fn extended(&mut self, size: u64, extra: &mut Extra) -> Result<(), TarError> {
        let position = self.position;
        let bytes = self.short(size, EXTENDED_MAX)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (record, later) = record(rest)
                .ok_or(TarError::Damaged { position, why: "an extended header cannot be read" })?;
            rest = later;
            match record {
                (b"path", value) => extra.name = Some(value.to_vec()),
                (b"linkpath", value) => extra.link = Some(value.to_vec()),
                (b"size", value) => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    extra.size =
                        Some(size.ok_or(TarError::Damaged { position, why: "a size is no number" })?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl<R: Read + Seek> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        self.content -= count as u64;
        Ok(count)
    }
}

type Record<'a> = ((&'a [u8], &'a [u8]), &'a [u8]);

fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let space = bytes.iter().take(8).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((&record[..equals], &record[equals + 1..]), &bytes[length..]))
}

fn text(block: &[u8; BLOCK], (at, length): (usize, usize)) -> &[u8] {
    let field = &block[at..at + length];
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(length);
    &field[..end]
}

fn own_name(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = text(block, field::NAME);
    let (at, _) = field::MAGIC;
    // GNU's archives keep something else where POSIX has the beginning of a long name.
    let prefix = if &block[at..at + 6] == b"ustar\0" { text(block, field::PREFIX) } else { b"" };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

fn octal(block: &[u8; BLOCK], (at, length): (usize, usize)) -> Option<u64> {
    let field = std::str::from_utf8(&block[at..at + length]).ok()?;
    let digits = field.trim_matches([' ', '\0']);
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// Octal digits, or the binary form for big numbers.
fn number(block: &[u8; BLOCK], place: (usize, usize)) -> Option<u64> {
    let (at, length) = place;
    if block[at] & 0x80 == 0 {
        return octal(block, place);
    }
    let (high, low) = block[at..at + length].split_at(length - 8);
    let positive = high[0] == 0x80 && high[1..].iter().all(|byte| *byte == 0);
    positive.then(|| low.try_into().map(u64::from_be_bytes).ok()).flatten()
}

#[cfg(test)]
mod tests;
