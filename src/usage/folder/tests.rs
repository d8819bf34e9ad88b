use std::sync::Arc;

use super::*;

/// 2026-11-30 at five.
const FIVE: u32 = 20_787 * 24 + 5;

fn day(hour: u32) -> Period {
    Period::Day(Day::of_hour(hour))
}

fn chunk(hour: u32, key: &str, admitted: i64) -> Chunk {
    let counts = Counts {
        admitted,
        ..Counts::default()
    };
    let row = Arc::new(Row::from(["shop", key, "free", "api_key:1/second"]));
    Chunk {
        hour,
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
fn two_writers_on_one_folder_add_up_by_hour_and_day() {
    let state = tempfile::tempdir().unwrap();
    let (mut one, mut other) = (opened(state.path()), opened(state.path()));
    for _ in 0..10 {
        one.add(&chunk(FIVE, "ada", 1)).unwrap();
        other.add(&chunk(FIVE, "ada", 2)).unwrap();
        other.add(&chunk(FIVE + 1, "ada", 3)).unwrap();
    }
    assert_eq!(day(FIVE).to_string(), "2026-11-30");
    let of = |period| admitted(&one, period, "ada");
    assert_eq!(of(day(FIVE)), 60);
    assert_eq!(of(day(FIVE - 24)), 0);
    let hours = [FIVE - 1, FIVE, FIVE + 1, FIVE + 24].map(Period::Hour);
    assert_eq!(hours.map(of), [0, 30, 30, 0]);
}

#[test]
fn a_torn_last_line_is_left_out_and_then_removed() {
    let state = tempfile::tempdir().unwrap();
    let mut folder = opened(state.path());
    let period = day(FIVE);
    folder.add(&chunk(FIVE, "ada", 1)).unwrap();
    let path = folder.path(Day::of_hour(FIVE));
    let whole = fs::read(&path).unwrap();
    folder.add(&chunk(FIVE, "ada", 2)).unwrap();
    let longer = fs::read(&path).unwrap();
    // Wherever a crash cut it, in the header too.
    for end in 0..longer.len() {
        fs::write(&path, &longer[..end]).unwrap();
        let kept = if end < whole.len() { 0 } else { 1 };
        assert_eq!(admitted(&folder, period, "ada"), kept, "cut at {end}");
        opened(state.path()).add(&chunk(FIVE, "bob", 5)).unwrap();
        assert_eq!(admitted(&folder, period, "ada"), kept, "cut at {end}");
        assert_eq!(admitted(&folder, period, "bob"), 5, "cut at {end}");
    }
}

#[test]
fn a_damaged_line_is_told_and_its_file_not_used() {
    let state = tempfile::tempdir().unwrap();
    let mut folder = opened(state.path());
    let period = day(FIVE);
    folder.add(&chunk(FIVE, "ada", 1)).unwrap();
    folder.add(&chunk(FIVE, "ada", 1)).unwrap();
    let path = folder.path(Day::of_hour(FIVE));
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
    let day = Day::of_hour(FIVE);
    let mut many = chunk(FIVE, "ada", 1);
    many.rows = (0..2_000)
        .map(|number| chunk(FIVE, &format!("key-{number}"), 1).rows.remove(0))
        .collect();
    let mut longest = 0;
    for number in 0..40 {
        many.hour = FIVE + number % 2;
        folder.add(&many).unwrap();
        longest = longest.max(fs::metadata(folder.path(day)).unwrap().len());
    }
    let sums = folder.sums[&day];
    assert!(longest > SLACK_BYTES, "{longest}");
    assert!(longest < 3 * sums + 2 * SLACK_BYTES, "{longest}, {sums}");
    let periods = [
        Period::Day(day),
        Period::Hour(FIVE),
        Period::Hour(FIVE + 1),
        Period::Hour(FIVE + 2),
    ];
    let kept = periods.map(|period| admitted(&folder, period, "key-1999"));
    assert_eq!(kept, [40, 20, 20, 0]);
    let rows = opened(state.path()).read(Period::Day(day)).unwrap();
    assert_eq!(rows.len(), 2_000);
}

#[test]
fn the_oldest_files_go_and_a_clock_that_was_wrong_takes_nothing_along() {
    let state = tempfile::tempdir().unwrap();
    let mut folder = FolderUsage::new(state.path(), Retention { days: 3 });
    let far = FIVE + 24 * 1_000_000;
    for hour in [FIVE - 48, FIVE - 24, far, FIVE] {
        folder.add(&chunk(hour, "ada", 1)).unwrap();
    }
    let kept = |hour| admitted(&folder, day(hour), "ada");
    assert_eq!([FIVE - 48, FIVE - 24, FIVE, far].map(kept), [0, 1, 1, 1]);
}

#[test]
fn only_the_owner_may_read_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let state = tempfile::tempdir().unwrap();
    let mut folder = opened(&state.path().join("state"));
    folder.add(&chunk(FIVE, "ada", 1)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path(Day::of_hour(FIVE))), 0o600);
    assert_eq!(mode(&state.path().join("state/usage")), 0o700);
}
