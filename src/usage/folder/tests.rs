use std::sync::Arc;

use super::*;
use crate::{clock::Timestamp, usage::Day};

fn day(text: &str) -> Period {
    Period::Day(text.parse().unwrap())
}

fn chunk(period: Period, key: &str, admitted: i64) -> Chunk {
    let counts = Counts {
        admitted,
        ..Counts::default()
    };
    let row = Arc::new(Row::from(["shop", key, "free", "api_key:1/second"]));
    Chunk {
        period,
        rows: vec![(row, counts)],
    }
}

fn admitted(folder: &FolderUsage, period: Period, key: &str) -> i64 {
    let rows = folder.read(period).unwrap();
    let of_key = rows.iter().filter(|(row, _)| row.key == key);
    of_key.map(|(_, counts)| counts.admitted).sum()
}

fn opened(state: &Path) -> FolderUsage {
    FolderUsage::new(state, Retention::default())
}

#[test]
fn two_writers_on_one_folder_add_up() {
    let state = tempfile::tempdir().unwrap();
    let (mut one, mut other) = (opened(state.path()), opened(state.path()));
    let period = day("2026-11-30");
    for _ in 0..10 {
        one.add(&chunk(period, "ada", 1)).unwrap();
        other.add(&chunk(period, "ada", 2)).unwrap();
    }
    assert_eq!(admitted(&one, period, "ada"), 30);
    assert_eq!(admitted(&one, day("2026-11-29"), "ada"), 0);
}

#[test]
fn a_torn_last_line_is_left_out_and_then_removed() {
    let state = tempfile::tempdir().unwrap();
    let mut folder = opened(state.path());
    let period = day("2026-11-30");
    folder.add(&chunk(period, "ada", 1)).unwrap();
    let path = folder.path(period);
    let whole = fs::read(&path).unwrap();
    folder.add(&chunk(period, "ada", 2)).unwrap();
    let longer = fs::read(&path).unwrap();
    // Wherever a crash cut it, in the header too.
    for end in 0..longer.len() {
        fs::write(&path, &longer[..end]).unwrap();
        let kept = if end < whole.len() { 0 } else { 1 };
        assert_eq!(admitted(&folder, period, "ada"), kept, "cut at {end}");
        opened(state.path()).add(&chunk(period, "bob", 5)).unwrap();
        assert_eq!(admitted(&folder, period, "ada"), kept, "cut at {end}");
        assert_eq!(admitted(&folder, period, "bob"), 5, "cut at {end}");
    }
}

#[test]
fn a_damaged_line_is_told_and_its_file_not_used() {
    let state = tempfile::tempdir().unwrap();
    let mut folder = opened(state.path());
    let period = day("2026-11-30");
    folder.add(&chunk(period, "ada", 1)).unwrap();
    folder.add(&chunk(period, "ada", 1)).unwrap();
    let path = folder.path(period);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("ada", "eve", 1)).unwrap();
    let error = folder.read(period).unwrap_err().to_string();
    let place = format!("{}:2: its checksum does not fit", path.display());
    assert!(error.starts_with(&place), "{error}");
    fs::write(&path, "something else\n").unwrap();
    assert!(matches!(
        folder.read(period),
        Err(UsageError::Damaged { line: 1, .. })
    ));
}

#[test]
fn a_file_far_longer_than_its_sums_is_written_anew_and_the_sums_stay() {
    let state = tempfile::tempdir().unwrap();
    let mut folder = opened(state.path());
    let period = day("2026-11-30");
    let mut many = chunk(period, "ada", 1);
    many.rows = (0..2_000)
        .map(|number| chunk(period, &format!("key-{number}"), 1).rows.remove(0))
        .collect();
    let mut longest = 0;
    for _ in 0..40 {
        folder.add(&many).unwrap();
        longest = longest.max(fs::metadata(folder.path(period)).unwrap().len());
    }
    let sums = folder.sums[&period];
    assert!(longest > SLACK_BYTES, "{longest}");
    assert!(longest < 3 * sums + 2 * SLACK_BYTES, "{longest}, {sums}");
    assert_eq!(admitted(&folder, period, "key-1999"), 40);
    assert_eq!(opened(state.path()).read(period).unwrap().len(), 2_000);
}

#[test]
fn the_oldest_files_go_and_a_clock_that_was_wrong_takes_nothing_along() {
    let state = tempfile::tempdir().unwrap();
    let mut folder = FolderUsage::new(state.path(), Retention { days: 3 });
    for text in ["2026-11-27", "2026-11-28", "9999-12-31", "2026-11-29"] {
        folder.add(&chunk(day(text), "ada", 1)).unwrap();
    }
    let kept = |text| admitted(&folder, day(text), "ada");
    assert_eq!(
        ["2026-11-27", "2026-11-28", "2026-11-29"].map(kept),
        [0, 1, 1]
    );
    let first = Day::of(Timestamp::from_micros(0));
    for hour in first
        .through("1970-01-04".parse().unwrap())
        .flat_map(Day::hours)
    {
        folder.add(&chunk(hour, "ada", 1)).unwrap();
    }
    let hours = fs::read_dir(state.path().join("usage/hours")).unwrap();
    assert_eq!(hours.count(), 3 * 24);
}

#[test]
fn only_the_owner_may_read_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let state = tempfile::tempdir().unwrap();
    let mut folder = opened(&state.path().join("state"));
    let period = day("2026-11-30");
    folder.add(&chunk(period, "ada", 1)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path(period)), 0o600);
    assert_eq!(mode(&state.path().join("state/usage/days")), 0o700);
}
