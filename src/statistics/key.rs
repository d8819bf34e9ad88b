//! Names of rules in the statistics: `DOMAIN.KEY_VALUE.KEY`, one part per level.

use std::{borrow::Cow, sync::LazyLock};

use regex::{Captures, Regex};
use smallvec::SmallVec;

/// The name of a rule. Two keys of the same text are the same key.
#[derive(Debug, Clone)]
pub struct StatKey {
    text: Box<str>,
    /// Where the domain ends, and the first two levels, as far as there are any.
    ends: SmallVec<[u32; 3]>,
}

impl PartialEq for StatKey {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for StatKey {}

impl std::hash::Hash for StatKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl StatKey {
    /// The key of these levels of a domain. What a statistics line could not hold is replaced, as [`sanitized`] says.
    pub fn new<L: AsRef<str>>(domain: &str, levels: impl IntoIterator<Item = L>) -> Self {
        let mut text = sanitized(domain).into_owned();
        let mut ends = SmallVec::new();
        ends.push(text.len() as u32);
        for level in levels {
            text.push('.');
            text.push_str(&sanitized(level.as_ref()));
            if ends.len() < 3 {
                ends.push(text.len() as u32);
            }
        }
        Self {
            text: text.into(),
            ends,
        }
    }

    /// The whole key.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The domain.
    pub fn domain(&self) -> &str {
        &self.text[..self.ends[0] as usize]
    }

    /// The first two levels; a dot in one of them stays in it.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.ends
            .windows(2)
            .map(|ends| &self.text[ends[0] as usize + 1..ends[1] as usize])
    }
}

/// A level's text: its key, and its value if there is one.
pub fn level<'a>(key: &'a str, value: &str) -> Cow<'a, str> {
    match value {
        "" => key.into(),
        _ => format!("{key}_{value}").into(),
    }
}

/// Source: envoyproxy/ratelimit: `:` and `|`, and the dots of an IPv4 address, become `_`. A line break would end a line of
/// StatsD, which the reference does not guard against.
pub fn sanitized(text: &str) -> Cow<'_, str> {
    static IPV4: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}").expect("a constant"));
    let ends_a_name = |c: char| matches!(c, ':' | '|') || c.is_control();
    let mut clean = Cow::Borrowed(text);
    if text.contains(ends_a_name) {
        clean = text.replace(ends_a_name, "_").into();
    }
    if clean.contains('.') && IPV4.is_match(&clean) {
        let underlined = |found: &Captures<'_>| found[0].replace('.', "_");
        clean = IPV4.replace_all(&clean, underlined).into_owned().into();
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_line_could_not_hold_is_replaced() {
        for (text, clean) in [
            ("tenant_a:b|c", "tenant_a_b_c"),
            ("ip_10.1.2.3", "ip_10_1_2_3"),
            ("net_10.0.0.0/8", "net_10_0_0_0/8"),
            ("x_1.2.3.4.5.6.7.8", "x_1_2_3_4.5_6_7_8"),
            ("version_1.2.3", "version_1.2.3"),
            ("path_/a.b*", "path_/a.b*"),
            ("a\nb", "a_b"),
        ] {
            assert_eq!(sanitized(text), clean);
        }
    }

    #[test]
    fn a_dot_in_a_value_shifts_no_level() {
        let key = StatKey::new("shop.eu", ["host_a.example", "path", "third", "fourth"]);
        assert_eq!(key.text(), "shop.eu.host_a.example.path.third.fourth");
        assert_eq!(key.domain(), "shop.eu");
        assert_eq!(key.levels().collect::<Vec<_>>(), ["host_a.example", "path"]);
        assert_eq!(StatKey::new("d", [""; 0]).levels().count(), 0);
    }
}
