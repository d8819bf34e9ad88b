//! What was taken from the meter and is not kept yet, added up per hour.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{Counts, Row};

/// Most rows of all hours together. What is beyond, while the store is away for long, becomes [`Row::other`].
pub const MOST_PENDING: usize = 1 << 18;

/// Rows that are kept in one step, all or none, for their hour and its day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Hours since 1970.
    pub hour: u32,
    /// Each once.
    pub rows: Vec<(Arc<Row>, Counts)>,
}

/// Counts on their way to the store.
#[derive(Debug)]
pub struct Pending {
    hours: BTreeMap<u32, HashMap<Arc<Row>, Counts>>,
    rows: usize,
    most_rows: usize,
}

impl Pending {
    /// Holds at most about `most_rows` rows.
    pub fn new(most_rows: usize) -> Self {
        Self {
            hours: BTreeMap::new(),
            rows: 0,
            most_rows,
        }
    }

    /// Adds what was counted in an hour. Answers whether there was room for a row of its own.
    pub fn add(&mut self, hour: u32, row: &Arc<Row>, counts: Counts) -> bool {
        let full = self.rows >= self.most_rows;
        let rows = self.hours.entry(hour).or_default();
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

    /// Takes up to `most` rows of the first hour.
    pub fn take(&mut self, most: usize) -> Option<Chunk> {
        let mut first = self.hours.first_entry()?;
        let hour = *first.key();
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
        Some(Chunk { hour, rows })
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
        assert_eq!(fitted.count(), 10);
        let (mut rows, mut hits) = (0, 0);
        while let Some(chunk) = pending.take(usize::MAX) {
            rows += chunk.rows.len();
            hits += chunk
                .rows
                .iter()
                .map(|(_, counts)| counts.admitted)
                .sum::<i64>();
        }
        assert_eq!((rows, hits, pending.rows), (11, 100, 0));
    }
}
