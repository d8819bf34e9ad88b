//! The rules of one domain, compiled.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    authentication::Authentication,
    beyond::{Beyond, WarnAt},
    file::LeaseFile,
    keys::{ApiKeys, KeyCheck, KnownKey, key_of_id},
    level::{Level, Met, NodeIndex},
    lists::Lists,
    matching::read_as,
    rule::{Counting, Durable, Lease, OnStoreError, ResponseOptions, Rule, RuleLimit, Subject},
    subject::{Variable, escaped, push_hashed, push_plain, push_text, push_value},
};
use crate::{
    descriptor::{Descriptor, Entry, LimitOverride},
    keys::{KeyTable, hash},
    limit::{Kind, Limit, LimitError, Period},
};

/// Most distinct limits sent by requests that a domain keeps ready.
const MOST_OVERRIDES: usize = 1_024;

/// The rules of one domain.
#[derive(Debug)]
pub struct Domain {
    pub(super) name: Arc<str>,
    /// How the names of its buckets begin.
    pub(super) buckets: Arc<str>,
    pub(super) response: Arc<ResponseOptions>,
    pub(super) authentication: Option<Arc<Authentication>>,
    pub(super) on_store_error: OnStoreError,
    pub(super) counting: Counting,
    pub(super) rules: Vec<Arc<Rule>>,
    /// Every place of the tree; the first is the top.
    pub(super) nodes: Vec<Node>,
    pub(super) tiers: Vec<Arc<str>>,
    pub(super) keys: ApiKeys,
    pub(super) unmatched: Unmatched,
    pub(super) lists: Option<Box<Lists>>,
    /// Keys of entries that hold API keys: those of rules that take their limits from the tier.
    pub(super) key_names: Vec<Box<str>>,
    /// Whether any rule replaces another.
    pub(super) replaces: bool,
    /// Whether more than a refusal may become of what is beyond a limit of any rule.
    pub(super) paces: bool,
    pub(super) overrides: Overrides,
}

/// A place in the tree of a domain's rules.
#[derive(Debug)]
pub struct Node {
    /// The rules below it; none at most places.
    pub level: Option<Box<Level>>,
    /// What it says if the descriptor ends here; none for a mere branch.
    pub rule: Option<Arc<Rule>>,
    /// What of the entry goes into a bucket's name.
    pub variable: Variable,
    /// How its entry is read as an API key, if it is one.
    pub key_rule: Option<Box<KeyRule>>,
}

impl Node {
    /// The rule below that an entry meets, as [`Level::find`].
    pub fn find(&self, key: &str, value: &str, joined: &[u8]) -> Option<(NodeIndex, Met)> {
        self.level.as_ref()?.find(key, value, joined)
    }
}

/// How an entry is read as an API key.
#[derive(Debug)]
pub struct KeyRule {
    /// Only the secret opens, not the id.
    pub secret_only: bool,
    /// Index of the tier that unknown keys get; none to refuse them.
    pub unknown: Option<u32>,
    /// What limits that a key has of its own are called.
    pub names: OwnedRuleNames,
    /// What they do beyond themselves.
    pub(super) beyond: Beyond,
}

/// What a request gets that meets no rule.
#[derive(Debug)]
pub enum Unmatched {
    /// It passes.
    Allow,
    /// It is refused, by a rule that denies.
    Deny(Arc<Rule>),
    /// It is counted in one bucket of the domain.
    Limit(Arc<Rule>),
}

/// Limits that requests sent, kept ready. Bounded: beyond that they are built anew each time.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    ready: Mutex<HashMap<(u32, Period), Arc<RuleLimit>>>,
}

impl Domain {
    /// Its name, as requests have it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What answers show beside the decision.
    pub fn response(&self) -> &Arc<ResponseOptions> {
        &self.response
    }

    /// What answers while the store does not, where no rule says otherwise.
    pub fn on_store_error(&self) -> OnStoreError {
        self.on_store_error
    }

    /// How limits count and when hits are charged, where no rule says otherwise.
    pub fn counting(&self) -> Counting {
        self.counting
    }

    /// Its rules in file order; last the one for what no rule matches, if it is not to pass.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.rules.iter()
    }

    /// The names of its tiers, in the order of [`Allowance::Tiers`](super::Allowance::Tiers).
    pub fn tiers(&self) -> &[Arc<str>] {
        &self.tiers
    }

    /// How its keys are asked for, where its file says so.
    pub fn authentication(&self) -> Option<&Arc<Authentication>> {
        self.authentication.as_ref()
    }

    /// The API key that `text` is in this domain: its secret, or its id unless `secret_only`. A key whose tier the domain
    /// does not have is none of its keys.
    pub(super) fn api_key<'p>(
        &'p self,
        stored: &'p KeyTable,
        text: &str,
        secret_only: bool,
    ) -> Option<KnownKey<'p>> {
        let by_id = match secret_only {
            true => None,
            false => key_of_id(&self.keys, stored, text),
        };
        let by_secret = || KeyCheck::secret(&self.keys, stored, text.as_bytes()).known();
        let key = by_id.or_else(by_secret)?;
        self.tier_of(key).map(|_| key)
    }

    /// The index of the key's tier.
    pub(super) fn tier_of(&self, key: KnownKey<'_>) -> Option<u32> {
        let tier = match key {
            KnownKey::File(key) => return Some(key.tier_index),
            KnownKey::Stored(key) => key.tier(),
        };
        let index = self.tiers.iter().position(|name| **name == *tier)?;
        Some(index as u32)
    }

    /// What a secret opens in this domain.
    pub fn check_secret<'p>(&'p self, stored: &'p KeyTable, secret: &[u8]) -> KeyCheck<'p> {
        match KeyCheck::secret(&self.keys, stored, secret) {
            KeyCheck::Known(key) if self.tier_of(key).is_none() => KeyCheck::Unknown,
            found => found,
        }
    }

    /// Whether more than a refusal may become of what is beyond one of its limits: a wait, or a penalty.
    pub fn paces(&self) -> bool {
        self.paces
    }

    /// The longest delay of its limits; zero if none has one.
    pub fn longest_delay(&self) -> Duration {
        let limits = self.rules().flat_map(|rule| rule.allowance.limits());
        let delays = limits.map(|limit| limit.limit.delay());
        delays.max().unwrap_or_default()
    }

    /// Its API keys, without their secrets.
    pub fn api_keys(&self) -> impl Iterator<Item = &Arc<super::ApiKey>> {
        self.keys.iter()
    }

    /// Whether entries of that key hold API keys, whose secrets nobody is to see.
    pub fn holds_api_key(&self, key: &str) -> bool {
        self.key_names.iter().any(|name| **name == *key)
    }

    /// What of an entry's value may be seen: all of it, but of an API key only its id, or `unknown`.
    pub fn public_value<'e>(&'e self, entry: &'e Entry, stored: &'e KeyTable) -> &'e str {
        match self.holds_api_key(&entry.key) {
            false => &entry.value,
            true => self
                .api_key(stored, &entry.value, false)
                .map_or("unknown", KnownKey::id),
        }
    }

    /// The same for a report, where keys that nobody knows are told apart, by the beginning of their hash. What is called
    /// `api_key` is taken for one, whatever the rules say.
    pub fn reported_value<'e>(&'e self, entry: &'e Entry, stored: &'e KeyTable) -> Cow<'e, str> {
        if entry.key != "api_key" && !self.holds_api_key(&entry.key) {
            return Cow::Borrowed(&entry.value);
        }
        if let Some(known) = self.api_key(stored, &entry.value, false) {
            return Cow::Borrowed(known.id());
        }
        let [one, two, three, ..] = hash(entry.value.as_bytes());
        format!("(unknown key #{one:02x}{two:02x}{three:02x})").into()
    }

    /// The limit that a request sent along, and the name of the descriptor's bucket under it.
    ///
    /// The numbers are no part of that name, so a changed figure keeps the tokens; the period is. `tier` is what
    /// [`known_tier`](Self::known_tier) says of the request: it stands for whatever tier the descriptor names.
    ///
    /// # Errors
    /// As [`Limit::new`].
    pub fn override_limit(
        &self,
        descriptor: &Descriptor,
        limit: LimitOverride,
        tier: Option<&str>,
        stored: &KeyTable,
    ) -> Result<(Arc<RuleLimit>, Subject), LimitError> {
        let mut subject = Subject::new();
        for entry in &descriptor.entries {
            push_text(&mut subject, &entry.key);
            self.push_entry_value(&mut subject, &entry.key, read_as(entry, tier), stored);
        }
        let asked = (limit.requests, limit.period);
        if let Some(ready) = self.overrides.ready.lock().get(&asked) {
            return Ok((Arc::clone(ready), subject));
        }
        let built = Limit::per(limit.requests, limit.period, self.counting.algorithm)?;
        let names = RuleNames {
            buckets: &self.buckets,
            path: "%override",
            shown: "override",
            name: None,
            durable: None,
            lease: None,
        };
        let built = Arc::new(rule_limit(names, built, None, Beyond::default()));
        let mut ready = self.overrides.ready.lock();
        if ready.len() < MOST_OVERRIDES {
            ready.insert(asked, Arc::clone(&built));
        }
        Ok((built, subject))
    }

    /// A value, or what stands for an API key: entries that hold keys never show a secret.
    fn push_entry_value(&self, subject: &mut Subject, key: &str, value: &str, stored: &KeyTable) {
        if !self.holds_api_key(key) {
            return push_value(subject, value);
        }
        match self.api_key(stored, value, false) {
            Some(known) => push_plain(subject, known.id()),
            None => push_hashed(subject, value),
        }
    }

    pub(super) fn top(&self) -> &Node {
        &self.nodes[0]
    }

    pub(super) fn node(&self, index: NodeIndex) -> &Node {
        &self.nodes[index as usize]
    }
}

/// What a rule is called: in buckets' names, in answers, and by its own name if it has one.
#[derive(Debug, Clone, Copy)]
pub(super) struct RuleNames<'a> {
    /// How the names of its domain's buckets begin.
    pub buckets: &'a str,
    /// Its path, escaped.
    pub path: &'a str,
    /// Its last element, for people.
    pub shown: &'a str,
    pub name: Option<&'a Arc<str>>,
    pub durable: Option<Durable>,
    /// How replicas take tokens ahead.
    pub lease: Option<LeaseFile>,
}

/// The same, to keep.
#[derive(Debug)]
pub struct OwnedRuleNames {
    path: Box<str>,
    shown: Box<str>,
    name: Option<Arc<str>>,
    durable: Option<Durable>,
    lease: Option<LeaseFile>,
}

impl OwnedRuleNames {
    pub(super) fn new(names: RuleNames<'_>) -> Self {
        Self {
            path: names.path.into(),
            shown: names.shown.into(),
            name: names.name.cloned(),
            durable: names.durable,
            lease: names.lease,
        }
    }

    /// The limits that a key has of its own, under this rule of the domain whose buckets' names begin so.
    pub(super) fn limits<L: FromIterator<Arc<RuleLimit>>>(
        &self,
        buckets: &str,
        limits: &[Limit],
        beyond: Beyond,
    ) -> L {
        let names = RuleNames {
            buckets,
            path: &self.path,
            shown: &self.shown,
            name: self.name.as_ref(),
            durable: self.durable,
            lease: self.lease,
        };
        let own = limits
            .iter()
            .map(|limit| rule_limit(names, limit.clone(), None, beyond));
        own.map(Arc::new).collect()
    }
}

/// How the names of a domain's buckets begin. A prefix ends in what is escaped in names.
pub(super) fn buckets(prefix: &str, domain: &str) -> Arc<str> {
    match prefix {
        "" => escaped(domain).into(),
        prefix => format!("{}={}", escaped(prefix), escaped(domain)).into(),
    }
}

/// A limit of a rule. `own` is the limit's own name.
pub(super) fn rule_limit(
    rule: RuleNames<'_>,
    limit: Limit,
    own: Option<&str>,
    beyond: Beyond,
) -> RuleLimit {
    let key_prefix = format!("{}/{}#{}", rule.buckets, rule.path, limit.identity());
    let label = match (own, rule.name) {
        (Some(own), _) => label(own),
        (None, Some(name)) => label(&format!("{name}:{limit:#}")),
        (None, None) => label(&format!("{}:{limit:#}", rule.shown)),
    };
    let name = own.map(Arc::from).or_else(|| rule.name.cloned());
    let warn_at = match limit.kind() {
        Kind::Calendar => beyond.warn_at,
        _ => WarnAt::Never,
    };
    let lease = rule.lease;
    let lease = lease.and_then(|lease| Lease::new(&limit, lease.percent, lease.life_ms));
    let mut built = RuleLimit::new(limit, name, &key_prefix, &label).leased(lease);
    built.durable = rule.durable;
    built.in_mode(beyond.mode).warning_at(warn_at)
}

/// Text fit for a quoted string of a header: printable ASCII without `"` and `\`, at most 120 of it.
fn label(text: &str) -> String {
    text.chars()
        .take(120)
        .map(|c| match c {
            '"' | '\\' => '\'',
            c if c.is_ascii_graphic() || c == ' ' => c,
            _ => '?',
        })
        .collect()
}
