//! Buckets of the memory store that outlive the process.

mod common;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use common::{Tollgate, ask, plans, request, wait_until};
use nix::sys::signal::Signal;
use proptest::prelude::*;
use tempfile::TempDir;
use tollgate::{
    clock::{ManualClock, Timestamp},
    descriptor::Hits,
    plan::{Charge, OnStoreError, Role, RuleLimit},
    store::{
        BucketKey, Item, MemoryStore, Take, Taken,
        memory::{
            kept::{KeepError, KeptBuckets},
            snapshot::{self, Loaded, SnapshotError},
        },
    },
};

const START: Timestamp = Timestamp::from_micros(1_795_000_000_000_000);

/// Of every kind, and such as give rise to large numbers.
const LIMITS: [&str; 7] = [
    "10/minute",
    "7/second burst 100",
    "4294967295/day",
    "50/minute sliding",
    "20/hour fixed",
    "1000000/month",
    "0/second",
];

fn store(now: Timestamp, max_buckets: usize) -> (Arc<ManualClock>, MemoryStore) {
    let clock = Arc::new(ManualClock::at(now));
    (clock.clone(), MemoryStore::new(max_buckets, clock))
}

fn limits() -> Vec<Arc<RuleLimit>> {
    let limit = |text: &&str| Arc::new(RuleLimit::new(text.parse().unwrap(), None, text, text));
    LIMITS.iter().map(limit).collect()
}

fn take(store: &MemoryStore, limit: &Arc<RuleLimit>, who: u64, hits: Hits, dry: bool) -> Taken {
    let item = Item {
        key: BucketKey::new(limit.key_prefix(), &who.to_be_bytes()),
        limit: limit.clone(),
        hits,
        // So that there is debt as well.
        role: Role::Enforced,
        charge: Charge::Overdraw,
        patience_us: 0,
        on_store_error: OnStoreError::Local,
    };
    store.take(&Take {
        items: [item].into_iter().collect(),
        dry,
    })
}

fn written(store: &MemoryStore) -> Vec<u8> {
    let mut file = Vec::new();
    let written = snapshot::write(store, &mut file).unwrap();
    assert_eq!(written.bytes, file.len() as u64);
    file
}

/// What is in a file, by a clock that shows `now`.
fn read(file: &[u8], now: Timestamp) -> Result<(MemoryStore, Loaded), SnapshotError> {
    let (_, store) = store(now, 10_000);
    let loaded = snapshot::read(file, &store)?;
    Ok((store, loaded))
}

/// A step of a store's life: how long after the last one, which limit, whose bucket, hits.
type Step = (u64, usize, u64, i64);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wait = prop_oneof![Just(0), 0..2_000_000_u64, 0..7_200_000_000_u64];
    let hits = prop_oneof![-3..30_i64, Just(4_000_000_000)];
    prop::collection::vec((wait, 0..LIMITS.len(), 0..4_u64, hits), 1..60)
}

fn live(steps: &[Step]) -> (Arc<ManualClock>, MemoryStore) {
    let (clock, store) = store(START, 10_000);
    let limits = limits();
    for (wait, limit, who, hits) in steps {
        clock.advance(Duration::from_micros(*wait));
        let hits = match u64::try_from(*hits) {
            Ok(hits) => Hits::Take(hits),
            Err(_) => Hits::Give(hits.unsigned_abs()),
        };
        take(&store, &limits[*limit], *who, hits, false);
    }
    (clock, store)
}

proptest! {
    #[test]
    fn what_is_written_is_what_is_read(steps in steps(), down_us in 0..100_000_000_u64) {
        let (clock, before) = live(&steps);
        let file = written(&before);
        clock.advance(Duration::from_micros(down_us));
        let now = tollgate::clock::Clock::now(&*clock);
        let (after, loaded) = read(&file, now).unwrap();
        prop_assert_eq!(loaded.age, Duration::from_micros(down_us));
        for limit in limits() {
            for who in 0..4 {
                let look = |store| take(store, &limit, who, Hits::Take(1), true);
                prop_assert_eq!(look(&before), look(&after), "{} of {}", limit.key_prefix(), who);
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_off_or_longer_is_refused(steps in steps(), at in any::<prop::sample::Index>()) {
        let (_, store) = live(&steps);
        let mut file = written(&store);
        prop_assert!(read(&file[..at.index(file.len())], START).is_err());
        file.push(0);
        prop_assert!(read(&file, START).is_err());
    }

    #[test]
    fn a_file_of_which_a_bit_has_changed_is_refused(
        steps in steps(), at in any::<prop::sample::Index>(), bit in 0..8_u32,
    ) {
        let (_, store) = live(&steps);
        let mut file = written(&store);
        let at = at.index(file.len());
        file[at] ^= 1 << bit;
        prop_assert!(read(&file, START).is_err());
    }

    #[test]
    fn bytes_of_any_kind_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(read(&bytes, START).is_err());
        let mut file = written(&store(START, 1).1);
        file.truncate(12);
        file.extend(bytes);
        prop_assert!(read(&file, START).is_err());
    }
}

#[test]
fn a_file_says_why_it_is_refused() {
    let (_, store) = store(START, 1);
    let good = written(&store);
    let refusal = |file: &[u8]| match read(file, START) {
        Ok(_) => panic!("it is read"),
        Err(error) => error.to_string(),
    };
    assert_eq!(refusal(b""), "it is no file of buckets");
    assert_eq!(refusal(b"not of this kind"), "it is no file of buckets");
    let mut newer = good.clone();
    newer[11] = 2;
    assert_eq!(refusal(&newer), "it has format 2, and this build reads 1");
    let torn = &good[..good.len() - 1];
    assert_eq!(refusal(torn), "it is damaged: block 1 is cut off");
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(
        refusal(&flipped),
        "it is damaged: block 1 has another checksum"
    );
    // As another process has other names for buckets; its checksum fits.
    let mut others = good[..12].to_vec();
    let head = [1, 2, 3];
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[0; 8]);
    crc.update(b"H\0\0\0\x03");
    crc.update(&head);
    others.extend(b"H\0\0\0\x03");
    others.extend(crc.finalize().to_be_bytes());
    others.extend(head);
    assert_eq!(
        refusal(&others),
        "it is of another process, and this one has begun to decide"
    );
}

#[test]
fn a_clock_that_went_back_lets_buckets_stand_still_as_it_does_without_a_restart() {
    let limit = &limits()[0];
    let (_, before) = store(START, 100);
    take(&before, limit, 1, Hits::Take(10), false);
    let file = written(&before);
    let an_hour_before = Timestamp::from_micros(START.as_micros() - 3_600_000_000);
    let (clock, after) = store(an_hour_before, 100);
    let loaded = snapshot::read(&file[..], &after).unwrap();
    assert_eq!(loaded.ahead, Duration::from_secs(3_600));
    let fits = || take(&after, limit, 1, Hits::Take(1), true).admitted;
    clock.advance(Duration::from_secs(3_600));
    assert!(!fits());
    clock.advance(Duration::from_secs(6));
    assert!(fits(), "from then on it refills");
}

#[test]
fn a_smaller_store_keeps_the_buckets_that_are_furthest_from_full() {
    let limit = &limits()[5];
    let day = &limits()[2];
    let (_, before) = store(START, 10_000);
    for who in 0..1_000 {
        take(&before, limit, who, Hits::Take(1), false);
        take(&before, day, who, Hits::Take(1), false);
    }
    let file = written(&before);
    let (_, after) = store(START, 1_000);
    snapshot::read(&file[..], &after).unwrap();
    assert!(after.len() <= after.capacity());
    assert!(after.forgotten() > 0, "and says so");
}

/// A file between whose blocks requests come.
struct Busy<'a> {
    file: Vec<u8>,
    clock: &'a ManualClock,
    store: &'a MemoryStore,
    limit: &'a Arc<RuleLimit>,
    newcomers: std::ops::RangeFrom<u64>,
}

impl io::Write for Busy<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > 1_000 {
            // What came before is full by now, so each newcomer has up to two forgotten.
            self.clock.advance(Duration::from_secs(60));
            for who in self.newcomers.by_ref().take(500) {
                take(self.store, self.limit, who, Hits::Take(1), false);
            }
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A bucket that is forgotten leaves a hole, into which another moves while the file is written.
#[test]
fn no_bucket_is_missed_while_others_come_and_go() {
    // Some blocks per shard.
    const KEPT: u64 = 64 * 700;
    let limits = limits();
    let (quota, short) = (&limits[5], &limits[0]);
    let (clock, store) = store(START, 1_000_000);
    for who in 0..KEPT {
        if who % 4 == 0 {
            take(&store, short, who, Hits::Take(1), false);
        }
        take(&store, quota, who, Hits::Take(1), false);
    }
    let mut busy = Busy {
        file: Vec::new(),
        clock: &clock,
        store: &store,
        limit: short,
        newcomers: KEPT..,
    };
    snapshot::write(&store, &mut busy).unwrap();
    // So late that the others are full.
    let late = START.after(Duration::from_secs(86_400));
    let (_, after) = self::store(late, 1_000_000);
    snapshot::read(&busy.file[..], &after).unwrap();
    assert_eq!(after.len() as u64, KEPT);
}

fn open(folder: &Path) -> (MemoryStore, KeptBuckets) {
    KeptBuckets::open(folder, 1_000, Arc::new(ManualClock::at(START))).unwrap()
}

#[test]
fn one_process_at_a_time_writes_the_buckets_of_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let limit = &limits()[5];
    let (store, first) = open(folder.path());
    take(&store, limit, 1, Hits::Take(1), false);
    first.save(&store).unwrap();
    let (store, second) = open(folder.path());
    let look = take(&store, limit, 1, Hits::Take(1), false);
    assert_eq!(look.balances[0].left, 999_998, "it begins with them");
    let refused = second.save(&store).unwrap_err();
    assert!(matches!(refused, KeepError::Taken { .. }), "{refused}");
    assert_eq!(second.stats().errors.load(Ordering::Relaxed), 1);
    drop(first);
    second.save(&store).unwrap();
}

#[test]
fn a_file_that_cannot_be_written_leaves_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let limit = &limits()[5];
    let (store, kept) = open(folder.path());
    take(&store, limit, 1, Hits::Take(1), false);
    kept.save(&store).unwrap();
    // A folder stands where the draft should.
    fs::create_dir(folder.path().join(".buckets.draft")).unwrap();
    assert!(kept.save(&store).is_err());
    assert_eq!(kept.stats().errors.load(Ordering::Relaxed), 1);
    assert_eq!(kept.stats().last().written.buckets, 1);
    drop(kept);
    let (store, _kept) = open(folder.path());
    assert_eq!(store.len(), 1);
    let mode = fs::metadata(folder.path().join("buckets.snapshot"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "it holds a secret");
}

/// Tollgate with a yearly quota of three and a state directory.
struct Home {
    _plans: TempDir,
    config: PathBuf,
    state: TempDir,
}

impl Home {
    fn new() -> Self {
        let text = "domain: shop\ndescriptors: [{ key: id, limits: [3/year] }]\n";
        let (plans, config) = plans(text);
        Self {
            _plans: plans,
            config,
            state: tempfile::tempdir().unwrap(),
        }
    }

    fn state(&self) -> &Path {
        self.state.path()
    }

    fn serve(&self, args: &[&str]) -> Tollgate {
        let state = self.state().to_str().unwrap();
        let state = ["--state-dir", state];
        Tollgate::start(&self.config, &[&state, args].concat())
    }
}

/// Takes one of the quota; what is left then.
async fn spend(tollgate: &Tollgate) -> u32 {
    let mut client = tollgate.client().await;
    let answer = ask(&mut client, request("shop", &[&[("id", "a")]]));
    answer.await.unwrap().statuses[0].limit_remaining
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_survives_a_restart() {
    let home = Home::new();
    let mut tollgate = home.serve(&[]);
    assert_eq!(spend(&tollgate).await, 2);
    tollgate.process.signal(Signal::SIGTERM);
    assert_eq!(tollgate.process.wait(), Some(0));
    let tollgate = home.serve(&[]);
    assert_eq!(spend(&tollgate).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_survives_a_crash() {
    let home = Home::new();
    let mut tollgate = home.serve(&["--snapshot-every", "20ms"]);
    assert_eq!(spend(&tollgate).await, 2);
    wait_until("a snapshot", async || {
        tollgate.metric("tollgate_snapshot_buckets") == 1.0
    })
    .await;
    assert!(tollgate.metric("tollgate_snapshot_bytes") > 0.0);
    tollgate.process.kill();
    let tollgate = home.serve(&[]);
    assert_eq!(spend(&tollgate).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_hands_the_buckets_over_to_the_next() {
    let home = Home::new();
    let mut first = home.serve(&["--snapshot-every", "20ms"]);
    assert_eq!(spend(&first).await, 2);
    wait_until("a snapshot", async || {
        first.metric("tollgate_snapshot_buckets") == 1.0
    })
    .await;
    let mut second = home.serve(&["--snapshot-every", "20ms"]);
    second
        .process
        .line_with("another process keeps its buckets in ");
    assert_eq!(spend(&second).await, 1);
    first.process.signal(Signal::SIGTERM);
    assert_eq!(first.process.wait(), Some(0));
    second.process.line_with("the buckets are kept from now on");
    second.process.signal(Signal::SIGTERM);
    assert_eq!(second.process.wait(), Some(0));
    let third = home.serve(&[]);
    assert_eq!(spend(&third).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_file_is_set_aside_and_buckets_begin_full() {
    let home = Home::new();
    let mut tollgate = home.serve(&[]);
    assert_eq!(spend(&tollgate).await, 2);
    tollgate.process.signal(Signal::SIGTERM);
    tollgate.process.wait();
    let file = home.state().join("buckets.snapshot");
    let mut torn = fs::read(&file).unwrap();
    torn.pop();
    fs::write(&file, &torn).unwrap();
    let mut tollgate = home.serve(&[]);
    let line = tollgate
        .process
        .line_with("the kept buckets cannot be used: all buckets begin full");
    assert!(line.contains("is cut off"), "{line}");
    assert_eq!(spend(&tollgate).await, 2);
    assert_eq!(
        fs::read(home.state().join("buckets.refused")).unwrap(),
        torn
    );
}

#[tokio::test]
async fn a_directory_that_goes_away_is_said_and_harms_no_request() {
    let home = Home::new();
    let mut tollgate = home.serve(&["--snapshot-every", "20ms"]);
    let there = home.state().with_extension("gone");
    fs::rename(home.state(), &there).unwrap();
    tollgate.process.line_with("cannot keep the buckets");
    assert!(tollgate.metric("tollgate_snapshot_errors_total") >= 1.0);
    assert_eq!(spend(&tollgate).await, 2);
    fs::rename(&there, home.state()).unwrap();
    tollgate
        .process
        .line_with("the buckets are kept from now on");
}

#[tokio::test]
async fn nothing_is_kept_where_that_is_asked_for() {
    let home = Home::new();
    let first = home.serve(&["--snapshot-every", "0s"]);
    let second = home.serve(&["--snapshot-every", "0s"]);
    assert_eq!(spend(&first).await, 2);
    assert_eq!(spend(&second).await, 2);
    assert!(!home.state().join("buckets.snapshot").exists());
    assert!(!first.page("/metrics").contains("tollgate_snapshot"));
}
