//! The lines of a report: what has been counted since the last one that arrived.

use std::{collections::HashMap, fmt::Write as _};

use super::super::reference::Reference;
use crate::{
    histogram::Histogram,
    settings::{Mogrifier, StatsdSettings, TagStyle},
};

/// Writes reports, and remembers what has arrived.
pub(super) struct Lines {
    tags: Vec<(String, String)>,
    tag_style: TagStyle,
    mogrifiers: Vec<Mogrifier>,
    arrived: Values,
}

/// Values of counters since the process started.
#[derive(Default)]
struct Values {
    counts: HashMap<String, u64>,
    /// Response times by bucket.
    times: Vec<u64>,
}

/// A report, and what it brings the server up to.
pub(super) struct Report {
    pub(super) text: String,
    upto: Values,
}

impl Lines {
    pub(super) fn new(settings: &StatsdSettings) -> Self {
        Self {
            tags: settings.tags.clone(),
            tag_style: settings.tag_style,
            mogrifiers: settings.mogrifiers.clone(),
            arrived: Values::default(),
        }
    }

    /// What has been counted since the last report that arrived.
    pub(super) fn since_last(&self, reference: &Reference) -> Report {
        let mut report = Report {
            text: String::new(),
            upto: Values::default(),
        };
        for count in reference.counts() {
            *report.upto.counts.entry(count.name).or_default() += count.value;
        }
        for (name, value) in &report.upto.counts {
            let before = self.arrived.counts.get(name).copied().unwrap_or(0);
            // A counter that was forgotten and came back begins at zero again.
            let grown = value.checked_sub(before).unwrap_or(*value);
            if grown > 0 {
                self.line(&mut report.text, name, format_args!("{grown}|c"));
            }
        }
        let (name, times) = reference.response_times();
        self.times(&mut report, &name, times);
        report
    }

    pub(super) fn arrived(&mut self, report: Report) {
        self.arrived = report.upto;
    }

    /// A line per bucket: its upper bound in milliseconds, for as many calls as the sample rate says.
    fn times(&self, report: &mut Report, name: &str, times: &Histogram) {
        let buckets: Vec<(Option<u64>, u64)> = times.buckets().collect();
        let mut longest = 0;
        for (index, (bound, count)) in buckets.into_iter().enumerate() {
            longest = bound.unwrap_or(longest);
            report.upto.times.push(count);
            let grown = count - self.arrived.times.get(index).unwrap_or(&0);
            let (millis, rate) = (longest as f64 / 1e6, 1.0 / grown as f64);
            match grown {
                0 => {}
                1 => self.line(&mut report.text, name, format_args!("{millis}|ms")),
                _ => self.line(&mut report.text, name, format_args!("{millis}|ms|@{rate}")),
            }
        }
    }

    fn line(&self, text: &mut String, name: &str, value: std::fmt::Arguments<'_>) {
        let mogrified = self
            .mogrifiers
            .iter()
            .find_map(|mogrifier| mogrifier.apply(name));
        let (name, more) = mogrified.unwrap_or_else(|| (name.to_owned(), Vec::new()));
        let mut tags = self.tags.iter().chain(&more).peekable();
        let written = match self.tag_style {
            TagStyle::InName => {
                text.push_str(&name);
                tags.try_for_each(|(key, tag)| write!(text, ".__{key}={tag}"))
                    .and_then(|()| write!(text, ":{value}"))
            }
            TagStyle::Dog => {
                let mut sign = if tags.peek().is_some() { "|#" } else { "" };
                write!(text, "{name}:{value}").and_then(|()| {
                    tags.try_for_each(|(key, tag)| {
                        write!(text, "{}{key}:{tag}", std::mem::replace(&mut sign, ","))
                    })
                })
            }
        };
        written.expect("a String takes all that is written to it");
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        metrics::Metrics,
        plan::{Plans, SharedPlans},
        statistics::Statistics,
    };

    struct Counted {
        metrics: Arc<Metrics>,
        statistics: Arc<Statistics>,
        reference: Reference,
    }

    fn counted() -> Counted {
        let metrics = Arc::new(Metrics::new());
        let statistics = Arc::new(Statistics::new(0.8));
        let plans = Plans::from_texts(&[("plans.yaml", "domain: shop\n")]).unwrap();
        let plans = Arc::new(SharedPlans::fixed(plans));
        let reference = Reference::new(statistics.clone(), plans, metrics.clone(), false);
        Counted {
            metrics,
            statistics,
            reference,
        }
    }

    fn lines(tag_style: TagStyle, tags: &[(&str, &str)], mogrifiers: Vec<Mogrifier>) -> Lines {
        let tags = tags.iter();
        let tags = tags.map(|(key, tag)| ((*key).to_owned(), (*tag).to_owned()));
        Lines::new(&StatsdSettings {
            to: "localhost:8125".parse().unwrap(),
            flush_interval: Duration::from_secs(1),
            tags: tags.collect(),
            tag_style,
            mogrifiers,
        })
    }

    const UNKNOWN: &str = "ratelimit.service.rate_limit.nosuch.domain_not_found";

    #[test]
    fn what_has_not_arrived_is_reported_again() {
        let counted = counted();
        let mut lines = lines(TagStyle::Dog, &[], Vec::new());
        let arrived = lines.since_last(&counted.reference);
        assert_eq!(arrived.text, "ratelimit.service.config_load_success:1|c\n");
        lines.arrived(arrived);
        counted.statistics.unknown_domain("nosuch", 2);
        let lost = lines.since_last(&counted.reference);
        assert_eq!(lost.text, format!("{UNKNOWN}:2|c\n"));
        counted.statistics.unknown_domain("nosuch", 1);
        let arrived = lines.since_last(&counted.reference);
        assert_eq!(arrived.text, format!("{UNKNOWN}:3|c\n"));
        lines.arrived(arrived);
        assert_eq!(lines.since_last(&counted.reference).text, "");
    }

    #[test]
    fn response_times_say_how_many_they_are() {
        let counted = counted();
        let mut lines = lines(TagStyle::Dog, &[], Vec::new());
        lines.arrived(lines.since_last(&counted.reference));
        for micros in [7, 8, 10, 60, 2_000_000] {
            counted
                .metrics
                .latency
                .observe(Duration::from_micros(micros));
        }
        let report = lines.since_last(&counted.reference);
        let name = "ratelimit_server.ShouldRateLimit.response_time";
        let rate = 1.0 / 3.0;
        assert_eq!(
            report.text,
            format!("{name}:0.01|ms|@{rate}\n{name}:0.1|ms\n{name}:1000|ms\n")
        );
        lines.arrived(report);
        assert_eq!(lines.since_last(&counted.reference).text, "");
    }

    #[test]
    fn tags_stand_where_the_server_looks_for_them() {
        let counted = counted();
        let tags = [("env", "test"), ("zone", "a")];
        let report = lines(TagStyle::Dog, &tags, Vec::new()).since_last(&counted.reference);
        assert_eq!(
            report.text,
            "ratelimit.service.config_load_success:1|c|#env:test,zone:a\n"
        );
        let report = lines(TagStyle::InName, &tags, Vec::new()).since_last(&counted.reference);
        assert_eq!(
            report.text,
            "ratelimit.service.config_load_success.__env=test.__zone=a:1|c\n"
        );
    }

    #[test]
    fn mogrifiers_give_other_names_and_more_tags() {
        let counted = counted();
        let mogrifier = Mogrifier {
            pattern: regex::Regex::new(r"^ratelimit\.service\.config_load_(.*)$").unwrap(),
            name: "config".to_owned(),
            tags: vec![("result".to_owned(), "$1".to_owned())],
        };
        let lines = lines(TagStyle::Dog, &[("env", "test")], vec![mogrifier]);
        let report = lines.since_last(&counted.reference);
        assert_eq!(report.text, "config:1|c|#env:test,result:success\n");
    }
}
