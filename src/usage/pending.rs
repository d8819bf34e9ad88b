//! What was taken from the meter and is not kept yet, added up per hour and per day.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{Counts, Day, Period, Row};
use crate::clock::Timestamp;

/// Most rows of all periods together. What is beyond, while the store is away for long, becomes [`Row::other`].
pub const MOST_PENDING: usize = 1 << 18;

/// Rows that are kept in one step, all or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The hour or day.
    pub period: Period,
    /// Each once.
    pub rows: Vec<(Arc<Row>, Counts)>,
}

/// Counts on their way to the store.
#[derive(Debug)]
pub struct Pending {
    periods: BTreeMap<Period, HashMap<Arc<Row>, Counts>>,
    rows: usize,
    most_rows: usize,
}

impl Pending {
    /// Holds at most about `most_rows` rows.
    pub fn new(most_rows: usize) -> Self {
        Self {
            periods: BTreeMap::new(),
            rows: 0,
            most_rows,
        }
    }

    /// Adds what was counted in an hour, to the hour and to its day. Answers whether both had room for a row of its own.
    pub fn add(&mut self, hour: u32, row: &Arc<Row>, counts: Counts) -> bool {
        let moment = Timestamp::from_micros(u64::from(hour) * 3_600_000_000);
        let day = Period::Day(Day::of(moment));
        let in_hour = self.add_to(Period::Hour(hour), row, counts);
        self.add_to(day, row, counts) && in_hour
    }

    fn add_to(&mut self, period: Period, row: &Arc<Row>, counts: Counts) -> bool {
        let full = self.rows >= self.most_rows;
        let rows = self.periods.entry(period).or_default();
        if let Some(known) = rows.get_mut(row) {
            known.add(counts);
            return true;
        }
        let row = match full {
            true => Arc::new(Row::other()),
            false => Arc::clone(row),
        };
        let before = rows.len();
        rows.entry(row).or_default().add(counts);
        self.rows += rows.len() - before;
        !full
    }

    /// Takes up to `most` rows of the first period.
    pub fn take(&mut self, most: usize) -> Option<Chunk> {
        let mut first = self.periods.first_entry()?;
        let period = *first.key();
        let left = first.get();
        let names: Vec<_> = left.keys().take(most).cloned().collect();
        let all = names.len() == left.len();
        let rows: Vec<_> = match all {
            true => first.remove().into_iter().collect(),
            false => {
                let take = |row| first.get_mut().remove_entry(&row);
                names.into_iter().filter_map(take).collect()
            }
        };
        self.rows -= rows.len();
        Some(Chunk { period, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_beyond_the_bound_are_added_up_and_their_hits_stay() {
        let mut pending = Pending::new(10);
        let counts = Counts {
            admitted: 1,
            ..Counts::default()
        };
        let fitted = (0..100).filter(|number: &u32| {
            let row = Arc::new(Row::from(["shop", &number.to_string(), "free", "x"]));
            pending.add(0, &row, counts)
        });
        assert_eq!(fitted.count(), 5, "each in an hour and a day");
        let (mut rows, mut hits) = (0, 0);
        while let Some(chunk) = pending.take(usize::MAX) {
            rows += chunk.rows.len();
            hits += chunk
                .rows
                .iter()
                .map(|(_, counts)| counts.admitted)
                .sum::<i64>();
        }
        assert_eq!((rows, hits, pending.rows), (12, 200, 0));
    }
}
