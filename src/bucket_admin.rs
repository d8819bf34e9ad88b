//! Buckets looked at, filled and given to by hand, for a customer who must be helped now. Whoever does it is in the audit log.
//!
//! What a bucket gets, it gets as a refund: at most up to a full bucket, in one step for all limits that the descriptors meet,
//! by the store that decides requests. Making it full ends a penalty, too. Replicas that remember a refusal let the next request
//! through within a second.

use std::{
    fmt, iter,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use smallvec::SmallVec;

use crate::{
    bucket::Balance,
    descriptor::{Descriptor, Hits, Query, QueryError},
    explain::Question,
    home::{Actor, AuditLog, Entry, HomeError},
    limiter::Limiter,
    plan::{Charge, Domain, Match, OnStoreError, Plans, Role, RuleLimit},
    store::{BucketKey, Item, Take, Taken},
};

/// Longest wait for the store.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often a store that does not answer is asked again what may be asked twice.
const TRIES: usize = 5;

/// What to do with buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Look.
    Show,
    /// Make them full.
    Reset,
    /// Give so many tokens.
    Grant(u64),
}

impl Deed {
    fn action(self) -> &'static str {
        match self {
            Self::Show => "buckets.show",
            Self::Reset => "buckets.reset",
            Self::Grant(_) => "buckets.grant",
        }
    }

    fn hits(self) -> Hits {
        match self {
            Self::Show => Hits::Take(0),
            Self::Reset => Hits::Give(u64::MAX),
            Self::Grant(hits) => Hits::Give(hits),
        }
    }

    /// Whether doing it twice is as good as once.
    fn may_be_repeated(self) -> bool {
        !matches!(self, Self::Grant(_))
    }
}

/// What one bucket holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BucketView {
    /// The descriptor, `key=value`; of API keys the id.
    pub descriptor: String,
    /// Path of the rule.
    pub rule: String,
    /// The limit, as a plan says it.
    pub limit: String,
    /// Hits that a full bucket lets through.
    pub capacity: u32,
    /// Hits that it let through before; below zero is debt.
    pub before: i64,
    /// Hits that it lets through now.
    pub remaining: i64,
    /// Seconds until it is full.
    pub reset_after_seconds: f64,
    /// Seconds for which a penalty refuses whatever there is; 0 if none runs.
    pub penalised_seconds: f64,
}

/// Why nothing was done, or it is not known whether it was.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// No such request would be judged.
    #[error(transparent)]
    Question(#[from] QueryError),
    /// No plan has that domain.
    #[error("no plan has the domain `{domain}`")]
    NoDomain {
        /// Its name.
        domain: String,
    },
    /// The descriptors meet no limit.
    #[error(
        "no limit counts these descriptors, so there is no bucket: `tollgate explain` says which rule they meet"
    )]
    NoBucket,
    /// Nothing to give.
    #[error("say how many hits to grant: at least 1")]
    NoHits,
    /// The store did not say.
    #[error(
        "the store did not answer: what was asked may have been done or not; look with `tollgate buckets show` before you try again"
    )]
    Unsure,
    /// It was done, but not noted.
    #[error("done, but the audit log could not be written: {0}")]
    Audit(HomeError),
}

/// Does it.
#[derive(Debug)]
pub struct BucketAdmin {
    limiter: Arc<Limiter>,
    audit: Option<Arc<AuditLog>>,
}

/// A bucket that the descriptors name.
struct Named {
    descriptor: String,
    rule: String,
    limit: Arc<RuleLimit>,
    key: BucketKey,
    /// What counts refusals, if the limit has a penalty.
    guard: Option<(Arc<RuleLimit>, BucketKey)>,
}

/// Of one bucket: what it holds, and how long a penalty runs.
type Held = (Balance, Duration);

impl BucketAdmin {
    /// Buckets of the store of `limiter`, by the plans in force. Without a log to keep, only log lines tell who did what.
    pub fn new(limiter: Arc<Limiter>, audit: Option<Arc<AuditLog>>) -> Self {
        Self { limiter, audit }
    }

    /// Does it to all buckets that the descriptors of `question` name, or to none; answers what they hold now.
    ///
    /// # Errors
    /// [`BucketError`].
    pub async fn act(
        &self,
        by: &Actor,
        question: &Question,
        deed: Deed,
    ) -> Result<Vec<BucketView>, BucketError> {
        if deed == Deed::Grant(0) {
            return Err(BucketError::NoHits);
        }
        let query = Query::from(question);
        query.check()?;
        let plans = self.limiter.plans().load_full();
        let Some(domain) = plans.domain(&query.domain) else {
            return Err(BucketError::NoDomain {
                domain: query.domain,
            });
        };
        let named = named(domain, &plans, &query);
        if named.is_empty() {
            return Err(BucketError::NoBucket);
        }
        let before = self.apply(&named, Deed::Show).await?;
        let after = match deed {
            Deed::Show => before.clone(),
            _ => self.apply(&named, deed).await?,
        };
        let views: Vec<_> = named
            .iter()
            .zip(before.iter().zip(&after))
            .map(|(named, ((before, _), (after, penalty)))| BucketView {
                descriptor: named.descriptor.clone(),
                rule: named.rule.clone(),
                limit: named.limit.limit.to_string(),
                capacity: named.limit.limit.capacity(),
                before: before.left,
                remaining: after.left,
                reset_after_seconds: after.reset_after.as_secs_f64(),
                penalised_seconds: penalty.as_secs_f64(),
            })
            .collect();
        if deed != Deed::Show {
            self.note(by, &query.domain, deed, &views).await?;
        }
        Ok(views)
    }

    async fn apply(&self, named: &[Named], deed: Deed) -> Result<Vec<Held>, BucketError> {
        for _ in 0..TRIES {
            let take = Take {
                items: named.iter().flat_map(|named| named.items(deed)).collect(),
                dry: deed == Deed::Show,
            };
            let deadline = Instant::now() + PATIENCE;
            let taken = self.limiter.store().take(take, deadline).await;
            match taken {
                Ok(taken) if !taken.degraded => return Ok(held(named, taken)),
                _ if deed.may_be_repeated() => {}
                _ => break,
            }
        }
        Err(BucketError::Unsure)
    }

    async fn note(
        &self,
        by: &Actor,
        domain: &str,
        deed: Deed,
        views: &[BucketView],
    ) -> Result<(), BucketError> {
        let mut descriptors: Vec<_> = views.iter().map(|view| view.descriptor.as_str()).collect();
        descriptors.dedup();
        let done = views.iter().map(|view| {
            let BucketView {
                before,
                remaining,
                limit,
                rule,
                ..
            } = view;
            format!("{before} → {remaining} left of {limit} of {rule}")
        });
        let entry = Entry::new(
            by,
            deed.action(),
            &format!("{domain} ({})", descriptors.join("), (")),
        )
        .saying(&format!("{deed}: {}", done.collect::<Vec<_>>().join("; ")));
        entry.log();
        match &self.audit {
            Some(audit) => audit.write(&entry).await.map_err(BucketError::Audit),
            None => Ok(()),
        }
    }
}

/// For the audit log.
impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Show => f.write_str("looked at"),
            Self::Reset => f.write_str("made full"),
            Self::Grant(hits) => write!(f, "granted {hits}"),
        }
    }
}

impl Named {
    /// Of the bucket, and of what counts refusals beside it.
    fn items(&self, deed: Deed) -> impl Iterator<Item = Item> {
        let guard = self.guard.as_ref().map(|(limit, key)| {
            let hits = match deed {
                Deed::Reset => deed.hits(),
                Deed::Show | Deed::Grant(_) => Hits::Take(0),
            };
            item(limit, key, hits)
        });
        iter::once(item(&self.limit, &self.key, deed.hits())).chain(guard)
    }
}

fn item(limit: &Arc<RuleLimit>, key: &BucketKey, hits: Hits) -> Item {
    Item {
        key: key.clone(),
        limit: Arc::clone(limit),
        hits,
        role: Role::Enforced,
        charge: Charge::AllOrNothing,
        patience_us: 0,
        // Not an error: a caller that got one counts as refused, and what was given would be taken again.
        on_store_error: OnStoreError::Allow,
    }
}

/// Puts what was said of guards to their buckets.
fn held(named: &[Named], taken: Taken) -> Vec<Held> {
    let mut balances = taken.balances.into_iter();
    let mut next = || balances.next().expect("one for each item");
    let held = named.iter().map(|named| {
        let balance = next();
        let guard = named.guard.as_ref().and_then(|_| next().retry_after);
        (balance, guard.unwrap_or_default())
    });
    held.collect()
}

/// The buckets that the descriptors name.
fn named(domain: &Domain, plans: &Plans, query: &Query) -> Vec<Named> {
    let stored = plans.stored_keys();
    let matches: SmallVec<[Match<'_>; 2]> = domain.matches(query, stored);
    let mut all: Vec<Named> = Vec::new();
    for (found, descriptor) in matches.iter().zip(&query.descriptors) {
        let Match::Limited {
            rule,
            limits,
            subject,
        } = found
        else {
            continue;
        };
        for limit in limits.iter() {
            let key = BucketKey::new(limit.key_prefix(), subject);
            // Two descriptors may name one bucket, which is given to once.
            if all.iter().any(|other| other.key == key) {
                continue;
            }
            let guard = limit.guard().map(|guard| {
                let key = BucketKey::new(guard.key_prefix(), subject);
                (Arc::clone(guard), key)
            });
            all.push(Named {
                guard,
                descriptor: shown(domain, plans, descriptor),
                rule: rule.path.to_string(),
                limit: Arc::clone(limit),
                key,
            });
        }
    }
    all
}

/// `key=value`, of API keys the id.
fn shown(domain: &Domain, plans: &Plans, descriptor: &Descriptor) -> String {
    let entries = descriptor.entries.iter().map(|entry| {
        let value = domain.reported_value(entry, plans.stored_keys());
        format!("{}={value}", entry.key)
    });
    entries.collect::<Vec<_>>().join(", ")
}
