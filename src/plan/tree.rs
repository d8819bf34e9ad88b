//! YAML text as a tree that still knows its places, its duplicate keys and the exact text of its scalars.
//!
//! A typed deserializer gives up at the first mistake, and an untyped one turns `1.10` into `1.1`; both lose what we need
//! to report. So saphyr-parser tells what stands where, and serde_yaml what a plain scalar means (`scalar`). Equal texts are
//! kept once. Bounded: nesting, and the number of nodes after aliases are expanded.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
    vec::Drain,
};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

use super::mistake::Place;

/// Deepest nesting of lists and maps. A level of descriptors takes two.
const DEEPEST: usize = 100;

/// Most nodes of a file, counting what an alias stands for each time it is used. A file of 10,000 rules has about 100,000.
const MOST_NODES: usize = 2_000_000;

/// A value and where it begins.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it begins; none if it was never text.
    pub place: Option<Place>,
    /// What it is.
    pub value: Value,
}

/// What a YAML value is.
#[derive(Debug, Clone)]
pub enum Value {
    /// Text, a number, a truth value or nothing.
    Scalar {
        /// As written, without quotes.
        text: Rc<str>,
        /// Written without quotes, so that it may stand for a number, a truth value or nothing.
        plain: bool,
    },
    /// A list.
    List(Vec<Node>),
    /// A map: keys and values in order, duplicates and all.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// Whether it stands for nothing: `~`, `null` or an empty value.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(&**text, "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            _ if self.is_null() => "nothing",
            Value::Scalar { .. } => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    fn size(&self) -> usize {
        match &self.value {
            Value::Scalar { .. } => 1,
            Value::List(items) => 1 + items.iter().map(Self::size).sum::<usize>(),
            Value::Map(fields) => {
                1 + fields
                    .iter()
                    .map(|(key, value)| key.size() + value.size())
                    .sum::<usize>()
            }
        }
    }
}

/// A file's first document.
#[derive(Debug)]
pub struct Document {
    /// Its value; none if the file has no document.
    pub top: Option<Node>,
    /// Where a second document begins, which nobody reads.
    pub second: Option<Place>,
}

/// Why text is not YAML that we read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where.
    pub place: Place,
    /// What.
    pub message: String,
}

/// Reads the first document of `text`.
///
/// # Errors
/// Text that is not YAML, is nested too deep, or grows too large through its aliases.
pub fn parse(text: &str) -> Result<Document, SyntaxError> {
    // What JSON, too, has only escaped.
    if let Some(index) = text.find(|c| c < ' ' && !"\t\n\r".contains(c)) {
        return Err(SyntaxError {
            place: Place::after(&text[..index]),
            message: "control characters are not allowed".to_owned(),
        });
    }
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    let mut top = None;
    loop {
        match next(&mut parser)? {
            (Event::StreamEnd, _) => return Ok(Document { top, second: None }),
            (Event::DocumentStart(_), _) => {}
            (Event::DocumentEnd, _) => break,
            (event, span) => {
                if let Some(node) = builder.add(event, place(&span))? {
                    top = Some(node);
                }
            }
        }
    }
    let second = match next(&mut parser)? {
        (Event::DocumentStart(_), span) => Some(place(&span)),
        _ => None,
    };
    Ok(Document { top, second })
}

fn next<'t>(parser: &mut Parser<'t, StrInput<'t>>) -> Result<(Event<'t>, Span), SyntaxError> {
    loop {
        match parser.next_event() {
            Some(Ok((Event::Nothing | Event::StreamStart, _))) => {}
            Some(Ok(event)) => return Ok(event),
            Some(Err(error)) => return Err(syntax(&error)),
            None => return Ok((Event::StreamEnd, Span::default())),
        }
    }
}

fn place(span: &Span) -> Place {
    Place {
        line: span.start.line().max(1) as u32,
        column: span.start.col() as u32 + 1,
    }
}

fn syntax(error: &ScanError) -> SyntaxError {
    SyntaxError {
        place: Place {
            line: error.marker().line().max(1) as u32,
            column: error.marker().col() as u32 + 1,
        },
        message: error.info().to_owned(),
    }
}

/// Puts events together. Anchored nodes are kept aside for their aliases.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    /// What belongs to the open lists and maps, innermost last. Each takes its own when it ends, in room for just that.
    done: Vec<Node>,
    anchors: HashMap<usize, Node>,
    /// The texts met so far: most of a file's texts are the same few names.
    texts: HashSet<Rc<str>>,
    nodes: usize,
}

/// A list or map whose end has not come yet.
struct Open {
    place: Place,
    anchor: usize,
    /// Where its own begin in `done`.
    from: usize,
}

impl Builder {
    /// Takes one event; answers the top node when it is whole.
    fn add(&mut self, event: Event<'_>, place: Place) -> Result<Option<Node>, SyntaxError> {
        match event {
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                self.open(anchor, place).map(|()| None)
            }
            Event::SequenceEnd => self.end(|done| Value::List(done.collect())),
            Event::MappingEnd => self.end(|done| Value::Map(pairs(done))),
            Event::Scalar(text, style, anchor, tag) => {
                let plain = match tag {
                    // `!!int "5"` stands for a number.
                    Some(tag) => tag.is_yaml_core_schema() && tag.suffix != "str",
                    None => style == ScalarStyle::Plain,
                };
                let value = Value::Scalar {
                    text: self.shared(&text),
                    plain,
                };
                self.count(1, place)?;
                self.close(place, value, anchor)
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(SyntaxError {
                        place,
                        message: "an alias inside of what it stands for".to_owned(),
                    });
                };
                let size = node.size();
                self.count(size, place)?;
                let value = self.anchors[&anchor].value.clone();
                self.close(place, value, 0)
            }
            _ => Ok(None),
        }
    }

    fn shared(&mut self, text: &str) -> Rc<str> {
        if let Some(known) = self.texts.get(text) {
            return Rc::clone(known);
        }
        let new: Rc<str> = text.into();
        self.texts.insert(Rc::clone(&new));
        new
    }

    fn open(&mut self, anchor: usize, place: Place) -> Result<(), SyntaxError> {
        self.count(1, place)?;
        if self.open.len() == DEEPEST {
            return Err(SyntaxError {
                place,
                message: format!("nested deeper than {DEEPEST} levels"),
            });
        }
        self.open.push(Open {
            place,
            anchor,
            from: self.done.len(),
        });
        Ok(())
    }

    /// Ends the innermost list or map.
    fn end(
        &mut self,
        value: impl FnOnce(Drain<'_, Node>) -> Value,
    ) -> Result<Option<Node>, SyntaxError> {
        let open = self.open.pop().expect("the parser pairs starts and ends");
        let value = value(self.done.drain(open.from..));
        self.close(open.place, value, open.anchor)
    }

    /// Puts a whole node where it belongs; answers it if that is the top.
    fn close(
        &mut self,
        place: Place,
        value: Value,
        anchor: usize,
    ) -> Result<Option<Node>, SyntaxError> {
        let node = Node {
            place: Some(place),
            value,
        };
        if anchor > 0 {
            // The copy counts too: a chain of anchors copies each inner node once per level.
            self.count(node.size(), place)?;
            self.anchors.insert(anchor, node.clone());
        }
        if self.open.is_empty() {
            return Ok(Some(node));
        }
        self.done.push(node);
        Ok(None)
    }

    fn count(&mut self, nodes: usize, place: Place) -> Result<(), SyntaxError> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MOST_NODES {
            return Err(SyntaxError {
                place,
                message: format!(
                    "more than {MOST_NODES} values, counting what an alias stands for each time it is used"
                ),
            });
        }
        Ok(())
    }
}

/// Keys and values, which come in turns.
fn pairs(mut nodes: Drain<'_, Node>) -> Vec<(Node, Node)> {
    let mut pairs = Vec::with_capacity(nodes.len() / 2);
    while let (Some(key), Some(value)) = (nodes.next(), nodes.next()) {
        pairs.push((key, value));
    }
    pairs
}
