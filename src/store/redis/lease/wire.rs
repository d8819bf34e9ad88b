//! Leases as `take.lua` reads them in its last argument, and what it tells of them. Pure.
//!
//! One flat MessagePack array of integers, one row for each bucket under each limit that says `lease`, whether it is leased from now
//! or not: number of the key from 1, place of the limit in `ARGV[2]` from 1, the lease's life in microseconds, most tokens to
//! take ahead, the number of leases that are told of; then for each of these 4 numbers: the lease's date, the start of its
//! period, tokens spent, tokens that come back. Such a limit stands in `ARGV[2]` once for each of its buckets, as the script
//! lowers its capacity by what is lent.
//!
//! The answer is, for each row: the tokens that are lent now; if any were asked for, those granted, the lease's date, and the
//! bucket: `tokens, fraction, at_us − now` or `used, start_us`.

use std::sync::Arc;

use super::{Ask, Grant};
use crate::{
    clock::micros,
    plan::{Lease, RuleLimit},
    store::redis::batch::Limits,
};

/// The rows of a batch.
#[derive(Debug, Default)]
pub struct Rows {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    /// Place of the key, from 0.
    key: usize,
    /// Of the limit.
    address: usize,
    /// Its place among the batch's, from 0.
    limit: usize,
    life_us: u64,
    /// Which of the batch's asks.
    ask: Option<usize>,
}

/// What the script told of one row.
#[derive(Debug)]
pub struct Told {
    /// Place of the key, from 0.
    pub key: usize,
    /// Tokens that are lent.
    pub lent: u64,
    /// Which of the batch's asks was answered, and how.
    pub grant: Option<(usize, Grant)>,
}

impl Rows {
    /// Whether no bucket of the batch may be leased from.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The place among `limits` of the limit of a key; it is added if it is new for this key.
    pub fn place<'t>(
        &mut self,
        key: usize,
        lease: Lease,
        limit: &'t Arc<RuleLimit>,
        limits: &mut Limits<'t>,
    ) -> usize {
        let address = Arc::as_ptr(limit).addr();
        let same = |row: &&Row| row.key == key && row.address == address;
        if let Some(row) = self.rows.iter().find(same) {
            return row.limit;
        }
        let place = limits.add(&limit.limit, 0);
        self.rows.push(Row {
            key,
            address,
            limit: place,
            life_us: micros(lease.life()),
            ask: None,
        });
        place
    }

    /// Adds what is asked of a key.
    pub fn ask<'t>(
        &mut self,
        key: usize,
        ask: usize,
        limit: &'t Arc<RuleLimit>,
        limits: &mut Limits<'t>,
    ) {
        let Some(lease) = limit.lease else {
            return;
        };
        let place = self.place(key, lease, limit, limits);
        let row = self
            .rows
            .iter_mut()
            .find(|row| row.key == key && row.limit == place);
        row.expect("its place was found").ask = Some(ask);
    }

    /// The numbers of that argument; `place` is where a limit stands in `ARGV[2]`.
    pub fn numbers(&self, asks: &[Ask], place: impl Fn(usize) -> u64) -> Vec<u64> {
        let mut numbers = Vec::with_capacity(5 * self.rows.len());
        for row in &self.rows {
            let ask = row.ask.map(|ask| &asks[ask]);
            numbers.extend([row.key as u64 + 1, place(row.limit), row.life_us]);
            numbers.push(ask.map_or(0, |ask| ask.portion));
            let settled = ask.map_or(&[][..], |ask| &ask.settled);
            numbers.push(settled.len() as u64);
            for settled in settled {
                numbers.extend([
                    settled.date_us,
                    settled.start_us,
                    settled.spent,
                    settled.back,
                ]);
            }
        }
        numbers
    }

    /// Reads the answers; `grant` reads that to one ask.
    ///
    /// # Errors
    /// Those of `lent` and `grant`.
    pub fn read<R, E>(
        &self,
        asks: &[Ask],
        reply: &mut R,
        lent: impl Fn(&mut R) -> Result<u64, E>,
        grant: impl Fn(&mut R, &Ask) -> Result<Grant, E>,
    ) -> Result<Vec<Told>, E> {
        let rows = self.rows.iter().map(|row| {
            let lent = lent(reply)?;
            let asked = row.ask.filter(|ask| asks[*ask].portion > 0);
            let grant = asked.map(|ask| Ok((ask, grant(reply, &asks[ask])?)));
            Ok(Told {
                key: row.key,
                lent,
                grant: grant.transpose()?,
            })
        });
        rows.collect()
    }
}
