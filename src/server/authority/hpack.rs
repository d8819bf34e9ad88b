//! Finds the literal of `:authority` in a block of header fields and writes another in its place. Knows no dynamic table: strings
//! are skipped by their lengths.
//!
//! Source: RFC 7541, §5 (integers, strings) and §6 (representations).

use std::ops::Range;

use octets::Octets;

const NAME: &[u8] = b":authority";
const NAME_IN_HUFFMAN: &[u8] = b"\xb8\x3b\x53\x39\xec\x32\x7d\x7f";

/// Where the static table has that name.
const NAME_INDEX: usize = 1;

/// Bit of a string's first octet: its octets are Huffman codes.
const HUFFMAN: u8 = 0x80;

/// The value of an `:authority` that stands in a block as a literal.
#[derive(Debug, PartialEq, Eq)]
pub struct Literal {
    /// Where its string is, length and all.
    pub place: Range<usize>,
    /// What it says.
    pub value: Vec<u8>,
}

/// The first `:authority` of `block` with a literal value. None, too, where the block is cut off before it, or is no block.
///
/// A name by an index of the dynamic table is not seen: encoders take the static one.
pub fn authority(block: &[u8]) -> Option<Literal> {
    let mut rest = block;
    while let Some(first) = rest.first() {
        let name_bits = match first {
            // Indexed, and a change of the table's size.
            0x80.. => {
                integer(&mut rest, 7)?;
                continue;
            }
            0x20..0x40 => {
                integer(&mut rest, 5)?;
                continue;
            }
            // Literals: to be indexed, or not to be.
            0x40..0x80 => 6,
            0x00..0x20 => 4,
        };
        let named = match integer(&mut rest, name_bits)? {
            0 => string(&mut rest)?.is_name(),
            index => index == NAME_INDEX,
        };
        let start = block.len() - rest.len();
        let value = string(&mut rest)?;
        if named {
            return Some(Literal {
                place: start..block.len() - rest.len(),
                value: value.decoded()?,
            });
        }
    }
    None
}

/// Writes `text` as a string without Huffman codes.
pub fn write_string(text: &[u8], into: &mut Vec<u8>) {
    const MOST: usize = 0x7f;
    if text.len() < MOST {
        into.push(text.len() as u8);
    } else {
        into.push(MOST as u8);
        let mut rest = text.len() - MOST;
        while rest >= 0x80 {
            into.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        into.push(rest as u8);
    }
    into.extend_from_slice(text);
}

/// An integer whose first octet has `bits` for it.
fn integer(from: &mut &[u8], bits: u32) -> Option<usize> {
    let most = (1 << bits) - 1;
    let mut value = usize::from(octet(from)?) & most;
    if value < most {
        return Some(value);
    }
    // Four octets more are plenty: a block has 16 KiB.
    for shift in [0, 7, 14, 21] {
        let octet = usize::from(octet(from)?);
        value += (octet & 0x7f) << shift;
        if octet < 0x80 {
            return Some(value);
        }
    }
    None
}

fn octet(from: &mut &[u8]) -> Option<u8> {
    from.split_off_first().copied()
}

struct Text<'b> {
    octets: &'b [u8],
    huffman: bool,
}

fn string<'b>(from: &mut &'b [u8]) -> Option<Text<'b>> {
    let huffman = from.first()? & HUFFMAN != 0;
    let length = integer(from, 7)?;
    let octets = from.split_off(..length)?;
    Some(Text { octets, huffman })
}

impl Text<'_> {
    fn is_name(&self) -> bool {
        self.octets == if self.huffman { NAME_IN_HUFFMAN } else { NAME }
    }

    /// What it says, if its codes are some.
    fn decoded(&self) -> Option<Vec<u8>> {
        if self.huffman {
            Octets::with_slice(self.octets).get_huffman_decoded().ok()
        } else {
            Some(self.octets.to_vec())
        }
    }
}
