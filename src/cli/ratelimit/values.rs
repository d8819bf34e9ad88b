//! Values of environment variables as Go reads them, and a reader that notes every one that cannot be read.
//!
//! Source: envoyproxy/ratelimit reads them with kelseyhightower/envconfig, that is by Go's `strconv` and `time`.

use std::{
    borrow::Cow, collections::BTreeSet, ffi::OsString, fmt, num::NonZeroU32, time::Duration,
};

/// Reads variables one by one.
pub struct Reader<'v> {
    lookup: &'v dyn Fn(&str) -> Option<OsString>,
    /// Every name that was asked for.
    pub names: BTreeSet<Cow<'static, str>>,
    /// Those that are set to something else than their default.
    pub changed: BTreeSet<Cow<'static, str>>,
    /// What cannot be read.
    pub errors: Vec<VariableError>,
    /// What is not taken as it is written, and what is done instead.
    pub notes: Vec<String>,
}

/// A variable whose value cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: `{value}` is not {expected}")]
pub struct VariableError {
    /// Which one.
    pub name: Cow<'static, str>,
    /// What it is set to. None that may be a secret can be wrong: those are texts.
    pub value: String,
    /// What it must be.
    pub expected: Cow<'static, str>,
}

impl<'v> Reader<'v> {
    /// Reads what `lookup` finds by name.
    pub fn new(lookup: &'v dyn Fn(&str) -> Option<OsString>) -> Self {
        Self {
            lookup,
            names: BTreeSet::new(),
            changed: BTreeSet::new(),
            errors: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The value of the variable `name`; the default where it is not set, or cannot be read, which is an error.
    pub fn read<T: GoValue>(&mut self, name: impl Into<Cow<'static, str>>, default: T) -> T {
        let name = name.into();
        self.names.insert(name.clone());
        let Some(value) = (self.lookup)(&name) else {
            return default;
        };
        let value = value.to_string_lossy().into_owned();
        if T::below_zero(&value) {
            let note = format!("{name}: `{value}` is less than nothing, and counts as 0");
            self.notes.push(note);
        }
        match T::parse(&value) {
            Some(read) if read == default => default,
            Some(read) => {
                self.changed.insert(name);
                read
            }
            None => {
                self.errors.push(VariableError {
                    name,
                    value,
                    expected: T::expected(),
                });
                default
            }
        }
    }

    /// The same for what no value keeps the reference from starting: where it cannot be read, the default is taken, which `instead`
    /// names, and that is noted. Set to nothing is not set.
    pub fn read_or<T: GoValue>(
        &mut self,
        name: &'static str,
        default: T,
        instead: impl fmt::Display,
    ) -> T {
        self.names.insert(name.into());
        let value = (self.lookup)(name).unwrap_or_default();
        let value = value.to_string_lossy();
        match (value.trim(), T::parse(value.trim())) {
            ("", _) => default,
            (_, Some(read)) => {
                if read != default {
                    self.changed.insert(name.into());
                }
                read
            }
            (value, None) => {
                let expected = T::expected();
                let note = format!("{name}: `{value}` is not {expected}; it counts as {instead}");
                self.notes.push(note);
                default
            }
        }
    }

    /// Text, by default that one.
    pub fn text(&mut self, name: impl Into<Cow<'static, str>>, default: &str) -> String {
        self.read(name, default.to_owned())
    }
}

/// A type of value that a variable may have.
pub trait GoValue: PartialEq + Sized {
    /// Reads it.
    fn parse(text: &str) -> Option<Self>;

    /// For messages: "a port".
    fn expected() -> Cow<'static, str>;

    /// Whether the text says less than 0 where nothing is less.
    fn below_zero(_: &str) -> bool {
        false
    }
}

impl GoValue for String {
    fn parse(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }

    fn expected() -> Cow<'static, str> {
        "text".into()
    }
}

impl GoValue for bool {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        }
    }

    fn expected() -> Cow<'static, str> {
        "a truth value: write true or false".into()
    }
}

impl GoValue for i64 {
    // Base 0 of strconv.ParseInt: the prefix tells the base, and `_` may part digits.
    fn parse(text: &str) -> Option<Self> {
        let (sign, digits) = signed(text);
        let digits = digits.replace('_', "");
        let (digits, base) = match digits.as_bytes() {
            [b'0', b'x' | b'X', ..] => (&digits[2..], 16),
            [b'0', b'o' | b'O', ..] => (&digits[2..], 8),
            [b'0', b'b' | b'B', ..] => (&digits[2..], 2),
            [b'0', _, ..] => (&digits[1..], 8),
            _ => (&*digits, 10),
        };
        let plain = digits.bytes().all(|digit| digit.is_ascii_alphanumeric());
        let read = Self::from_str_radix(&format!("{sign}{digits}"), base);
        read.ok().filter(|_| plain)
    }

    fn expected() -> Cow<'static, str> {
        "a whole number".into()
    }
}

/// The sign and the rest.
fn signed(text: &str) -> (&str, &str) {
    match text.as_bytes() {
        [b'+' | b'-', ..] => text.split_at(1),
        _ => ("", text),
    }
}

/// A port. Any number is read: one that is no port does no harm where nobody listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port(pub i64);

impl Port {
    /// The port, if it is one.
    ///
    /// # Errors
    /// What it should be.
    pub fn get(self) -> Result<u16, String> {
        let port = self.0.try_into();
        port.map_err(|_| format!("`{}` is not {}", self.0, Self::expected()))
    }
}

impl GoValue for Port {
    fn parse(text: &str) -> Option<Self> {
        i64::parse(text).map(Self)
    }

    fn expected() -> Cow<'static, str> {
        "a port: a whole number from 0 to 65535".into()
    }
}

/// Milliseconds, as OpenTelemetry's `OTEL_EXPORTER_OTLP_TIMEOUT` has them; not 0, which would leave no time at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Millis(pub NonZeroU32);

impl GoValue for Millis {
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }

    fn expected() -> Cow<'static, str> {
        "a number of milliseconds".into()
    }
}

impl GoValue for f64 {
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn expected() -> Cow<'static, str> {
        "a number, like 0.8".into()
    }
}

impl GoValue for Duration {
    // Where Go takes a time that is less than nothing, it does what it does with none.
    fn parse(text: &str) -> Option<Self> {
        let (sign, mut rest) = signed(text);
        if rest == "0" {
            return Some(Self::ZERO);
        }
        let mut nanos: u64 = 0;
        while !rest.is_empty() || nanos == 0 {
            let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (number, after) = rest.split_at(number);
            let (unit, after) = UNITS
                .iter()
                .find_map(|(name, nanos)| Some((*nanos, after.strip_prefix(name)?)))?;
            nanos = nanos.checked_add(parts(number, unit)?)?;
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        Some(match sign {
            "-" => Self::ZERO,
            _ => Self::from_nanos(nanos),
        })
    }

    fn below_zero(text: &str) -> bool {
        text.starts_with('-')
            && Self::parse(text).is_some()
            && Self::parse(&text[1..]) != Some(Self::ZERO)
    }

    fn expected() -> Cow<'static, str> {
        "a duration: write 10s, 150us or 1h30m".into()
    }
}

/// Units of durations in nanoseconds; those whose names begin like others come first.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// `number` of `unit`, in nanoseconds; a fraction of one is cut.
fn parts(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u64 = match whole {
        "" => 0,
        whole => whole.parse().ok()?,
    };
    let mut nanos = whole.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        nanos =
            nanos.checked_add(u64::from(digit.checked_sub(b'0').filter(|d| *d < 10)?) * place)?;
    }
    Some(nanos)
}

/// Names and texts, in the order written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pairs(pub Vec<(String, String)>);

impl GoValue for Pairs {
    fn parse(text: &str) -> Option<Self> {
        let pair = |pair: &str| {
            let (name, value) = pair.split_once(':')?;
            Some((name.to_owned(), value.to_owned()))
        };
        match text.trim() {
            "" => Some(Self::default()),
            text => Some(Self(text.split(',').map(pair).collect::<Option<_>>()?)),
        }
    }

    fn expected() -> Cow<'static, str> {
        "a list of pairs: write name:value,name:value".into()
    }
}

/// Texts, in the order written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct List(pub Vec<String>);

impl GoValue for List {
    fn parse(text: &str) -> Option<Self> {
        let items = text.split(',').filter(|item| !item.trim().is_empty());
        Some(Self(items.map(str::to_owned).collect()))
    }

    fn expected() -> Cow<'static, str> {
        "a list, with commas between".into()
    }
}

/// Declares an enum that is read from one of a few words, in any letter case.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($word:ident = $($text:literal)|+),+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the variable's words")]
        pub enum $name { $($word),+ }

        impl $crate::cli::ratelimit::values::GoValue for $name {
            fn parse(text: &str) -> Option<Self> {
                match text.to_lowercase().as_str() {
                    $($($text)|+ => Some(Self::$word),)+
                    _ => None,
                }
            }

            fn expected() -> std::borrow::Cow<'static, str> {
                let mut words = vec![$($($text),+),+];
                words.retain(|word| !word.is_empty());
                format!("one of {}", words.join(", ")).into()
            }
        }
    };
}

pub(super) use words;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, nanos) in [
            ("10s", 10_000_000_000),
            ("150us", 150_000),
            ("150µs", 150_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5ms", 500_000),
            ("0", 0),
            ("0s", 0),
            ("0s1ns", 1),
            ("+1s", 1_000_000_000),
            ("-1s", 0),
        ] {
            assert_eq!(
                Duration::parse(text),
                Some(Duration::from_nanos(nanos)),
                "{text}"
            );
        }
        for text in [
            "",
            "10",
            "s",
            ".s",
            "1d",
            "10 s",
            "--1s",
            "1s2",
            "1..5s",
            "99999999999h",
        ] {
            assert_eq!(Duration::parse(text), None, "{text}");
        }
    }

    #[test]
    fn truth_values_and_numbers_are_those_of_go() {
        assert_eq!(["1", "t", "T", "True"].map(bool::parse), [Some(true); 4]);
        assert_eq!(
            ["0", "f", "FALSE", "false"].map(bool::parse),
            [Some(false); 4]
        );
        assert_eq!(["", "yes", "tRUE", "2"].map(bool::parse), [None; 4]);
        assert_eq!(
            ["8081", "0x10", "010", "1_000", "0", "-0x10"].map(i64::parse),
            [8_081, 16, 8, 1_000, 0, -16].map(Some)
        );
        assert_eq!(
            ["", "--1", "1.5", "++1", "0x", "9x"].map(i64::parse),
            [None; 6]
        );
        for (number, port) in [("65535", Some(65_535)), ("65536", None), ("-1", None)] {
            assert_eq!(Port::parse(number).unwrap().get().ok(), port);
        }
    }

    #[test]
    fn pairs_are_parted_at_commas() {
        let pairs = Pairs::parse("a:b,c:d:e").unwrap();
        let expected = [("a", "b"), ("c", "d:e")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(pairs.0, expected);
        assert_eq!(Pairs::parse(" "), Some(Pairs::default()));
        assert_eq!(Pairs::parse("a=b"), None);
    }
}
