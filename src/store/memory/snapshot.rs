//! The buckets of a memory store as a file: compact, versioned, and used whole or not at all.
//!
//! After [`MAGIC`] and the number of the format, four bytes, come blocks: a letter that says what it holds, the length of that
//! in four bytes, its CRC-32 in four, and MessagePack integers one after the other. All numbers of four bytes are big-endian; the
//! CRC is also about the block's number, letter and length, so that no block is lost, doubled or moved unnoticed.
//! - `H`, the first one: when writing began, in microseconds since the epoch, and the two halves of the key that buckets' names
//!   are hashed with. It is what makes the file a secret.
//! - `B`, any number of them: their number of buckets, then for each the halves of its hash; 1, tokens, fraction, denominator and the last
//!   refill of a token bucket, or 2, the number of slots and for each its number, less that of the one before, and its hits,
//!   or 3, what is used of a period and its start, or 4, the refusals that count towards a penalty, the first of them, the last
//!   penalty's length and its end; then when it is full. Moments count from that in `H`.
//! - `E`, the last one: the number of buckets in all `B`.
//!
//! A bucket that changes while the file is written may stand there twice: the later one counts.

use std::{
    io::{self, BufReader, Read, Write},
    time::Duration,
};

use parking_lot::Mutex;
use rmp::{
    decode::{bytes::Bytes, read_int},
    encode::{write_sint, write_uint},
};

use super::{Entry, Id, MemoryStore, Shard};
use crate::{
    bucket::{Bucket, Spent, Strikes, Tokens, Window},
    clock::Timestamp,
    limit::{EXACT, SLIDING_SLOTS},
    store::key::{adopt_hash_key, hash_key},
};

/// How every such file begins.
pub const MAGIC: &[u8; 8] = b"TGBUCKET";

/// The format that this build writes, and the only one it reads.
pub const FORMAT: u32 = 1;

/// Bytes after which a block ends; a shard is locked for no longer than it takes to fill one.
const BLOCK: usize = 16 * 1024;

/// Most buckets that are looked at for one block: full ones fill none.
const LOOKED_AT: usize = 1_024;

/// Longest block that is read.
const LONGEST_BLOCK: u32 = 1 << 20;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Part-used buckets.
    pub buckets: u64,
    /// Length of the file.
    pub bytes: u64,
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Buckets that had not filled up meanwhile.
    pub buckets: u64,
    /// How long ago it was written.
    pub age: Duration,
    /// How long it will be until it was written, by a clock that has gone back since.
    pub ahead: Duration,
}

/// Why a file was not used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It could not be read; nothing is known of what is in it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is no file of buckets")]
    Foreign,
    /// Another build wrote it.
    #[error("it has format {found}, and this build reads {FORMAT}")]
    Format {
        /// Its format.
        found: u32,
    },
    /// It was cut off or changed.
    #[error("it is damaged: block {block} {what}")]
    Damaged {
        /// Counted from the head, 0.
        block: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// This process has named buckets already, and the file's names are others.
    #[error("it is of another process, and this one has begun to decide")]
    OtherNames,
}

/// Writes the part-used buckets of `store`, each as it is at some moment meanwhile. Requests go on: a shard is locked for a
/// block at a time.
///
/// # Errors
/// Those of `into`.
pub fn write(store: &MemoryStore, into: impl Write) -> io::Result<Written> {
    let now = store.clock.now();
    let mut file = Writer {
        into,
        blocks: 0,
        bytes: 0,
    };
    file.raw(MAGIC)?;
    file.raw(&FORMAT.to_be_bytes())?;
    let [k0, k1] = hash_key();
    let mut head = Vec::new();
    for number in [now.as_micros(), k0, k1] {
        put(&mut head, number);
    }
    file.block(b'H', &head)?;
    let (mut all, mut rows) = (0, Vec::with_capacity(2 * BLOCK));
    for shard in &store.shards {
        // From the end on: what a forgotten bucket leaves is filled with the last one, which has been written by then.
        let mut rest = usize::MAX;
        while rest > 0 {
            rows.clear();
            let buckets;
            (rest, buckets) = encode_rows(shard, rest, now, &mut rows);
            if buckets > 0 {
                let mut block = Vec::with_capacity(rows.len() + 9);
                put(&mut block, buckets);
                block.extend_from_slice(&rows);
                file.block(b'B', &block)?;
                all += buckets;
            }
        }
    }
    let mut end = Vec::new();
    put(&mut end, all);
    file.block(b'E', &end)?;
    file.into.flush()?;
    Ok(Written {
        buckets: all,
        bytes: file.bytes,
    })
}

/// Puts what a file holds into `store`, but for buckets that are full by now. After an error `store` may hold a part of it and
/// must not be used.
///
/// # Errors
/// [`SnapshotError`], for any file that is not whole and of this format.
pub fn read(from: impl Read, store: &MemoryStore) -> Result<Loaded, SnapshotError> {
    let now = store.clock.now();
    let mut file = Reader {
        from: BufReader::with_capacity(4 * BLOCK, from),
        blocks: 0,
    };
    let mut start = [0; MAGIC.len() + 4];
    match file.from.read_exact(&mut start) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(SnapshotError::Foreign);
        }
        read => read?,
    }
    let (magic, format) = start.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(SnapshotError::Foreign);
    }
    let found = u32::from_be_bytes(format.try_into().expect("four bytes are left"));
    if found != FORMAT {
        return Err(SnapshotError::Format { found });
    }
    let (letter, head) = file.block()?;
    let mut head = Numbers(Bytes::new(&head));
    let head = (|| Some((head.next()?, [head.next()?, head.next()?])))();
    let Some((written_at, key)) = head.filter(|_| letter == b'H') else {
        return Err(file.damaged("is no head"));
    };
    if !adopt_hash_key(key) {
        return Err(SnapshotError::OtherNames);
    }
    let written_at = Timestamp::from_micros(written_at);
    let (mut all, mut kept) = (0, 0);
    loop {
        let (letter, block) = file.block()?;
        let mut numbers = Numbers(Bytes::new(&block));
        let count: u64 = numbers.next().ok_or_else(|| file.damaged("is empty"))?;
        match letter {
            b'B' => {}
            b'E' if count == all => break,
            _ => return Err(file.damaged("is not the one that follows")),
        }
        for _ in 0..count {
            let (id, entry) = numbers
                .row(written_at)
                .ok_or_else(|| file.damaged("holds what is no bucket"))?;
            if entry.full_at > now {
                let shard = &store.shards[id.shard(store.shards.len())];
                store.put(&mut shard.lock(), id, entry, now);
                kept += 1;
            }
        }
        all += count;
    }
    match file.from.read(&mut [0])? {
        0 => Ok(Loaded {
            buckets: kept,
            age: now.since(written_at),
            ahead: written_at.since(now),
        }),
        _ => Err(file.damaged("is followed by something else")),
    }
}

/// Writes rows of `shard` from its place `rest` down; returns where it has come to, and how many it has written.
fn encode_rows(
    shard: &Mutex<Shard>,
    rest: usize,
    now: Timestamp,
    rows: &mut Vec<u8>,
) -> (usize, u64) {
    let shard = shard.lock();
    let from = rest.min(shard.buckets.len());
    let (mut at, mut written) = (from, 0);
    while at > 0 && from - at < LOOKED_AT && rows.len() < BLOCK {
        at -= 1;
        let (id, entry) = shard.buckets.get_index(at).expect("below the length");
        if entry.full_at > now {
            encode_row(rows, *id, entry, now);
            written += 1;
        }
    }
    (at, written)
}

fn encode_row(rows: &mut Vec<u8>, id: Id, entry: &Entry, now: Timestamp) {
    put(rows, id.0[0]);
    put(rows, id.0[1]);
    match &entry.bucket {
        Bucket::Tokens(tokens) => {
            put(rows, 1);
            put_signed(rows, tokens.tokens);
            put(rows, tokens.fraction);
            put(rows, tokens.denominator);
            put_signed(rows, from_now(tokens.at_us, now));
        }
        Bucket::Window(window) => {
            put(rows, 2);
            put(rows, window.slots.len() as u64);
            let mut before = 0;
            for (slot, hits) in &window.slots {
                put(rows, slot - before);
                put(rows, *hits);
                before = *slot;
            }
        }
        Bucket::Spent(spent) => {
            put(rows, 3);
            put(rows, spent.used);
            put_signed(rows, from_now(spent.start_us, now));
        }
        Bucket::Penalty(strikes) => {
            put(rows, 4);
            put(rows, strikes.strikes.into());
            put_signed(rows, from_now(strikes.since_us, now));
            put(rows, strikes.last_us);
            put_signed(rows, from_now(strikes.until_us, now));
        }
    }
    put_signed(rows, from_now(entry.full_at.as_micros(), now));
}

/// Any moment as the way to it from `now`, which is a short number for most; [`Numbers::moment`] goes it.
fn from_now(us: u64, now: Timestamp) -> i64 {
    us.wrapping_sub(now.as_micros()) as i64
}

fn put(bytes: &mut Vec<u8>, number: u64) {
    write_uint(bytes, number).expect("a vector takes every byte");
}

fn put_signed(bytes: &mut Vec<u8>, number: i64) {
    write_sint(bytes, number).expect("a vector takes every byte");
}

fn checksum(number: u64, letter: u8, length: u32, content: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&number.to_be_bytes());
    crc.update(&[letter]);
    crc.update(&length.to_be_bytes());
    crc.update(content);
    crc.finalize()
}

struct Writer<W> {
    into: W,
    blocks: u64,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.into.write_all(bytes)
    }

    fn block(&mut self, letter: u8, content: &[u8]) -> io::Result<()> {
        let length = u32::try_from(content.len()).map_err(io::Error::other)?;
        let crc = checksum(self.blocks, letter, length, content);
        self.blocks += 1;
        self.raw(&[letter])?;
        self.raw(&length.to_be_bytes())?;
        self.raw(&crc.to_be_bytes())?;
        self.raw(content)
    }
}

struct Reader<R> {
    from: BufReader<R>,
    /// That were read.
    blocks: u64,
}

impl<R: Read> Reader<R> {
    /// The next block whose checksum fits: its letter and its content.
    fn block(&mut self) -> Result<(u8, Vec<u8>), SnapshotError> {
        let mut head = [0; 9];
        self.exactly(&mut head)?;
        let number = |at: usize| {
            let bytes = head[at..at + 4].try_into().expect("four bytes");
            u32::from_be_bytes(bytes)
        };
        let (letter, length, crc) = (head[0], number(1), number(5));
        if length > LONGEST_BLOCK {
            return Err(self.damaged("is too long"));
        }
        let mut content = vec![0; length as usize];
        self.exactly(&mut content)?;
        if checksum(self.blocks, letter, length, &content) != crc {
            return Err(self.damaged("has another checksum"));
        }
        self.blocks += 1;
        Ok((letter, content))
    }

    fn exactly(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        match self.from.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.damaged("is cut off"))
            }
            read => Ok(read?),
        }
    }

    fn damaged(&self, what: &'static str) -> SnapshotError {
        SnapshotError::Damaged {
            block: self.blocks,
            what,
        }
    }
}

/// The integers of a block. None where there is none, or one that cannot be.
struct Numbers<'a>(Bytes<'a>);

impl Numbers<'_> {
    fn next(&mut self) -> Option<u64> {
        read_int(&mut self.0).ok()
    }

    fn signed(&mut self) -> Option<i64> {
        read_int(&mut self.0).ok()
    }

    fn moment(&mut self, written_at: Timestamp) -> Option<u64> {
        Some(written_at.as_micros().wrapping_add(self.signed()? as u64))
    }

    fn row(&mut self, written_at: Timestamp) -> Option<(Id, Entry)> {
        let id = Id([self.next()?, self.next()?]);
        let bucket = match self.next()? {
            1 => Bucket::Tokens(self.tokens(written_at)?),
            2 => Bucket::Window(self.window()?),
            3 => Bucket::Spent(Spent {
                used: self.next().filter(|used| u128::from(*used) < EXACT)?,
                start_us: self.moment(written_at)?,
            }),
            // Whether the penalty runs is told when the bucket is brought up to a moment.
            4 => Bucket::Penalty(Strikes {
                strikes: u32::try_from(self.next()?).ok()?,
                running: false,
                since_us: self.moment(written_at)?,
                last_us: self.next()?,
                until_us: self.moment(written_at)?,
            }),
            _ => return None,
        };
        let full_at = Timestamp::from_micros(self.moment(written_at)?);
        Some((id, Entry { bucket, full_at }))
    }

    fn tokens(&mut self, written_at: Timestamp) -> Option<Tokens> {
        let tokens = Tokens {
            tokens: self.signed()?,
            fraction: self.next()?,
            denominator: self.next()?,
            at_us: self.moment(written_at)?,
        };
        // Debt may be deeper than any bucket, where answers wait for their tokens.
        let can_be = tokens.tokens <= i64::from(u32::MAX)
            && u128::from(tokens.tokens.unsigned_abs()) < EXACT
            && tokens.fraction < tokens.denominator;
        can_be.then_some(tokens)
    }

    fn window(&mut self) -> Option<Window> {
        let count = self.next().filter(|count| *count <= SLIDING_SLOTS + 1)?;
        let mut before = 0_u64;
        let slots = (0..count).map(|place| {
            let step = self.next().filter(|step| *step > 0 || place == 0)?;
            before = before.checked_add(step)?;
            let hits = self.next()?;
            (1..=2 * u64::from(u32::MAX))
                .contains(&hits)
                .then_some((before, hits))
        });
        let slots: Vec<_> = slots.collect::<Option<_>>()?;
        Some(Window { slots })
    }
}
