//! Usage as people ask for it: of which keys, in which days, by hour, day or month.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{Counts, Day, Period, Row, UsageError, UsageStore};
use crate::{clock::Timestamp, plan::Plans};

/// What to report. Days are of UTC, and both ends are among them.
#[derive(Debug, Clone)]
pub struct UsageQuery {
    /// The first day.
    pub from: Day,
    /// The last day.
    pub to: Day,
    /// The length of a period.
    pub by: By,
    /// Only of the key of that id.
    pub key: Option<String>,
    /// Only what was used while the key was in that tier.
    pub tier: Option<String>,
    /// Only of keys of that owner.
    pub owner: Option<String>,
}

/// The length of a report's periods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A calendar month, or the part of it that was asked for.
    Month,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The first day.
    pub from: String,
    /// The last day.
    pub to: String,
    /// The length of a period.
    pub by: By,
    /// In the order of period, domain, key, tier and limit.
    pub rows: Vec<ReportRow>,
}

/// The use of one limit in one period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReportRow {
    /// `2026-11-30T05`, `2026-11-30` or `2026-11`.
    pub period: String,
    /// The domain.
    pub domain: String,
    /// The API key's id; none for all requests without a known key.
    pub key: Option<String>,
    /// Whose key it is now.
    pub owner: Option<String>,
    /// The tier that it had then.
    pub tier: Option<String>,
    /// As [`Row::limit`].
    pub limit: String,
    /// Hits that passed.
    pub admitted: i64,
    /// Hits that this limit refused.
    pub refused: i64,
    /// Hits of `admitted` that were beyond the limit.
    pub overage: i64,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The days are in the wrong order.
    #[error("the days end, {to}, before they begin, {from}")]
    Days {
        /// The first day.
        from: Day,
        /// The last day.
        to: Day,
    },
    /// More than anybody keeps.
    #[error("{days} days are too many: at most {most} are reported together by {by}")]
    TooManyDays {
        /// How many.
        days: usize,
        /// The most.
        most: usize,
        /// The length of their periods.
        by: By,
    },
    /// More than the asker can take.
    #[error(
        "the report has more than {most} rows: ask for fewer days, for longer periods, or for one key, tier or owner"
    )]
    TooManyRows {
        /// The most.
        most: usize,
    },
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] UsageError),
}

impl By {
    /// Most days of a report: ten years, and of hours more than are kept.
    fn most_days(self) -> usize {
        match self {
            Self::Hour => 62,
            Self::Day | Self::Month => 3_660,
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        })
    }
}

/// Reads what `query` asks for, at most `most` rows. Whose a key is, `plans` say.
///
/// # Errors
/// [`ReportError`].
pub async fn report(
    store: &mut UsageStore,
    plans: &Plans,
    query: &UsageQuery,
    most: usize,
) -> Result<Report, ReportError> {
    let (from, to, by) = (query.from, query.to, query.by);
    let most_days = by.most_days();
    match from.through(to).count() {
        0 => return Err(ReportError::Days { from, to }),
        days if days > most_days => {
            return Err(ReportError::TooManyDays {
                days,
                most: most_days,
                by,
            });
        }
        _ => {}
    }
    let mut sums: BTreeMap<(String, Row), Counts> = BTreeMap::new();
    for day in from.through(to) {
        let periods: Vec<Period> = match query.by {
            By::Hour => day.hours().collect(),
            By::Day | By::Month => vec![Period::Day(day)],
        };
        for period in periods {
            let name = match query.by {
                By::Month => day.month(),
                By::Hour | By::Day => period.to_string(),
            };
            for (row, counts) in store.read(period).await? {
                if query.wants(&row, plans) {
                    sums.entry((name.clone(), row)).or_default().add(counts);
                }
            }
            if sums.len() > most {
                return Err(ReportError::TooManyRows { most });
            }
        }
    }
    let rows = sums.into_iter();
    Ok(Report {
        from: from.to_string(),
        to: to.to_string(),
        by: query.by,
        rows: rows
            .map(|((period, row), counts)| ReportRow::new(period, row, counts, plans))
            .collect(),
    })
}

impl UsageQuery {
    /// The days that are named, else those of the month so far, as of `now`.
    pub fn days(from: Option<Day>, to: Option<Day>, now: Timestamp) -> (Day, Day) {
        let today = Day::of(now);
        let to = to.unwrap_or_else(|| from.map_or(today, |from| from.max(today)));
        (from.unwrap_or_else(|| to.month_begin()), to)
    }

    fn wants(&self, row: &Row, plans: &Plans) -> bool {
        let fits = |wanted: &Option<String>, text: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == text)
        };
        fits(&self.key, &row.key)
            && fits(&self.tier, &row.tier)
            && (self.owner.is_none() || self.owner.as_deref() == owner(plans, &row.key))
    }
}

impl ReportRow {
    fn new(period: String, row: Row, counts: Counts, plans: &Plans) -> Self {
        Self {
            period,
            owner: owner(plans, &row.key).map(str::to_owned),
            domain: row.domain,
            key: some(row.key),
            tier: some(row.tier),
            limit: row.limit,
            admitted: counts.admitted,
            refused: counts.refused,
            overage: counts.overage,
        }
    }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn owner<'p>(plans: &'p Plans, key: &str) -> Option<&'p str> {
    match plans.api_key_of_id(key) {
        Some(key) => key.owner.as_deref(),
        None => plans.stored_keys().get(key)?.owner(),
    }
}
