//! A replay's report, for people and for spreadsheets.

use std::fmt::Write as _;

use crate::replay::report::{Refused, Report};

/// The report as tables.
pub(super) fn table(report: &Report) -> String {
    let mut text = summary(report);
    if !report.rules.is_empty() {
        let head = ["rule", "limit", "asked", "refused", "first", "last"];
        text += &format!("\nBy rule\n{}", aligned(&head, &by_rule(report)));
    }
    if !report.refusals.is_empty() {
        let head = ["who", "rule", "limit", "refused", "first", "last"];
        text += &format!("\nMost refused\n{}", aligned(&head, &by_who(report)));
        if report.refusals_short_by > 0 {
            let short = report.refusals_short_by;
            let _ = writeln!(
                text,
                "(too many to tell all apart: any of these may lack {short})"
            );
        }
    }
    text
}

fn summary(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        let _ = writeln!(text, "{line}");
    };
    let (requests, refused) = (report.requests, report.refused);
    let percent = 100.0 * refused as f64 / requests.max(1) as f64;
    line(format!(
        "{refused} of {requests} requests would be refused ({percent:.2} %)"
    ));
    if let Some(versus) = &report.old {
        line(format!(
            "old plans: {} refused; the new ones refuse {} that passed, and let {} pass that did not",
            versus.refused, versus.newly_refused, versus.newly_admitted
        ));
    }
    if let Some(then) = report.refused_then {
        line(format!("when they came, limits refused {then} of them"));
    }
    if let (Some(first), Some(last)) = (&report.first, &report.last) {
        line(format!("from {first} to {last}"));
    }
    let more = [
        (report.not_asked, "nobody would be asked about"),
        (
            report.late,
            "decided as of a later moment, so far out of order they stand",
        ),
        (
            report.forgotten_buckets,
            "part-used buckets forgotten for want of room (--max-buckets)",
        ),
    ];
    for (count, what) in more.into_iter().filter(|(count, _)| *count > 0) {
        line(format!("{what}: {count}"));
    }
    for (what, count) in &report.not_judged {
        line(format!(
            "not judged, as the log does not tell {what}: {count}"
        ));
    }
    if report.bad > 0 {
        line(format!("lines that are no requests: {}", report.bad));
    }
    for bad in &report.bad_lines {
        line(format!("  {bad}"));
    }
    text
}

/// A row per rule, and one per limit that refused.
fn by_rule(report: &Report) -> Vec<[String; 6]> {
    let mut rows = Vec::new();
    for rule in &report.rules {
        let name = format!("{}: {}", rule.domain, rule.rule);
        let refused = match rule.shadow_over {
            0 => rule.over.to_string(),
            over => format!("{} (shadow: {over})", rule.over),
        };
        let none = String::new;
        rows.push([
            name,
            none(),
            rule.asked.to_string(),
            refused,
            none(),
            none(),
        ]);
        rows.extend(rule.decided.iter().map(|by| {
            let refused = counted(by.refused, by.newly_refused, report);
            let (first, last) = (by.first.clone(), by.last.clone());
            [none(), by.limit.clone(), none(), refused, first, last]
        }));
    }
    rows
}

fn by_who(report: &Report) -> Vec<[String; 6]> {
    let row = |of: &Refused| {
        let refused = counted(of.refused, of.newly_refused, report);
        let (who, rule, limit) = (of.who.clone(), of.rule.clone(), of.limit.clone());
        [who, rule, limit, refused, of.first.clone(), of.last.clone()]
    };
    report.refusals.iter().map(row).collect()
}

fn counted(refused: u64, newly: u64, report: &Report) -> String {
    match report.old {
        Some(_) => format!("{refused} ({newly} new)"),
        None => refused.to_string(),
    }
}

fn aligned(head: &[&str; 6], rows: &[[String; 6]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().zip(&widths);
        let padded: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("  {}\n", padded.join("  ").trim_end())
    };
    let rows = rows
        .iter()
        .map(|row| line(row.iter().map(String::as_str).collect()));
    line(head.to_vec()) + &rows.collect::<String>()
}

/// Who was refused by what, a row each.
pub(super) fn csv(report: &Report) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for refused in &report.refusals {
        writer
            .serialize(refused)
            .expect("memory takes everything, and rows are flat");
    }
    if report.refusals.is_empty() {
        let head = [
            "domain",
            "who",
            "rule",
            "limit",
            "refused",
            "newly_refused",
            "first",
            "last",
        ];
        writer.write_record(head).expect("memory takes everything");
    }
    let bytes = writer.into_inner().expect("memory takes everything");
    String::from_utf8(bytes).expect("rows are text")
}
