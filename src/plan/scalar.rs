//! What a plain scalar stands for: serde_yaml says, except where the reference's YAML 1.1 says more (`yes`, `010`, `1_000`).
//!
//! What can be told at a glance is, since this is asked of every field's name.

use serde_yaml::Value;

/// The truth value that a plain scalar stands for.
pub fn truth(text: &str) -> Option<bool> {
    match text {
        "true" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => Some(true),
        "false" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => Some(false),
        _ if text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false") => {
            serde_yaml::from_str(text).ok()
        }
        _ => None,
    }
}

/// Whether a plain scalar stands for a number.
pub fn is_number(text: &str) -> bool {
    integer(text).is_some() || number(text).is_some()
}

/// The whole number from 0 to 4294967295 that a scalar stands for, in any of YAML's ways to write one.
pub fn whole_number(text: &str) -> Option<u32> {
    if let Some(integer) = integer(text) {
        return u32::try_from(integer).ok();
    }
    let whole = |float: &f64| float.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(float);
    let float = number(text)?.as_f64();
    float.filter(whole).map(|float| float as u32)
}

/// The integer that a plain scalar stands for.
// Source: gopkg.in/yaml.v2 2.4.0, resolve.go: YAML 1.1, where a leading 0 makes a number octal, and what Go has besides.
pub fn integer(text: &str) -> Option<i128> {
    if !may_be_number(text) {
        return None;
    }
    let digits = text.replace('_', "").to_ascii_lowercase();
    let unsigned = digits.strip_prefix(['-', '+']).unwrap_or(&digits);
    let (base, rest) = match unsigned.as_bytes() {
        [b'0', b'x', ..] => (16, &unsigned[2..]),
        [b'0', b'o', ..] => (8, &unsigned[2..]),
        [b'0', b'b', ..] => (2, &unsigned[2..]),
        [b'0', _, ..] => (8, &unsigned[1..]),
        _ => (10, unsigned),
    };
    // Another sign behind the first one is none of a number.
    let whole = i128::from_str_radix(rest, base)
        .ok()
        .filter(|_| !rest.starts_with(['-', '+']))?;
    Some(if digits.starts_with('-') {
        -whole
    } else {
        whole
    })
}

/// The value in JSON that a plain scalar stands for.
pub fn json(text: &str) -> serde_json::Value {
    if let Some(truth) = truth(text) {
        return truth.into();
    }
    if let Some(integer) = integer(text) {
        let (positive, negative) = (u64::try_from(integer), i64::try_from(integer));
        let negative = negative.map_or_else(|_| (integer as f64).into(), Into::into);
        return positive.map_or(negative, Into::into);
    }
    let float = number(text).and_then(|number| number.as_f64());
    float.map_or_else(|| text.into(), Into::into)
}

fn number(text: &str) -> Option<serde_yaml::Number> {
    if !may_be_number(text) {
        return None;
    }
    match serde_yaml::from_str(text) {
        Ok(Value::Number(number)) => Some(number),
        _ => None,
    }
}

/// Numbers have no blanks; `--- 1` would be read as a document that holds one.
fn may_be_number(text: &str) -> bool {
    !text.contains(char::is_whitespace)
        && text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'))
}

#[cfg(test)]
mod tests {
    use serde_json::json as value;

    use super::{is_number, json, truth, whole_number};

    #[test]
    fn numbers_are_those_of_yaml() {
        for (text, number) in [
            ("0", 0),
            ("10", 10),
            ("1_000", 1_000),
            ("010", 8),
            ("0X1F", 31),
            ("0o17", 15),
            ("+5", 5),
            ("1e3", 1_000),
            ("4294967295", u32::MAX),
        ] {
            assert_eq!(whole_number(text), Some(number), "{text}");
        }
        for text in [
            "",
            "_",
            "-1",
            "4294967296",
            "1.5",
            "five",
            "089",
            "1e10",
            "...",
        ] {
            assert_eq!(whole_number(text), None, "{text}");
        }
        assert!(is_number("0.25") && is_number(".inf") && is_number("-3"));
        assert!(!is_number("inf") && !is_number("1.2.3") && !is_number("-") && !is_number("10s"));
    }

    #[test]
    fn truth_values_are_those_of_yaml_1_1() {
        assert_eq!(
            ["true", "True", "TRUE", "on", "Yes", "y"].map(truth),
            [Some(true); 6]
        );
        assert_eq!(
            ["false", "False", "FALSE", "off", "NO", "n"].map(truth),
            [Some(false); 6]
        );
        assert_eq!(["tRue", "yEs", "1", ""].map(truth), [None; 4]);
    }

    #[test]
    fn free_values_are_what_serde_yaml_says() {
        assert_eq!(json("12"), value!(12));
        assert_eq!(json("0x10"), value!(16));
        assert_eq!(json("010"), value!(8));
        assert_eq!(json("-1_000"), value!(-1_000));
        assert_eq!(json("18446744073709551616"), value!(18446744073709551616.0));
        assert_eq!(json("-1.5e3"), value!(-1500.0));
        assert_eq!(json("18446744073709551615"), value!(u64::MAX));
        assert_eq!(json("off"), value!(false));
        for text in ["2024-01-02", "1.2.3", "- a", "...", "--- 1", "10s", "--1"] {
            assert_eq!(json(text), value!(text));
        }
    }
}
