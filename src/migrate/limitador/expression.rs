//! The part of CEL that has a counterpart here: an entry equals a text, joined by `&&`; and the bare entry.
//!
//! Not a CEL evaluator: whatever reads otherwise is told, not guessed.

/// An entry as an expression names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The descriptor's index; none in the form of limitador 1.x, which knows no descriptors.
    pub descriptor: Option<u32>,
    /// The entry's key.
    pub key: String,
}

/// Reads a condition: the entries and the texts that they must equal.
///
/// # Errors
/// What has no counterpart, for people.
pub fn condition(text: &str) -> Result<Vec<(Named, String)>, String> {
    let tokens = tokens(text)?;
    let mut equalities = Vec::new();
    for term in tokens.split(|token| *token == Token::And) {
        let mut sides = term.split(|token| *token == Token::Equals);
        let (Some(left), Some(right), None) = (sides.next(), sides.next(), sides.next()) else {
            return Err(EQUALITIES.to_owned());
        };
        let equality = match (left, right) {
            (entry, [Token::Text(text)]) | ([Token::Text(text)], entry) => {
                (named(entry).ok_or(EQUALITIES)?, text.clone())
            }
            _ => return Err(EQUALITIES.to_owned()),
        };
        equalities.push(equality);
    }
    Ok(equalities)
}

/// Reads a variable: an entry.
///
/// # Errors
/// What has no counterpart, for people.
pub fn variable(text: &str) -> Result<Named, String> {
    named(&tokens(text)?).ok_or_else(|| ENTRIES.to_owned())
}

const EQUALITIES: &str = "write `descriptors[0].KEY == 'VALUE'`, or several of them joined by `&&`, all that has a counterpart here";
const ENTRIES: &str = "write an entry, `descriptors[0].KEY`, all that has a counterpart here";

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Name(String),
    Number(u32),
    Text(String),
    Open,
    Close,
    Dot,
    Equals,
    And,
}

/// `descriptors[0].key`, `descriptors[0]['key']`, and limitador 1.x' `key`, in which dots may stand.
fn named(tokens: &[Token]) -> Option<Named> {
    use Token::{Close, Dot, Name, Number, Open, Text};
    let of = |descriptor: &u32, key: &String| Named {
        descriptor: Some(*descriptor),
        key: key.clone(),
    };
    match tokens {
        [Name(list), Open, Number(index), Close, Dot, Name(key)]
        | [
            Name(list),
            Open,
            Number(index),
            Close,
            Open,
            Text(key),
            Close,
        ] if list == "descriptors" => Some(of(index, key)),
        [Name(first), rest @ ..] if first != "descriptors" && first != "limit" => {
            let mut key = first.clone();
            for pair in rest.chunks(2) {
                let [Dot, Name(part)] = pair else {
                    return None;
                };
                key = format!("{key}.{part}");
            }
            Some(Named {
                descriptor: None,
                key,
            })
        }
        _ => None,
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '[' => (Token::Open, 1),
            ']' => (Token::Close, 1),
            '.' => (Token::Dot, 1),
            '\'' | '"' => quoted(rest, first)?,
            '0'..='9' => {
                let digits = length_of(rest, |c| c.is_ascii_digit());
                let number = rest[..digits].parse().map_err(|_| ENTRIES.to_owned())?;
                (Token::Number(number), digits)
            }
            'a'..='z' | 'A'..='Z' | '_' => {
                let length = length_of(rest, |c| c.is_ascii_alphanumeric() || c == '_');
                (Token::Name(rest[..length].to_owned()), length)
            }
            _ if rest.starts_with("==") => (Token::Equals, 2),
            _ if rest.starts_with("&&") => (Token::And, 2),
            _ => {
                let other = ["!=", "||", "<=", ">="]
                    .into_iter()
                    .find(|two| rest.starts_with(two));
                let shown = other.map_or_else(|| first.to_string(), str::to_owned);
                return Err(format!(
                    "`{}` has no counterpart; {EQUALITIES}",
                    shown.escape_debug()
                ));
            }
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

fn length_of(text: &str, fits: impl Fn(char) -> bool) -> usize {
    text.find(|c| !fits(c)).unwrap_or(text.len())
}

/// A text between quotes, and its length with them.
fn quoted(rest: &str, quote: char) -> Result<(Token, usize), String> {
    let inner = &rest[1..];
    let end = inner.find(quote).ok_or("a text that does not end")?;
    let text = &inner[..end];
    if text.contains('\\') {
        return Err(
            "a text with a backslash has no counterpart here; write the character itself"
                .to_owned(),
        );
    }
    Ok((Token::Text(text.to_owned()), end + 2))
}

#[cfg(test)]
mod tests {
    use super::{Named, condition, variable};

    fn named(descriptor: impl Into<Option<u32>>, key: &str) -> Named {
        Named {
            descriptor: descriptor.into(),
            key: key.to_owned(),
        }
    }

    #[test]
    fn equalities_are_read_in_all_their_forms() {
        let post = |name| Ok(vec![(name, "POST".to_owned())]);
        assert_eq!(
            condition("descriptors[0]['req.method'] == 'POST'"),
            post(named(0, "req.method"))
        );
        assert_eq!(condition("descriptors[1].m=='POST'"), post(named(1, "m")));
        assert_eq!(
            condition(" \"POST\" == descriptors[0].m "),
            post(named(0, "m"))
        );
        assert_eq!(
            condition("req.method == \"POST\""),
            post(named(None, "req.method"))
        );
        let both = condition("descriptors[0].a == 'x && y' && descriptors[0].b == \"it's\"");
        let texts: Vec<_> = both.unwrap().into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["x && y", "it's"]);
    }

    #[test]
    fn what_is_no_equality_of_an_entry_and_a_text_is_refused() {
        for text in [
            "",
            "descriptors[0].a",
            "descriptors[0].a == 5",
            "descriptors[0].a == descriptors[0].b",
            "'a' == 'b'",
            "descriptors[0].a != 'x'",
            "descriptors[0].a == 'x' || descriptors[0].b == 'y'",
            "descriptors[0].a.startsWith('x')",
            "descriptors[0].a.b == 'x'",
            "descriptors.exists(d, d.a == 'x')",
            "limit.name == 'x'",
            "req.method == POST",
            "descriptors[0].a == 'x' &&",
            "descriptors[0].a == 'x' == 'y'",
            r"descriptors[0].a == 'x\n'",
            "descriptors[0].a == 'x",
            "descriptors[99999999999].a == 'x'",
            "descriptors[0].a == r'x'",
            "ü == 'x'",
        ] {
            assert!(condition(text).is_err(), "{text}");
        }
    }

    #[test]
    fn variables_are_entries_and_nothing_else() {
        assert_eq!(variable("descriptors[0].user_id"), Ok(named(0, "user_id")));
        assert_eq!(
            variable("descriptors[0][\"user-id\"]"),
            Ok(named(0, "user-id"))
        );
        assert_eq!(variable("user_id"), Ok(named(None, "user_id")));
        for text in [
            "",
            "'x'",
            "descriptors[0]",
            "size(descriptors)",
            "a.",
            "limit.id",
            "a == 'x'",
        ] {
            assert!(variable(text).is_err(), "{text}");
        }
    }
}
