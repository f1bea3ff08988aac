//! The packets of TFTP (RFC 1350) with options (RFC 2347 to 2349, 7440).

use std::io::Write as _;

/// Smallest block that an option may ask for.
pub const BLOCK_MIN: u16 = 8;
/// Largest block: what fits into a UDP packet.
pub const BLOCK_MAX: u16 = 65464;
/// Size of blocks when no option says otherwise.
pub const BLOCK_DEFAULT: u16 = 512;
/// Bytes in front of the data of a block.
pub const HEADER: usize = 4;
/// A request is not longer than this.
pub const REQUEST_MAX: usize = 512;

/// Not a packet of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a TFTP packet: {0}")]
pub struct Malformed(pub &'static str);

/// Which way a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the server.
    Get,
    /// To the server.
    Put,
}

/// The codes of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// See the message.
    Undefined,
    /// There is no such file.
    NotFound,
    /// It may not be read or written.
    Access,
    /// The disk is full, or the file is larger than allowed.
    Full,
    /// A packet that makes no sense here.
    Illegal,
    /// The file is there already.
    Exists,
}

impl Code {
    /// The number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Code::Undefined => 0,
            Code::NotFound => 1,
            Code::Access => 2,
            Code::Full => 3,
            Code::Illegal => 4,
            Code::Exists => 6,
        }
    }
}

/// The options that are known. Values outside of what the RFCs allow count as not given, as the
/// RFCs want it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Size of blocks; more than fits into a packet counts as [`BLOCK_MAX`].
    pub blksize: Option<u16>,
    /// Size of the file.
    pub tsize: Option<u64>,
    /// Seconds after which a packet is sent again.
    pub timeout: Option<u8>,
    /// Blocks that are sent before an acknowledgement.
    pub windowsize: Option<u16>,
}

impl Options {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over one pair. The first of several counts.
    fn take(&mut self, name: &[u8], value: &[u8]) {
        let Some(value) = number(value) else { return };
        if name.eq_ignore_ascii_case(b"blksize") && value >= u64::from(BLOCK_MIN) {
            self.blksize.get_or_insert(u16::try_from(value).map_or(BLOCK_MAX, |size| size.min(BLOCK_MAX)));
        } else if name.eq_ignore_ascii_case(b"tsize") {
            self.tsize.get_or_insert(value);
        } else if name.eq_ignore_ascii_case(b"timeout") && value > 0 {
            self.timeout = self.timeout.or(u8::try_from(value).ok());
        } else if name.eq_ignore_ascii_case(b"windowsize") && value > 0 {
            self.windowsize = self.windowsize.or(u16::try_from(value).ok());
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let pairs = [
            ("blksize", self.blksize.map(u64::from)),
            ("tsize", self.tsize),
            ("timeout", self.timeout.map(u64::from)),
            ("windowsize", self.windowsize.map(u64::from)),
        ];
        for (name, value) in pairs {
            if let Some(value) = value {
                // Writing to a vector cannot fail.
                let _written = write!(out, "{name}\0{value}\0");
            }
        }
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if digits { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

/// A packet. Texts and data are parts of the received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A client asks for a transfer.
    Request {
        /// Which way.
        way: Way,
        /// The name of the file, whatever bytes that is.
        name: &'a [u8],
        /// `octet` in any case, or something old.
        mode: &'a [u8],
        /// What it would like.
        options: Options,
    },
    /// A block.
    Data {
        /// The last 16 bits of its number.
        block: u16,
        /// Its content.
        data: &'a [u8],
    },
    /// Everything up to this block is there.
    Ack {
        /// The last 16 bits of its number.
        block: u16,
    },
    /// The end of a transfer.
    Error {
        /// What kind; see [`Code`].
        code: u16,
        /// In words.
        message: &'a [u8],
    },
    /// What the server grants of the options.
    Oack {
        /// These.
        options: Options,
    },
}

impl<'a> Packet<'a> {
    /// Reads a packet.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (kind, rest) = bytes.split_first_chunk::<2>().ok_or(Malformed("it is too short"))?;
        match u16::from_be_bytes(*kind) {
            1 => request(Way::Get, rest),
            2 => request(Way::Put, rest),
            3 => numbered(rest).map(|(block, data)| Packet::Data { block, data }),
            4 => numbered(rest).map(|(block, _)| Packet::Ack { block }),
            5 => numbered(rest).map(|(code, text)| Packet::Error { code, message: until_nul(text) }),
            6 => options(rest).map(|options| Packet::Oack { options }),
            _ => Err(Malformed("there is no such kind")),
        }
    }

    /// Appends the packet to `out`. A name with a NUL cannot be written and would be read as a
    /// shorter one.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut words = |kind: u16, second: Option<u16>| {
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(second.map(u16::to_be_bytes).as_ref().map_or(&[], |bytes| bytes));
        };
        match *self {
            Packet::Request { way, name, mode, options } => {
                words(if way == Way::Get { 1 } else { 2 }, None);
                for text in [name, mode] {
                    out.extend_from_slice(text);
                    out.push(0);
                }
                options.write(out);
            }
            Packet::Data { block, data } => {
                words(3, Some(block));
                out.extend_from_slice(data);
            }
            Packet::Ack { block } => words(4, Some(block)),
            Packet::Error { code, message } => {
                words(5, Some(code));
                out.extend_from_slice(message);
                out.push(0);
            }
            Packet::Oack { options } => {
                words(6, None);
                options.write(out);
            }
        }
    }
}

/// What stands before the content of a block.
pub fn data_header(block: u16) -> [u8; HEADER] {
    let [high, low] = block.to_be_bytes();
    [0, 3, high, low]
}

/// An acknowledgement.
pub fn ack(block: u16) -> [u8; HEADER] {
    let [high, low] = block.to_be_bytes();
    [0, 4, high, low]
}

fn request(way: Way, bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    let (name, rest) = text(bytes).ok_or(Malformed("its name has no end"))?;
    let (mode, rest) = text(rest).ok_or(Malformed("its mode has no end"))?;
    Ok(Packet::Request { way, name, mode, options: options(rest)? })
}

fn options(mut rest: &[u8]) -> Result<Options, Malformed> {
    let mut options = Options::default();
    // Some clients fill up with zeros.
    while rest.iter().any(|byte| *byte != 0) {
        let (name, after) = text(rest).ok_or(Malformed("an option has no end"))?;
        let (value, after) = text(after).ok_or(Malformed("an option has no value"))?;
        options.take(name, value);
        rest = after;
    }
    Ok(options)
}

/// Splits at the first NUL.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    text(bytes).map_or(bytes, |(text, _)| text)
}

fn numbered(bytes: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    let (number, rest) = bytes.split_first_chunk::<2>().ok_or(Malformed("it is too short"))?;
    Ok((u16::from_be_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options() -> impl Strategy<Value = Options> {
        let blksize = prop::option::of(BLOCK_MIN..=BLOCK_MAX);
        let (tsize, timeout) = (any::<Option<u64>>(), prop::option::of(1_u8..));
        (blksize, tsize, timeout, prop::option::of(1_u16..))
            .prop_map(|(blksize, tsize, timeout, windowsize)| Options { blksize, tsize, timeout, windowsize })
    }

    fn written(packet: &Packet<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        packet.write(&mut bytes);
        bytes
    }

    #[test]
    fn a_request_is_read_as_other_programs_write_it() {
        let bytes = b"\0\x02log\0OCTET\0BlkSize\x0065464\0tsize\x000\0x\0y\0blksize\x009\0";
        let options = Options { blksize: Some(65464), tsize: Some(0), ..Options::default() };
        let expected = Packet::Request { way: Way::Put, name: b"log", mode: b"OCTET", options };
        assert_eq!(Packet::parse(bytes), Ok(expected));
    }

    #[test]
    fn values_out_of_range_count_as_not_given() {
        for (pair, expected) in [
            ("blksize\x007\0", None),
            ("blksize\x00-8\0", None),
            ("blksize\x00+8\0", None),
            ("blksize\0\0", None),
            ("blksize\x008\0", Some(8)),
            ("blksize\x0065465\0", Some(BLOCK_MAX)),
            ("blksize\x0099999999999\0", Some(BLOCK_MAX)),
            ("blksize\x0099999999999999999999999\0", None),
        ] {
            let bytes = [b"\0\x06", pair.as_bytes()].concat();
            let expected = Options { blksize: expected, ..Options::default() };
            assert_eq!(Packet::parse(&bytes), Ok(Packet::Oack { options: expected }), "{pair:?}");
        }
        let bytes = b"\0\x06timeout\x000\0timeout\x00256\0windowsize\x000\0windowsize\x0065536\0";
        assert_eq!(Packet::parse(bytes), Ok(Packet::Oack { options: Options::default() }));
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        for bytes in [
            &b""[..],
            b"\0",
            b"\0\0",
            b"\0\x07ab",
            b"\x01\x01a\0octet\0",
            b"\0\x01",
            b"\0\x01name",
            b"\0\x01name\0octet",
            b"\0\x01name\0octet\0blksize\0",
            b"\0\x01name\0octet\0blksize\x009",
            b"\0\x03\0",
            b"\0\x04",
        ] {
            assert!(Packet::parse(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn packets_survive_the_way(
            name in "[^\0]{0,60}", put in any::<bool>(), options in options(),
            block in any::<u16>(), data in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let way = if put { Way::Put } else { Way::Get };
            for packet in [
                Packet::Request { way, name: name.as_bytes(), mode: b"octet", options },
                Packet::Data { block, data: &data },
                Packet::Ack { block },
                Packet::Error { code: block, message: name.as_bytes() },
                Packet::Oack { options },
            ] {
                let bytes = written(&packet);
                prop_assert_eq!(Packet::parse(&bytes), Ok(packet));
            }
            prop_assert_eq!(&written(&Packet::Ack { block })[..], &ack(block)[..]);
            prop_assert_eq!(&written(&Packet::Data { block, data: b"" })[..], &data_header(block)[..]);
        }

        #[test]
        fn no_bytes_make_it_panic(kind in 0_u8..8, bytes in prop::collection::vec(any::<u8>(), 0..80), text in "[a-z0-9\0]{0,60}") {
            Packet::parse(&bytes).ok();
            Packet::parse(&[&[0, kind][..], &bytes].concat()).ok();
            Packet::parse(&[&[0, kind][..], text.as_bytes()].concat()).ok();
        }
    }
}
