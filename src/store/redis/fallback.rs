//! Decides without Redis, as each item's `on_store_error` says; all or nothing over the request all the same.

use std::{sync::Arc, time::Instant};

use smallvec::SmallVec;

use crate::{
    bucket::{Balance, Bucket},
    clock::Timestamp,
    descriptor::Hits,
    limit::{Kind, Limit},
    plan::{OnStoreError, Role, RuleLimit},
    store::{
        Item, MemoryStore, Take, Taken,
        judge::{Flags, charged},
        seen::Seen,
    },
};

/// Decides `take` from in-process buckets of limit ÷ `replicas`, which hold no more than what was last `seen` in Redis.
/// None if an item wants an error instead.
pub fn decide(take: &Take, local: &MemoryStore, seen: &Seen, replicas: u32) -> Option<Taken> {
    let wants_error =
        |item: &Item| item.role != Role::Shadow && item.on_store_error == OnStoreError::Error;
    if take.items.iter().any(wants_error) {
        return None;
    }
    let blocked = is_blocked(take);
    let part = local_part(take, replicas, blocked);
    let now = Instant::now();
    let taken = local.take_prepared(&part, |item, bucket, at| {
        let original = take.items.iter().find(|other| other.key == item.key);
        let last = original
            .and_then(|original| seen.last_balance(&original.key, &original.limit.limit, now));
        if let Some(last) = last {
            lower(bucket, &item.limit.limit, last, at);
        }
    });
    let mut decided = taken.balances.into_iter();
    let mut balances: SmallVec<[Balance; 2]> = take
        .items
        .iter()
        .map(|item| match policy(item) {
            OnStoreError::Local => decided.next().expect("one balance per local item"),
            policy => fixed(&item.limit.limit, policy == OnStoreError::Allow),
        })
        .collect();
    let admitted = taken.admitted && !blocked;
    let fits: Flags = balances.iter().map(|balance| balance.fits).collect();
    let charged = charged(take, &fits, admitted);
    for ((item, balance), charged) in take.items.iter().zip(&mut balances).zip(charged) {
        if !is_local(item) {
            balance.charged = charged;
        }
    }
    Some(Taken {
        admitted,
        balances,
        degraded: true,
    })
}

/// Whether an item is decided by an in-process bucket.
pub fn is_local(item: &Item) -> bool {
    policy(item) == OnStoreError::Local
}

/// A rule in shadow mode decides nothing, so it counts locally whatever its policy.
fn policy(item: &Item) -> OnStoreError {
    match item.role {
        Role::Shadow => OnStoreError::Local,
        _ => item.on_store_error,
    }
}

/// Whether items that are denied unseen refuse the request.
fn is_blocked(take: &Take) -> bool {
    let denied =
        |item: &Item| policy(item) == OnStoreError::Deny && matches!(item.hits, Hits::Take(_));
    let mut quotas = take.items.iter().filter(|item| item.role == Role::Quota);
    let quota_blocked = quotas.clone().next().is_some() && quotas.all(denied);
    let enforced_denied = |item: &Item| item.role == Role::Enforced && denied(item);
    quota_blocked || take.items.iter().any(enforced_denied)
}

/// The items of in-process buckets, with this replica's share of their limits.
fn local_part(take: &Take, replicas: u32, blocked: bool) -> Take {
    let quota_allowed = take
        .items
        .iter()
        .any(|item| item.role == Role::Quota && policy(item) == OnStoreError::Allow);
    let items: SmallVec<[Item; 2]> = take
        .items
        .iter()
        .filter(|item| is_local(item))
        .map(|item| {
            let mut item = item.clone();
            let share = share(&item.limit.limit, replicas);
            item.limit = Arc::new(RuleLimit::new(share, item.limit.name.clone(), "", ""));
            // One quota rule that passes lets all of them pass.
            if quota_allowed && item.role == Role::Quota {
                item.role = Role::Shadow;
            }
            item
        })
        .collect();
    Take {
        items,
        dry: take.dry || blocked,
    }
}

/// A limit's numbers divided by the replicas, at least one hit each.
fn share(limit: &Limit, replicas: u32) -> Limit {
    let part = |number: u32| (number / replicas.max(1)).max(number.min(1));
    let kind = match limit.kind() {
        Kind::Bucket { burst } => Kind::Bucket { burst: part(burst) },
        kind => kind,
    };
    let count = part(limit.count());
    // A quotient may be one that cannot be counted exactly; powers of two have few parts.
    let rounder = 1_u32 << count.max(1).ilog2();
    [count, rounder, 1]
        .into_iter()
        .find_map(|count| Limit::new(count, limit.period(), kind).ok())
        .map(|share| share.in_zone_of(limit))
        .unwrap_or_else(|| limit.clone())
}

/// Takes from `bucket` what it holds beyond `balance`.
fn lower(bucket: &mut Bucket, limit: &Limit, balance: i64, now: Timestamp) {
    bucket.refill(limit, now);
    let surplus = bucket.balance(limit).saturating_sub(balance);
    if let Ok(surplus @ 1..) = u64::try_from(surplus) {
        bucket.apply(limit, Hits::Take(surplus), now);
    }
}

/// The balance of an item that is allowed or denied unseen.
fn fixed(limit: &Limit, fits: bool) -> Balance {
    Balance {
        fits,
        charged: false,
        left: if fits { limit.capacity().into() } else { 0 },
        retry_after: None,
        reset_after: std::time::Duration::from_micros(limit.period().micros()),
        cached: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_at_least_one_and_keeps_the_period() {
        let three = |text: &str| share(&text.parse().expect("a limit"), 3).to_string();
        assert_eq!(three("10/second burst 100"), "3/second burst 33");
        assert_eq!(three("1/second"), "1/second");
        assert_eq!(three("1000000/month"), "333333/month");
        assert_eq!(three("0/second"), "0/second");
    }
}
