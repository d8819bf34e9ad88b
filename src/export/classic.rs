//! OpenMetrics text as Prometheus' older text format, version 0.0.4.
//!
//! The older format lets a counter have any name, and envoyproxy/ratelimit's have no `_total`. The encoder knows OpenMetrics
//! alone, where every counter's sample ends so.

/// What becomes of the `_total` of a counter's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Total {
    /// It stays, and the family is named so too.
    Kept,
    /// It goes.
    Dropped,
}

/// Appends `openmetrics` to `page`.
pub fn append(page: &mut String, openmetrics: &str, total: Total) {
    let mut family = Family::default();
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(text) = line.strip_prefix("# HELP ") {
            help = text.split_once(' ').map(|(_, help)| help);
        } else if let Some(text) = line.strip_prefix("# TYPE ") {
            family = Family::new(text, total);
            if let Some(help) = help.take() {
                *page += &format!("# HELP {} {help}\n", family.name);
            }
            *page += &format!("# TYPE {} {}\n", family.name, family.kind);
        } else if !line.starts_with('#') {
            let sample = match line.strip_prefix(&family.sample) {
                Some(rest) if !family.sample.is_empty() => [family.name.as_str(), rest],
                _ => ["", line],
            };
            page.extend(sample);
            page.push('\n');
        }
    }
}

/// The family whose samples come.
#[derive(Default)]
struct Family {
    name: String,
    kind: &'static str,
    /// How OpenMetrics begins its samples, where that changes.
    sample: String,
}

impl Family {
    /// From what follows `# TYPE `.
    fn new(text: &str, total: Total) -> Self {
        let (name, kind) = text.split_once(' ').unwrap_or((text, ""));
        let (suffix, kind) = match kind {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            "gauge" => ("", "gauge"),
            "histogram" => ("", "histogram"),
            _ => ("", "untyped"),
        };
        let dropped = kind == "counter" && total == Total::Dropped;
        Self {
            name: format!("{name}{}", if dropped { "" } else { suffix }),
            kind,
            sample: match dropped {
                true => format!("{name}{suffix}"),
                false => String::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENMETRICS: &str = "\
# HELP build What runs here.
# TYPE build info
build_info{version=\"1\"} 1
# HELP hits Hits.
# TYPE hits counter
hits_total{key=\"# a hits_total\"} 2
# HELP up Whether.
# TYPE up gauge
up 1
# HELP wait_seconds Waits.
# TYPE wait_seconds histogram
# UNIT wait_seconds seconds
wait_seconds_sum 0.5
wait_seconds_bucket{le=\"+Inf\"} 1
# EOF
";

    #[test]
    fn counters_keep_their_total_and_are_named_so() {
        let mut page = String::new();
        append(&mut page, OPENMETRICS, Total::Kept);
        assert_eq!(
            page,
            "\
# HELP build_info What runs here.
# TYPE build_info gauge
build_info{version=\"1\"} 1
# HELP hits_total Hits.
# TYPE hits_total counter
hits_total{key=\"# a hits_total\"} 2
# HELP up Whether.
# TYPE up gauge
up 1
# HELP wait_seconds Waits.
# TYPE wait_seconds histogram
wait_seconds_sum 0.5
wait_seconds_bucket{le=\"+Inf\"} 1
"
        );
    }

    #[test]
    fn counters_lose_their_total() {
        let mut page = String::new();
        append(&mut page, OPENMETRICS, Total::Dropped);
        assert!(
            page.contains("# TYPE hits counter\nhits{key=\"# a hits_total\"} 2\n"),
            "{page}"
        );
        assert!(page.contains("build_info{version=\"1\"} 1\n"), "{page}");
    }
}
