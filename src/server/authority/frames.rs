//! The frames of a connection on their way in. Where its first request names no URI authority, every HEADERS frame is held until
//! it is whole, and the name in it becomes one; else nothing is held after that one.
//!
//! Source: RFC 9113, §3.4 (preface), §4.1 (frames), §6.2 (HEADERS).

use std::ops::Range;

use http::uri::Authority;

use super::hpack;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEAD: usize = 9;
const HEADERS: u8 = 0x1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_FIELDS: usize = 5;

/// Longest payload that h2 takes unless told.
const MOST: usize = 16 * 1024;

/// What is next of a connection.
#[derive(Debug)]
enum Next {
    /// The preface, of which this much has passed.
    Preface(usize),
    /// A frame's head, of which a part may be held.
    Head,
    /// This much of a payload that is of no interest.
    Payload(usize),
    /// This much of a HEADERS frame whose beginning is held.
    Headers(usize),
    /// Whatever it is, it passes.
    Anything,
}

/// Takes what came and gives what may be read of it. Holds one HEADERS frame at most.
#[derive(Debug)]
pub struct Frames {
    next: Next,
    held: Vec<u8>,
    ready: Vec<u8>,
    /// How much of `ready` has been given.
    given: usize,
    renamed: Option<Renamed>,
}

/// The name by which a client calls us, and the one that h2 reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renamed {
    /// As it came.
    pub from: Vec<u8>,
    /// An authority of the same length.
    pub to: Vec<u8>,
}

impl Frames {
    /// A connection of which nothing has come.
    pub fn new() -> Self {
        Self {
            next: Next::Preface(0),
            held: Vec::new(),
            ready: Vec::new(),
            given: 0,
            renamed: None,
        }
    }

    /// Takes what came.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = match self.next {
                Next::Preface(seen) => self.preface(seen, bytes),
                Next::Head => self.head(bytes),
                Next::Payload(left) => self.payload(left, bytes),
                Next::Headers(left) => self.headers(left, bytes),
                Next::Anything => {
                    self.ready.extend_from_slice(bytes);
                    bytes.len()
                }
            };
            bytes = &bytes[taken..];
        }
    }

    /// Nothing more comes: what is held passes as it is.
    pub fn end(&mut self) {
        self.ready.append(&mut self.held);
        self.next = Next::Anything;
    }

    /// What may be read by now.
    pub fn ready(&self) -> &[u8] {
        &self.ready[self.given..]
    }

    /// This much of what is ready has been read.
    pub fn advance(&mut self, read: usize) {
        self.given += read;
        if self.given == self.ready.len() {
            self.ready.clear();
            self.given = 0;
        }
    }

    /// Whether all has been given, and whatever comes now passes.
    pub fn is_done(&self) -> bool {
        matches!(self.next, Next::Anything) && self.ready.is_empty()
    }

    /// The first name that was changed.
    pub fn renamed(&self) -> Option<&Renamed> {
        self.renamed.as_ref()
    }

    fn preface(&mut self, seen: usize, bytes: &[u8]) -> usize {
        let rest = &PREFACE[seen..];
        let length = rest.len().min(bytes.len());
        self.next = match bytes[..length] == rest[..length] {
            true if length == rest.len() => Next::Head,
            true => Next::Preface(seen + length),
            // No HTTP/2.
            false => Next::Anything,
        };
        self.ready.extend_from_slice(&bytes[..length]);
        length
    }

    fn head(&mut self, bytes: &[u8]) -> usize {
        let length = (HEAD - self.held.len()).min(bytes.len());
        self.held.extend_from_slice(&bytes[..length]);
        if let [high, middle, low, kind, ..] = self.held[..]
            && self.held.len() == HEAD
        {
            let payload = u32::from_be_bytes([0, high, middle, low]) as usize;
            if kind == HEADERS && (1..=MOST).contains(&payload) {
                self.next = Next::Headers(payload);
            } else {
                self.ready.append(&mut self.held);
                self.next = after_payload(payload);
            }
        }
        length
    }

    fn payload(&mut self, left: usize, bytes: &[u8]) -> usize {
        let length = left.min(bytes.len());
        self.ready.extend_from_slice(&bytes[..length]);
        self.next = after_payload(left - length);
        length
    }

    fn headers(&mut self, left: usize, bytes: &[u8]) -> usize {
        let length = left.min(bytes.len());
        self.held.extend_from_slice(&bytes[..length]);
        self.next = Next::Headers(left - length);
        if length == left {
            let renamed = rename(&mut self.held);
            self.ready.append(&mut self.held);
            self.renamed = self.renamed.take().or(renamed);
            self.next = match self.renamed {
                Some(_) => Next::Head,
                None => Next::Anything,
            };
        }
        length
    }
}

fn after_payload(left: usize) -> Next {
    match left {
        0 => Next::Head,
        left => Next::Payload(left),
    }
}

/// Changes the name in a HEADERS frame, if it names us and not by a URI authority.
///
/// The other name has the same length, so the dynamic tables of both sides hold as much and forget alike. Source: RFC 7541, §4.1.
fn rename(frame: &mut Vec<u8>) -> Option<Renamed> {
    let block = block(frame)?;
    let literal = hpack::authority(&frame[block.clone()])?;
    if Authority::try_from(&literal.value[..]).is_ok() {
        return None;
    }
    let to = literal.value.iter().map(|octet| match octet {
        b'.' | b'_' => *octet,
        octet if octet.is_ascii_alphanumeric() => *octet,
        _ => b'-',
    });
    let to: Vec<u8> = to.collect();
    let mut string = Vec::with_capacity(to.len() + 3);
    hpack::write_string(&to, &mut string);
    let place = block.start + literal.place.start..block.start + literal.place.end;
    let payload = frame.len() - HEAD - place.len() + string.len();
    // An empty name has no other of its length, and h2 takes no longer frame.
    if to.is_empty() || payload > MOST {
        return None;
    }
    frame.splice(place, string);
    frame[..3].copy_from_slice(&(payload as u32).to_be_bytes()[1..]);
    Some(Renamed {
        from: literal.value,
        to,
    })
}

/// Where the fields are in a HEADERS frame, or the first part of them.
fn block(frame: &[u8]) -> Option<Range<usize>> {
    let flags = frame[4];
    let (mut start, mut end) = (HEAD, frame.len());
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(frame[HEAD]))?;
        start += 1;
    }
    if flags & PRIORITY != 0 {
        start += PRIORITY_FIELDS;
    }
    (start <= end).then_some(start..end)
}
