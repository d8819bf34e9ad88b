//! Names of buckets: which text stands for a rule, and which for the values that a request brings.
//!
//! No two rules, and no two lists of values, ever get the same name. A secret never gets into one.

use std::net::Ipv6Addr;

use sha2::{Digest as _, Sha256};

use super::rule::Subject;

/// Values longer than this many bytes are named by their SHA-256.
const LONGEST: usize = 128;

/// What of a rule's element a request fills in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variable {
    /// Nothing: the element stands for one value, or its values share a bucket.
    Nothing,
    /// The value; the element has only a key or a network.
    Value,
    /// What of the joined text `key_value` follows so many bytes of literal key.
    Joined(u32),
}

/// Adds a value. An IPv6 address counts as its /64, an IPv4-mapped one as IPv4.
pub fn push_value(subject: &mut Subject, value: &str) {
    match address(value) {
        Some(address) => match address.to_ipv4_mapped() {
            Some(v4) => push_plain(subject, &v4.to_string()),
            None => push_network(subject, address),
        },
        None => push_text(subject, value),
    }
}

/// Adds a text that may have any length.
pub fn push_text(subject: &mut Subject, text: &str) {
    match text.len() > LONGEST {
        true => push_hashed(subject, text),
        false => push_plain(subject, text),
    }
}

/// Adds a value by its SHA-256 only, for what may be a secret.
pub fn push_hashed(subject: &mut Subject, value: &str) {
    subject.extend_from_slice(b"|#");
    push_hex(subject, &Sha256::digest(value));
}

/// Adds the mark of an entry whose joined text equals a bare key: the reference keeps it apart from all values of that key.
pub fn push_mark(subject: &mut Subject) {
    subject.extend_from_slice(b"|=");
}

/// Adds a text as it is, with its length.
pub fn push_plain(subject: &mut Subject, text: &str) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut length = text.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (length % 10) as u8;
        length /= 10;
        if length == 0 {
            break;
        }
    }
    subject.push(b'|');
    subject.extend_from_slice(&digits[at..]);
    subject.push(b':');
    subject.extend_from_slice(text.as_bytes());
}

fn push_network(subject: &mut Subject, address: Ipv6Addr) {
    subject.extend_from_slice(b"|v6:");
    push_hex(subject, &address.octets()[..8]);
}

fn push_hex(subject: &mut Subject, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        subject.push(DIGITS[usize::from(byte >> 4)]);
        subject.push(DIGITS[usize::from(byte & 15)]);
    }
}

fn address(value: &str) -> Option<Ipv6Addr> {
    // The longest text form of an address has 45 bytes.
    let may_be = value.len() <= 45 && value.as_bytes().contains(&b':');
    may_be.then(|| value.parse().ok()).flatten()
}

/// A text in which none of the signs stands that separate the parts of a bucket's name.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '%' | '/' | '#' | '|' | '=' | '@' => out.push_str(&format!("%{:02X}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("%{:02X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}
