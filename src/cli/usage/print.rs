//! A report on stdout.

use crate::usage::{Report, ReportRow};

const COLUMNS: [&str; 9] = [
    "period", "domain", "key", "owner", "tier", "limit", "admitted", "refused", "overage",
];

/// Columns from here on are numbers.
const NUMBERS: usize = 6;

/// For people. What nobody said is `-`.
pub fn table(report: &Report) -> String {
    let rows: Vec<_> = report.rows.iter().map(|row| cells(row, "-")).collect();
    let mut widths = COLUMNS.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = line(&COLUMNS.map(str::to_owned), &widths);
    for row in &rows {
        text += &line(row, &widths);
    }
    if rows.is_empty() {
        let Report { from, to, .. } = report;
        text = format!("no usage from {from} to {to}\n");
    }
    text
}

fn line(cells: &[String; 9], widths: &[usize; 9]) -> String {
    let columns = cells.iter().zip(widths).enumerate();
    let padded = columns.map(|(column, (cell, width))| match column < NUMBERS {
        true => format!("{cell:width$}"),
        false => format!("{cell:>width$}"),
    });
    padded.collect::<Vec<_>>().join("  ") + "\n"
}

/// For spreadsheets: RFC 4180, with a line of names. What nobody said is empty.
pub fn csv(report: &Report) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let rows = report.rows.iter().map(|row| cells(row, ""));
    let lines = [COLUMNS.map(str::to_owned)].into_iter().chain(rows);
    for line in lines {
        writer.write_record(line).expect("written to memory");
    }
    let bytes = writer.into_inner().expect("written to memory");
    String::from_utf8(bytes).expect("made of texts")
}

/// For scripts.
pub fn json(report: &Report) -> String {
    serde_json::to_string_pretty(report).expect("texts and numbers only")
}

fn cells(row: &ReportRow, nobody: &str) -> [String; 9] {
    let said = |text: &Option<String>| text.as_deref().unwrap_or(nobody).to_owned();
    [
        row.period.clone(),
        row.domain.clone(),
        said(&row.key),
        said(&row.owner),
        said(&row.tier),
        row.limit.clone(),
        row.admitted.to_string(),
        row.refused.to_string(),
        row.overage.to_string(),
    ]
}
