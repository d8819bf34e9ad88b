//! Which statistics are kept under the names of envoyproxy/ratelimit, and who gets them.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use regex::{Captures, Regex};

use super::{Address, Mapping};

/// Statistics and metrics beyond the page of the HTTP address.
#[derive(Debug, Clone)]
pub struct StatisticsSettings {
    /// Whether metrics pages show the names of envoyproxy/ratelimit beside our own.
    pub on_pages: bool,
    /// Where a metrics page is served, apart from the HTTP address.
    pub metrics_listen: Option<Address>,
    /// The path of that page.
    pub metrics_path: String,
    /// What pages call the metrics of envoyproxy/ratelimit; as its own mapping does if none.
    pub mapping: Option<Arc<Mapping>>,
    /// Whether `ratelimit_service_response_time_seconds` holds milliseconds, as dashboards may expect that were made for a
    /// mapping without scale.
    pub response_time_in_ms: bool,
    /// The part of a limit beyond which hits count as near it.
    pub near_limit_ratio: f32,
    /// Who gets them pushed.
    pub statsd: Option<StatsdSettings>,
}

impl Default for StatisticsSettings {
    fn default() -> Self {
        Self {
            on_pages: false,
            metrics_listen: None,
            metrics_path: "/metrics".to_owned(),
            mapping: None,
            response_time_in_ms: false,
            near_limit_ratio: 0.8,
            statsd: None,
        }
    }
}

impl StatisticsSettings {
    /// Whether anybody sees the statistics, so that they are worth counting.
    pub fn are_wanted(&self) -> bool {
        self.on_pages || self.statsd.is_some()
    }
}

/// A StatsD server, and what it is told.
#[derive(Debug, Clone)]
pub struct StatsdSettings {
    /// The server.
    pub to: StatsdAddress,
    /// Time between two reports.
    pub flush_interval: Duration,
    /// Tags of every line.
    pub tags: Vec<(String, String)>,
    /// How tags are written.
    pub tag_style: TagStyle,
    /// Other names for lines that match; the first match counts.
    pub mogrifiers: Vec<Mogrifier>,
}

/// How tags are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagStyle {
    /// As DogStatsD has it: `name:1|c|#key:value`.
    Dog,
    /// As envoyproxy/ratelimit does without DogStatsD: `name.__key=value:1|c`.
    InName,
}

/// Where a StatsD server listens: `tcp://HOST:PORT` or `udp://HOST:PORT`; TCP if neither is said. The name is looked up at
/// each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatsdAddress {
    /// How to talk to it.
    pub protocol: Protocol,
    /// `HOST:PORT`.
    pub host: String,
}

/// How to talk to a StatsD server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A stream of lines.
    Tcp,
    /// Datagrams of lines.
    Udp,
}

/// The text names no StatsD server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no StatsD server: write tcp://HOST:PORT or udp://HOST:PORT")]
pub struct StatsdAddressError {
    text: String,
}

impl FromStr for StatsdAddress {
    type Err = StatsdAddressError;

    fn from_str(text: &str) -> Result<Self, StatsdAddressError> {
        let (protocol, host) = match text.split_once("://") {
            None => (Some(Protocol::Tcp), text),
            Some(("tcp", host)) => (Some(Protocol::Tcp), host),
            Some(("udp", host)) => (Some(Protocol::Udp), host),
            Some((_, host)) => (None, host),
        };
        let parts = host.rsplit_once(':');
        let whole = parts.is_some_and(|(name, port)| {
            !name.is_empty() && !name.contains('/') && port.parse().is_ok_and(|port: u16| port > 0)
        });
        match protocol {
            Some(protocol) if whole => Ok(Self {
                protocol,
                host: host.to_owned(),
            }),
            _ => Err(StatsdAddressError {
                text: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for StatsdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol}://{}", self.host)
    }
}

/// Gives a name that matches a pattern another name and tags, in which `$1` stands for the pattern's first group, and so on.
/// Source: envoyproxy/ratelimit's DOG_STATSD_MOGRIFIER variables.
#[derive(Debug, Clone)]
pub struct Mogrifier {
    /// Which names it changes.
    pub pattern: Regex,
    /// The new name.
    pub name: String,
    /// Tags and their values.
    pub tags: Vec<(String, String)>,
}

impl Mogrifier {
    /// The new name and tags of a name that matches.
    pub fn apply(&self, name: &str) -> Option<(String, Vec<(String, String)>)> {
        let found = self.pattern.captures(name)?;
        let tags = self.tags.iter();
        let tags = tags.map(|(key, value)| (key.clone(), filled(value, &found)));
        Some((filled(&self.name, &found), tags.collect()))
    }
}

/// `template` with the groups of `found`; what names no group stays.
fn filled(template: &str, found: &Captures<'_>) -> String {
    let mut parts = template.split('$');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = part.split_at(digits);
        match number
            .parse()
            .ok()
            .filter(|group: &usize| *group < found.len())
        {
            Some(group) => out += found.get(group).map_or("", |group| group.as_str()),
            None => {
                out.push('$');
                out += number;
            }
        }
        out += rest;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_statsd_servers() {
        for (text, shown) in [
            ("localhost:8125", "tcp://localhost:8125"),
            ("tcp://10.0.0.1:1", "tcp://10.0.0.1:1"),
            ("udp://[::1]:8125", "udp://[::1]:8125"),
        ] {
            assert_eq!(text.parse::<StatsdAddress>().unwrap().to_string(), shown);
        }
        for wrong in [
            "",
            "localhost",
            ":8125",
            "http://a:1",
            "a:b",
            "a:0",
            "a:70000",
            "a/b:1",
        ] {
            let error = wrong.parse::<StatsdAddress>().unwrap_err();
            assert!(error.to_string().contains("tcp://HOST:PORT"), "{wrong}");
        }
    }

    #[test]
    fn a_mogrifier_fills_in_what_it_found() {
        let mogrifier = Mogrifier {
            pattern: Regex::new(r"^ratelimit\.service\.rate_limit\.(\w+)\.(.*)\.(\w+)$").unwrap(),
            name: "ratelimit.$3_$9$".to_owned(),
            tags: vec![
                ("domain".to_owned(), "$1".to_owned()),
                ("key".to_owned(), "k-$2".to_owned()),
            ],
        };
        let (name, tags) = mogrifier
            .apply("ratelimit.service.rate_limit.shop.user_vip.a.total_hits")
            .unwrap();
        assert_eq!(name, "ratelimit.total_hits_$9$");
        assert_eq!(
            tags,
            [
                ("domain".to_owned(), "shop".to_owned()),
                ("key".to_owned(), "k-user_vip.a".to_owned())
            ]
        );
        assert!(
            mogrifier
                .apply("ratelimit.service.config_load_success")
                .is_none()
        );
    }
}
