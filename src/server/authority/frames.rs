//! The frames of a connection on their way in: a HEADERS frame that names us by no URI authority gets another name. All others
//! pass where they were read, but for the beginning of one that is cut off by the end of a read.
//!
//! Source: RFC 9113, §3.4 (preface), §4.1 (frames), §6.2 (HEADERS).

use std::{
    mem,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

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

/// Octets of a name in the log at most.
const MOST_TOLD: usize = 128;

/// What is next of a connection.
#[derive(Debug)]
enum Next {
    /// The preface, of which this much has passed.
    Preface(usize),
    /// A frame.
    Frame,
    /// This much of a payload that is of no interest.
    Payload(usize),
    /// No HTTP/2: whatever it is, it passes.
    Anything,
}

/// Takes what came and gives what may be read of it.
#[derive(Debug)]
pub struct Frames {
    next: Next,
    /// What came from the first octet on that could not pass where it was: a read and a HEADERS frame at most.
    held: Vec<u8>,
    /// How much of it may be read by now.
    ready: usize,
    /// Whether a name of this connection has been changed.
    renamed: bool,
}

impl Frames {
    /// A connection of which nothing has come.
    pub fn new() -> Self {
        Self {
            next: Next::Preface(0),
            held: Vec::new(),
            ready: 0,
            renamed: false,
        }
    }

    /// Takes what came, once nothing is ready; the length of its beginning that passes where it is. The rest is ready then, or held.
    pub fn push(&mut self, came: &[u8]) -> usize {
        let passed = match self.held.is_empty() {
            true => self.next.pass(came),
            false => 0,
        };
        if passed < came.len() {
            self.held.extend_from_slice(&came[passed..]);
            self.release();
        }
        passed
    }

    /// Nothing more comes: what is held passes as it is.
    pub fn end(&mut self) {
        self.ready = self.held.len();
    }

    /// What may be read by now.
    pub fn ready(&self) -> &[u8] {
        &self.held[..self.ready]
    }

    /// This much of what is ready has been read.
    pub fn advance(&mut self, read: usize) {
        self.held.drain(..read);
        self.ready -= read;
    }

    fn release(&mut self) {
        loop {
            self.ready += self.next.pass(&self.held[self.ready..]);
            let Some(Frame::Headers(frame)) = Frame::at(&self.held[self.ready..]) else {
                return;
            };
            let Some(renamed) = rename(frame) else {
                return;
            };
            if !mem::replace(&mut self.renamed, true) {
                renamed.tell();
            }
            let end = self.ready + frame.len();
            let length = renamed.frame.len();
            self.held.splice(self.ready..end, renamed.frame);
            self.ready += length;
        }
    }
}

impl Next {
    /// How much of `bytes` passes as it is: up to a frame that is not whole, or is to be changed.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while !rest.is_empty() {
            let passed = match self {
                Self::Preface(seen) => {
                    let due = &PREFACE[*seen..];
                    let length = due.len().min(rest.len());
                    *self = match rest[..length] == due[..length] {
                        true if length == due.len() => Self::Frame,
                        true => Self::Preface(*seen + length),
                        false => Self::Anything,
                    };
                    length
                }
                Self::Frame => match Frame::at(rest) {
                    None => break,
                    Some(Frame::Headers(frame)) if rename(frame).is_some() => break,
                    Some(Frame::Headers(frame)) => frame.len(),
                    Some(Frame::Other(0)) => HEAD,
                    Some(Frame::Other(payload)) => {
                        *self = Self::Payload(payload);
                        HEAD
                    }
                },
                Self::Payload(left) if *left > rest.len() => {
                    *left -= rest.len();
                    rest.len()
                }
                Self::Payload(left) => {
                    let length = *left;
                    *self = Self::Frame;
                    length
                }
                Self::Anything => rest.len(),
            };
            rest = &rest[passed..];
        }
        bytes.len() - rest.len()
    }
}

enum Frame<'b> {
    /// All of a HEADERS frame.
    Headers(&'b [u8]),
    /// The length of another one's payload.
    Other(usize),
}

impl<'b> Frame<'b> {
    /// The one at the beginning of `bytes`; none if it is not known yet what it says.
    fn at(bytes: &'b [u8]) -> Option<Self> {
        let [high, middle, low, kind, ..] = *bytes.get(..HEAD)? else {
            return None;
        };
        match u32::from_be_bytes([0, high, middle, low]) as usize {
            payload @ 1..=MOST if kind == HEADERS => bytes.get(..HEAD + payload).map(Self::Headers),
            payload => Some(Self::Other(payload)),
        }
    }
}

/// A HEADERS frame with another name for us.
struct Renamed {
    /// All of it.
    frame: Vec<u8>,
    from: Vec<u8>,
    to: Vec<u8>,
}

/// What takes the place of a HEADERS frame that names us by no URI authority.
///
/// The other name has the same length, so the dynamic tables of both sides hold as much and forget alike. Source: RFC 7541, §4.1.
fn rename(frame: &[u8]) -> Option<Renamed> {
    let block = block(frame)?;
    let hpack::Literal { place, value: from } = hpack::authority(&frame[block.clone()])?;
    if from.is_empty() || Authority::try_from(&from[..]).is_ok() {
        return None;
    }
    let to = from.iter().map(|octet| match octet {
        b'.' | b'_' => *octet,
        octet if octet.is_ascii_alphanumeric() => *octet,
        _ => b'-',
    });
    let to: Vec<u8> = to.collect();
    let mut other = frame[..block.start + place.start].to_vec();
    hpack::write_string(&to, &mut other);
    other.extend_from_slice(&frame[block.start + place.end..]);
    let payload = other.len() - HEAD;
    other[..3].copy_from_slice(&(payload as u32).to_be_bytes()[1..]);
    (payload <= MOST).then_some(Renamed {
        frame: other,
        from,
        to,
    })
}

impl Renamed {
    /// Says it once aloud, and then to those who look for it.
    fn tell(&self) {
        static SAID: AtomicBool = AtomicBool::new(false);
        let text = |name: &[u8]| name[..name.len().min(MOST_TOLD)].escape_ascii().to_string();
        let (from, to) = (text(&self.from), text(&self.to));
        if SAID.swap(true, Ordering::Relaxed) {
            tracing::debug!("a client calls this service `{from}`, read as `{to}`");
        } else {
            tracing::warn!(
                "a client calls this service `{from}`, which is no URI authority: its calls are answered as if it said `{to}`. \
                 Envoy says another name if its grpc_service has one as `authority`"
            );
        }
    }
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
