//! One level of a domain's rules: which of them an entry meets.
//!
//! The cost does not grow with the number of rules: exact texts are found by hash, wildcards by the hash of their literal
//! beginning (one look per distinct length), networks by the hash of the masked address (one look per distinct prefix).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

/// A rule's place in its domain.
pub type NodeIndex = u32;

/// How an entry met a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// Its joined text `key_value` is the rule's own text.
    Exactly,
    /// It lies in the rule's network.
    Network,
    /// It fits the rule's pattern.
    Pattern,
    /// It has the rule's key.
    Key,
}

/// The rules below one node.
#[derive(Debug, Default)]
pub struct Level {
    texts: HashMap<Box<[u8]>, NodeIndex>,
    networks: HashMap<Box<[u8]>, Networks>,
    patterns: Patterns,
}

impl Level {
    /// Room for so many rules.
    pub fn with_capacity(rules: usize) -> Self {
        Self {
            texts: HashMap::with_capacity(rules),
            ..Self::default()
        }
    }

    /// Adds a rule by its text: the key, or the joined text `key_value`; a `*` in it makes it a pattern too.
    pub fn add_text(&mut self, text: &str, node: NodeIndex) {
        self.texts.insert(text.as_bytes().into(), node);
        if text.contains('*') {
            self.patterns.add(text, node);
        }
    }

    /// Adds a rule by its key and network.
    pub fn add_network(&mut self, key: &str, net: IpNet, node: NodeIndex) {
        let networks = self.networks.entry(key.as_bytes().into()).or_default();
        networks.add(net, node);
    }

    /// The rule that an entry meets. `joined` is `key_value`.
    ///
    /// Source: envoyproxy/ratelimit: the exact joined text, else the first pattern in file order, else the bare key.
    /// Networks come between the first two.
    pub fn find(&self, key: &str, value: &str, joined: &[u8]) -> Option<(NodeIndex, Met)> {
        if let Some(node) = self.texts.get(joined) {
            return Some((*node, Met::Exactly));
        }
        if !self.networks.is_empty()
            && let Some(networks) = self.networks.get(key.as_bytes())
            && let Some(node) = networks.find(value)
        {
            return Some((node, Met::Network));
        }
        if let Some(node) = self.patterns.find(joined) {
            return Some((node, Met::Pattern));
        }
        let node = self.texts.get(key.as_bytes())?;
        Some((*node, Met::Key))
    }

    /// Every rule that an entry of that key can meet, in file order; and whether each value meets one.
    pub fn reachable(&self, key: &str) -> (BTreeSet<NodeIndex>, bool) {
        let joined = format!("{key}_");
        let of_key = |text: &[u8]| text == key.as_bytes() || text.starts_with(joined.as_bytes());
        let texts = self.texts.iter().filter(|(text, _)| of_key(text));
        let networks = self.networks.get(key.as_bytes()).into_iter();
        let patterns = self.patterns.fitting(joined.as_bytes());
        let every = self.texts.contains_key(key.as_bytes())
            || patterns
                .iter()
                .any(|(pattern, _)| pattern.fits_all_after(joined.as_bytes()));
        let nodes = texts
            .map(|(_, node)| *node)
            .chain(networks.flat_map(Networks::nodes))
            .chain(patterns.iter().map(|(_, node)| *node));
        (nodes.collect(), every)
    }

    /// The earlier rule whose pattern takes everything that `text`, a pattern, stands for.
    ///
    /// A pattern that fits another one's text, stars and all, fits whatever those stars stand for.
    pub fn covering(&self, text: &str) -> Option<NodeIndex> {
        self.patterns.find(text.as_bytes())
    }
}

/// Networks of one key by prefix length, longest first.
#[derive(Debug, Default)]
pub(super) struct Networks {
    v4: Vec<(u8, HashMap<u32, NodeIndex>)>,
    v6: Vec<(u8, HashMap<u128, NodeIndex>)>,
}

impl Networks {
    pub fn add(&mut self, net: IpNet, node: NodeIndex) {
        fn table<A>(
            tables: &mut Vec<(u8, HashMap<A, NodeIndex>)>,
            prefix: u8,
        ) -> &mut HashMap<A, NodeIndex> {
            let at = tables.partition_point(|(length, _)| *length > prefix);
            if tables.get(at).is_none_or(|(length, _)| *length != prefix) {
                tables.insert(at, (prefix, HashMap::new()));
            }
            &mut tables[at].1
        }
        match net {
            IpNet::V4(net) => {
                table(&mut self.v4, net.prefix_len()).insert(net.network().into(), node);
            }
            IpNet::V6(net) => {
                table(&mut self.v6, net.prefix_len()).insert(net.network().into(), node);
            }
        }
    }

    fn nodes(&self) -> impl Iterator<Item = NodeIndex> {
        let v4 = self.v4.iter().flat_map(|(_, nets)| nets.values());
        v4.chain(self.v6.iter().flat_map(|(_, nets)| nets.values()))
            .copied()
    }

    /// What holds the longest network that `value`, an address, lies in.
    pub fn find(&self, value: &str) -> Option<NodeIndex> {
        self.of(value.parse().ok()?)
    }

    /// The same of an address.
    pub fn of(&self, address: IpAddr) -> Option<NodeIndex> {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let bits = u32::from(address);
                self.v4.iter().find_map(|(prefix, nets)| {
                    let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
                    nets.get(&(bits & mask)).copied()
                })
            }
            IpAddr::V6(address) => {
                let bits = u128::from(address);
                self.v6.iter().find_map(|(prefix, nets)| {
                    let mask = u128::MAX.checked_shl(128 - u32::from(*prefix)).unwrap_or(0);
                    nets.get(&(bits & mask)).copied()
                })
            }
        }
    }
}

/// Patterns by their literal beginning.
#[derive(Debug, Default)]
struct Patterns {
    by_length: BTreeMap<usize, ByBeginning>,
}

/// Patterns that begin alike, in file order.
type ByBeginning = HashMap<Box<[u8]>, Vec<(Pattern, NodeIndex)>>;

impl Patterns {
    fn add(&mut self, text: &str, node: NodeIndex) {
        let pattern = Pattern::new(text);
        let beginning = pattern.beginning.clone();
        self.by_length
            .entry(beginning.len())
            .or_default()
            .entry(beginning)
            .or_default()
            .push((pattern, node));
    }

    /// Those that fit some text of that beginning.
    fn fitting(&self, beginning: &[u8]) -> Vec<&(Pattern, NodeIndex)> {
        let tables = self.by_length.values();
        let all = tables.flat_map(|by_beginning| by_beginning.values().flatten());
        all.filter(|(pattern, _)| {
            pattern.beginning.starts_with(beginning) || beginning.starts_with(&pattern.beginning)
        })
        .collect()
    }

    /// The first in file order; nodes of a level are numbered so.
    fn find(&self, joined: &[u8]) -> Option<NodeIndex> {
        let mut first: Option<NodeIndex> = None;
        for (length, patterns) in self.by_length.range(..=joined.len()) {
            let Some(candidates) = patterns.get(&joined[..*length]) else {
                continue;
            };
            let fits = candidates
                .iter()
                .take_while(|(_, node)| first.is_none_or(|first| *node < first))
                .find(|(pattern, _)| pattern.fits(joined));
            if let Some((_, node)) = fits {
                first = Some(*node);
            }
        }
        first
    }
}

/// A text with `*`, which stands for any characters, none included.
#[derive(Debug)]
struct Pattern {
    beginning: Box<[u8]>,
    middles: Box<[Box<[u8]>]>,
    end: Box<[u8]>,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let mut parts: Vec<Box<[u8]>> =
            text.split('*').map(|part| part.as_bytes().into()).collect();
        let end = parts.pop().unwrap_or_default();
        let beginning = parts.remove(0);
        parts.retain(|part| !part.is_empty());
        Self {
            beginning,
            middles: parts.into(),
            end,
        }
    }

    /// Whether it fits every text of that beginning.
    fn fits_all_after(&self, beginning: &[u8]) -> bool {
        self.end.is_empty() && self.middles.is_empty() && beginning.starts_with(&self.beginning)
    }

    /// Source: envoyproxy/ratelimit: both ends anchored, the parts between in order, nothing used twice.
    fn fits(&self, text: &[u8]) -> bool {
        let Some(rest) = text.strip_prefix(&*self.beginning) else {
            return false;
        };
        let Some(mut rest) = rest.strip_suffix(&*self.end) else {
            return false;
        };
        for part in &self.middles {
            match rest
                .windows(part.len())
                .position(|window| window == &**part)
            {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}
