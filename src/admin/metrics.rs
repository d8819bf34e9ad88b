//! Metrics that are read from their owners when a page is written: rules, reloads, the store.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::{
    metrics::{MAX_RULES, encode_histogram},
    plan::{RuleCounters, SharedPlans, StreamStatus},
    store::{MemoryStore, Store, StoreState, redis::checks::Check},
};

/// Reads the plans and the store.
#[derive(Debug)]
pub struct Collector {
    plans: Arc<SharedPlans>,
    store: Arc<Store>,
}

impl Collector {
    /// A collector of these.
    pub fn new(plans: Arc<SharedPlans>, store: Arc<Store>) -> Self {
        Self { plans, store }
    }

    fn rules(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "rule_decisions",
            "Descriptors judged, by rule",
            None,
            MetricType::Counter,
        )?;
        for ((domain, rule, code), count) in rule_counts(&self.plans, by_code) {
            let labels = [
                ("domain", domain.as_str()),
                ("rule", rule.as_str()),
                ("code", code),
            ];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "overage_hits",
            "Hits that passed beyond a soft limit, by rule",
            None,
            MetricType::Counter,
        )?;
        let overage = |counters: &RuleCounters| [("", counters.overage.get())];
        for ((domain, rule, _), count) in rule_counts(&self.plans, overage) {
            let labels = [("domain", domain.as_str()), ("rule", rule.as_str())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn reloads(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.plans.status();
        let mut family = encoder.encode_descriptor(
            "plan_reloads",
            "Reloads of the plans",
            None,
            MetricType::Counter,
        )?;
        for (result, count) in [("success", status.changed), ("failure", status.failed)] {
            ConstCounter::new(count).encode(family.encode_family(&[("result", result)])?)?;
        }
        let help = "1 while the newest plan files did not load and older plans are in force";
        gauge(
            encoder,
            "plans_stale",
            help,
            u64::from(status.error.is_some()),
        )?;
        match &status.stream {
            Some(status) => stream(encoder, status),
            None => Ok(()),
        }
    }

    fn keys(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stored = self.plans.load().stored_keys().len() as u64;
        let help = "API keys beside those of the plan files";
        gauge(encoder, "api_keys_stored", help, stored)?;
        let help = "1 while the home of those API keys cannot be read and older ones are in force";
        let stale = u64::from(self.plans.keys_are_stale());
        gauge(encoder, "api_keys_stale", help, stale)
    }
}

/// Characters of a version that a label shows.
const VERSION_SHOWN: usize = 64;

fn stream(encoder: &mut DescriptorEncoder<'_>, status: &StreamStatus) -> fmt::Result {
    gauge(
        encoder,
        "xds_connected",
        "1 while there is a connection to the control plane",
        u64::from(status.connected),
    )?;
    let mut updates = encoder.encode_descriptor(
        "xds_updates",
        "Updates from the control plane",
        None,
        MetricType::Counter,
    )?;
    for (result, count) in [("accepted", status.accepted), ("rejected", status.rejected)] {
        ConstCounter::new(count).encode(updates.encode_family(&[("result", result)])?)?;
    }
    let Some(version) = &status.version else {
        return Ok(());
    };
    let version: String = version.chars().take(VERSION_SHOWN).collect();
    let help = "The version in force, as the control plane calls it";
    let mut family = encoder.encode_descriptor("xds_version", help, None, MetricType::Gauge)?;
    ConstGauge::new(1_u64).encode(family.encode_family(&[("version", version.as_str())])?)
}

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.rules(&mut encoder)?;
        self.reloads(&mut encoder)?;
        self.keys(&mut encoder)?;
        if let Store::Memory(memory) = &*self.store {
            self::memory(&mut encoder, memory)?;
        }
        match self.store.state() {
            Some(state) => {
                findings(&mut encoder, &self.store)?;
                shared_store(&mut encoder, &state)
            }
            None => Ok(()),
        }
    }
}

fn memory(encoder: &mut DescriptorEncoder<'_>, store: &MemoryStore) -> fmt::Result {
    gauge(
        encoder,
        "buckets",
        "Buckets in the memory store",
        store.len() as u64,
    )?;
    gauge(
        encoder,
        "buckets_max",
        "Most buckets of the memory store",
        store.capacity() as u64,
    )?;
    let help = "Part-used buckets forgotten for want of room; raise --max-buckets";
    counter(encoder, "buckets_forgotten", help, store.forgotten())
}

fn findings(encoder: &mut DescriptorEncoder<'_>, store: &Store) -> fmt::Result {
    let found = store.findings();
    let help = "Servers of the store on which a check found something at the last connection";
    let mut family = encoder.encode_descriptor("store_warnings", help, None, MetricType::Gauge)?;
    for check in Check::ALL {
        let servers = found.iter().filter(|found| found.check == check).count();
        let labels = [("check", check.name())];
        ConstGauge::new(servers as f64).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn shared_store(encoder: &mut DescriptorEncoder<'_>, store: &StoreState<'_>) -> fmt::Result {
    let stats = store.stats;
    for (name, help, count) in [
        (
            "store_shed",
            "Takes decided without the store as its queue was full",
            &stats.shed,
        ),
        (
            "store_timeouts",
            "Takes that the store did not answer in time",
            &stats.timeouts,
        ),
        (
            "store_not_replicated",
            "Decisions whose charge too few replicas of the store had in time",
            &stats.not_replicated,
        ),
        (
            "store_trips",
            "Times that the store was given up for a while",
            &stats.trips,
        ),
        (
            "store_script_calls",
            "Calls of the take script, one per batch",
            &stats.script_calls,
        ),
        (
            "deny_cache_hits",
            "Refusals that needed no store",
            &stats.deny_cache_hits,
        ),
        (
            "charged_back_hits",
            "Hits admitted without the store and charged afterwards",
            &stats.charged_back,
        ),
        (
            "given_back_hits",
            "Hits taken for requests that were refused elsewhere, and given back",
            &stats.given_back,
        ),
        (
            "not_charged_buckets",
            "Buckets that could not be charged afterwards",
            &stats.not_charged,
        ),
        (
            "lease_decisions",
            "Decisions made from leases alone",
            &stats.lease_decisions,
        ),
        ("leases", "Leases taken", &stats.leases),
        ("leased_tokens", "Tokens of leases taken", &stats.leased),
        (
            "lease_returned_tokens",
            "Tokens of leases that were not spent and are given back",
            &stats.lease_returned,
        ),
        (
            "lease_lost_tokens",
            "Tokens of leases that could not be given back in time",
            &stats.lease_lost,
        ),
    ] {
        counter(encoder, name, help, count.load(Ordering::Relaxed))?;
    }
    gauge(
        encoder,
        "store_up",
        "1 while the store decides, with all its servers",
        u64::from(store.down.is_none()),
    )?;
    gauge(
        encoder,
        "replicas",
        "Replicas of Tollgate on this store",
        u64::from(store.replicas),
    )?;
    for (name, help, values, per_unit) in [
        (
            "store_batch_size",
            "Takes per batch",
            &stats.batch_size,
            1.0,
        ),
        (
            "store_latency_seconds",
            "Time from sending a batch to its answer",
            &stats.latency_us,
            1e6,
        ),
    ] {
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        encode_histogram(metric, values, per_unit)?;
    }
    Ok(())
}

pub(super) fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    let gauge = ConstGauge::new(value as f64);
    gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

pub(super) fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

/// By domain, rule and what `of` names; only what has moved. Rules beyond the first [`MAX_RULES`], by domain and file order, are added up
/// as `other`: which those are depends on the plans alone, so that no series ever goes back.
fn rule_counts<const N: usize>(
    plans: &SharedPlans,
    of: impl Fn(&RuleCounters) -> [(&'static str, u64); N],
) -> BTreeMap<(String, String, &'static str), u64> {
    let mut counts = BTreeMap::new();
    let mut before = 0;
    let plans = plans.load();
    for domain in plans.domains() {
        for (index, rule) in (before..).zip(domain.rules()) {
            before = index + 1;
            let moved = of(&rule.counters);
            let name = if index < MAX_RULES {
                &*rule.path
            } else {
                "other"
            };
            for (code, count) in moved.into_iter().filter(|(_, count)| *count > 0) {
                let sum: &mut u64 = counts
                    .entry((domain.name().to_owned(), name.to_owned(), code))
                    .or_default();
                *sum = sum.saturating_add(count);
            }
        }
    }
    counts
}

fn by_code(counters: &RuleCounters) -> [(&'static str, u64); 3] {
    let counts = [
        ("OK", &counters.ok),
        ("OVER_LIMIT", &counters.over_limit),
        ("SHADOW_OVER_LIMIT", &counters.shadow_over_limit),
    ];
    counts.map(|(code, count): (_, &AtomicU64)| (code, count.load(Ordering::Relaxed)))
}
