//! The memory store: all or nothing, exact under threads, bounded.

use std::{sync::Arc, thread, time::Duration};

use smallvec::SmallVec;
use tollgate::{
    clock::{ManualClock, Timestamp},
    descriptor::Hits,
    plan::{Charge, OnStoreError, Role, RuleLimit},
    store::{BucketKey, Item, MemoryStore, Take, Taken},
};

const START: Timestamp = Timestamp::from_micros(1_795_000_000_000_000);

fn store(max_buckets: usize) -> (Arc<ManualClock>, MemoryStore) {
    let clock = Arc::new(ManualClock::at(START));
    (clock.clone(), MemoryStore::new(max_buckets, clock))
}

fn limit(text: &str) -> Arc<RuleLimit> {
    let limit = text.parse().expect("a limit");
    Arc::new(RuleLimit::new(limit, None, text, text))
}

fn item(limit: &Arc<RuleLimit>, who: &str, hits: u64, role: Role) -> Item {
    Item {
        key: BucketKey::new(limit.key_prefix(), who.as_bytes()),
        limit: limit.clone(),
        hits: Hits::Take(hits),
        role,
        charge: Charge::AllOrNothing,
        patience_us: 0,
        on_store_error: OnStoreError::Local,
    }
}

fn take<const N: usize>(store: &MemoryStore, items: [Item; N]) -> Taken {
    store.take(&Take {
        items: items.into_iter().collect(),
        dry: false,
    })
}

fn remaining(taken: &Taken) -> SmallVec<[u64; 4]> {
    taken
        .balances
        .iter()
        .map(|balance| balance.remaining())
        .collect()
}

#[test]
fn a_refusal_leaves_every_bucket_as_it_was() {
    let (_, store) = store(1_000);
    let (wide, narrow) = (limit("10/minute"), limit("1/minute sliding"));
    let both = || {
        [
            item(&wide, "a", 1, Role::Enforced),
            item(&narrow, "a", 1, Role::Enforced),
        ]
    };
    assert!(take(&store, both()).admitted);
    for _ in 0..20 {
        let refused = take(&store, both());
        assert!(!refused.admitted);
        assert_eq!(remaining(&refused)[..], [9, 0]);
        assert_eq!(refused.balances[0].retry_after, None, "this one fits");
    }
}

#[test]
fn the_same_bucket_twice_is_charged_twice_or_not_at_all() {
    let (_, store) = store(1_000);
    let limit = limit("3/minute");
    let twice = || {
        [
            item(&limit, "a", 1, Role::Enforced),
            item(&limit, "a", 1, Role::Enforced),
        ]
    };
    assert_eq!(remaining(&take(&store, twice()))[..], [1, 1]);
    let refused = take(&store, twice());
    assert!(!refused.admitted);
    assert!(refused.balances[0].fits);
    assert_eq!(
        refused.balances[1].retry_after,
        Some(Duration::from_secs(20)),
        "both need two tokens"
    );
    assert!(take(&store, [item(&limit, "a", 1, Role::Enforced)]).admitted);
}

#[test]
fn shadow_rules_never_refuse_and_are_charged_only_for_what_passes() {
    let (_, store) = store(1_000);
    let (enforced, shadow) = (limit("2/minute"), limit("1/minute"));
    let both = || {
        [
            item(&enforced, "a", 1, Role::Enforced),
            item(&shadow, "s", 1, Role::Shadow),
        ]
    };
    assert!(take(&store, both()).admitted);
    let second = take(&store, both());
    assert!(second.admitted && !second.balances[1].fits);
    assert!(!take(&store, both()).admitted);
}

#[test]
fn quota_rules_refuse_only_together() {
    let (_, store) = store(1_000);
    let (one, two) = (limit("1/minute"), limit("2/minute"));
    let both = || {
        [
            item(&one, "one", 1, Role::Quota),
            item(&two, "two", 1, Role::Quota),
        ]
    };
    assert!(take(&store, both()).admitted);
    let second = take(&store, both());
    assert!(second.admitted);
    assert_eq!(
        (second.balances[0].fits, second.balances[1].fits),
        (false, true)
    );
    assert!(!take(&store, both()).admitted);
}

#[test]
fn a_dry_take_changes_nothing() {
    let (_, store) = store(1_000);
    let limit = limit("1/minute");
    for _ in 0..3 {
        let dry = Take {
            items: [item(&limit, "a", 1, Role::Enforced)].into_iter().collect(),
            dry: true,
        };
        assert_eq!(remaining(&store.take(&dry))[..], [1]);
    }
    assert!(store.is_empty());
}

#[test]
fn threads_admit_exactly_the_limit() {
    let (_, store) = store(1_000);
    let (a, b) = (limit("1000/hour"), limit("700/hour sliding"));
    let admitted: usize = thread::scope(|scope| {
        let run = |turned: bool| {
            let (store, a, b) = (&store, &a, &b);
            move || {
                let mut items = [
                    item(a, "a", 1, Role::Enforced),
                    item(b, "b", 1, Role::Enforced),
                ];
                if turned {
                    items.reverse();
                }
                (0..1_000)
                    .filter(|_| take(store, items.clone()).admitted)
                    .count()
            }
        };
        let threads: Vec<_> = (0..8).map(|i| scope.spawn(run(i % 2 == 0))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .sum()
    });
    assert_eq!(admitted, 700);
    assert_eq!(
        remaining(&take(&store, [item(&a, "a", 0, Role::Enforced)]))[..],
        [300]
    );
}

#[test]
fn what_is_charged_though_refused_becomes_debt_as_far_as_its_kind_allows() {
    let (clock, store) = store(1_000);
    for (text, debt) in [
        ("5/hour burst 7", -7),
        ("5/hour sliding", -5),
        ("5/hour calendar", -5),
        ("5/hour fixed", 5 - 40),
    ] {
        let mut item = item(&limit(text), "a", 20, Role::Enforced);
        item.charge = Charge::Independent;
        for _ in 0..2 {
            let taken = take(&store, [item.clone()]);
            assert!(!taken.admitted && taken.balances[0].charged, "{text}");
        }
        item.hits = Hits::Take(0);
        let look = take(&store, [item]).balances[0];
        assert_eq!((look.fits, look.left), (false, debt), "{text}");
    }
    clock.advance(Duration::from_secs(3 * 3_600));
    for text in [
        "5/hour burst 7",
        "5/hour sliding",
        "5/hour calendar",
        "5/hour fixed",
    ] {
        let look = take(&store, [item(&limit(text), "a", 0, Role::Enforced)]);
        assert!(look.balances[0].left >= 5, "{text}");
    }
}

#[test]
fn windows_that_have_ended_are_forgotten_however_overdrawn() {
    let (clock, store) = store(64 * 40);
    let window = limit("5/second fixed");
    for number in 0..20_000 {
        clock.advance(Duration::from_millis(1));
        let mut item = item(&window, &number.to_string(), 1_000, Role::Enforced);
        item.charge = Charge::Independent;
        assert!(!take(&store, [item]).admitted);
    }
    assert_eq!(store.forgotten(), 0);
    assert!(store.len() <= store.capacity());
}

#[test]
fn full_buckets_are_forgotten_first() {
    let (clock, store) = store(64 * 40);
    let (fast, slow) = (limit("100/second"), limit("2/hour"));
    for i in 0..100 {
        assert!(
            take(
                &store,
                [item(&slow, &format!("slow {i}"), 1, Role::Enforced)]
            )
            .admitted
        );
    }
    for i in 0..20_000 {
        clock.advance(Duration::from_millis(1));
        assert!(
            take(
                &store,
                [item(&fast, &format!("fast {i}"), 1, Role::Enforced)]
            )
            .admitted
        );
    }
    assert_eq!(store.forgotten(), 0);
    assert!(store.len() <= store.capacity());
    for i in 0..100 {
        let left = take(
            &store,
            [item(&slow, &format!("slow {i}"), 0, Role::Enforced)],
        );
        assert_eq!(remaining(&left)[..], [1], "slow {i} is remembered");
    }
}

#[test]
fn a_store_full_of_part_used_buckets_forgets_those_nearest_to_full() {
    let (_, store) = store(64 * 4);
    let (nearly_full, empty) = (limit("1000/hour"), limit("10/day"));
    let keys: Vec<String> = (0..64).map(|i| format!("empty {i}")).collect();
    for key in &keys {
        assert!(take(&store, [item(&empty, key, 10, Role::Enforced)]).admitted);
    }
    for i in 0..10_000 {
        assert!(
            take(
                &store,
                [item(&nearly_full, &i.to_string(), 1, Role::Enforced)]
            )
            .admitted
        );
        assert!(store.len() <= store.capacity());
    }
    assert!(store.forgotten() > 9_000);
    let still_empty = keys
        .iter()
        .filter(|key| !take(&store, [item(&empty, key, 1, Role::Enforced)]).admitted)
        .count();
    assert!(
        still_empty >= 60,
        "only a shard that had more than four of them gave one up: {still_empty}"
    );
}
