//! Allow and deny lists of a domain, by network and API key. They decide before any limit, and deny wins.
//!
//! The cost does not grow with the lists: keys are found by hash, networks as those of rules are.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    domain::Domain,
    fields::{Fields, Reader},
    file::ListFile,
    level::Networks,
    mistake::Path,
    rule::Rule,
    shapes::LIST,
};
use crate::{
    descriptor::{Entry, Query},
    keys::KeyTable,
};

/// Keys of entries that are addresses, whatever the rules: what Envoy's action `remote_address` writes, and what we name it.
const ADDRESSES: [&str; 2] = ["remote_address", "ip"];

/// Both lists of a domain.
#[derive(Debug)]
pub struct Lists {
    /// Whose requests are refused.
    pub deny: List,
    /// Whose requests pass, whatever their limits.
    pub allow: List,
    /// What stands for them in decisions, metrics and answers.
    pub(super) denied: Arc<Rule>,
    pub(super) allowed: Arc<Rule>,
    /// Keys of entries whose values are addresses.
    addresses: HashSet<Box<str>>,
    /// Keys of entries in which only an API key's secret stands for it, not its id.
    secrets: HashSet<Box<str>>,
}

/// One list.
#[derive(Debug, Default)]
pub struct List {
    file: ListFile,
    networks: Networks,
    keys: HashSet<Box<str>>,
}

impl List {
    pub(super) fn new(file: ListFile) -> Self {
        let mut networks = Networks::default();
        for net in &file.cidr {
            networks.add(*net, 0);
        }
        let keys = file.api_key.iter().map(|id| id.as_str().into()).collect();
        Self {
            networks,
            keys,
            file,
        }
    }

    /// Its networks, in file order.
    pub fn cidr(&self) -> &[IpNet] {
        &self.file.cidr
    }

    /// The ids of its API keys, in file order.
    pub fn api_keys(&self) -> &[String] {
        &self.file.api_key
    }

    /// Whether the address lies in one of its networks.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.networks.of(address).is_some()
    }

    /// Whether the key of that id stands in it.
    pub fn has_key(&self, id: &str) -> bool {
        self.keys.contains(id)
    }

    fn is_empty(&self) -> bool {
        self.file.cidr.is_empty() && self.file.api_key.is_empty()
    }
}

impl Lists {
    /// The lists, if any of them has something. `networks` are the keys of rules with a network, `secrets` those of entries in which
    /// only secrets count.
    pub(super) fn new(
        (deny, allow): (Option<ListFile>, Option<ListFile>),
        (denied, allowed): (Arc<Rule>, Arc<Rule>),
        networks: HashSet<Box<str>>,
        secrets: HashSet<Box<str>>,
    ) -> Option<Box<Self>> {
        let (deny, allow) = (deny.unwrap_or_default(), allow.unwrap_or_default());
        let mut addresses = networks;
        addresses.extend(ADDRESSES.map(Into::into));
        let lists = Self {
            deny: List::new(deny),
            allow: List::new(allow),
            denied,
            allowed,
            addresses,
            secrets,
        };
        (!lists.deny.is_empty() || !lists.allow.is_empty()).then(|| Box::new(lists))
    }

    /// Whether that rule stands for one of them.
    pub fn has_rule(&self, rule: &Rule) -> bool {
        [&self.denied, &self.allowed]
            .iter()
            .any(|own| std::ptr::eq(&***own, rule))
    }

    /// Whether some entry of the request is in `list`. A key is named by its secret, or by its id where that opens as well, and
    /// everywhere to be denied.
    fn meets(&self, list: &List, domain: &Domain, query: &Query, stored: &KeyTable) -> bool {
        let denies = std::ptr::eq(list, &self.deny);
        let meets = |Entry { key, value }: &Entry| {
            if self.addresses.contains(&**key) && list.networks.find(value).is_some() {
                return true;
            }
            if list.keys.is_empty() || !domain.holds_api_key(key) {
                return false;
            }
            let secret_only = !denies && self.secrets.contains(&**key);
            let known = domain.api_key(stored, value, secret_only);
            known.is_some_and(|known| list.has_key(known.id()))
        };
        let mut entries = query.descriptors.iter().flat_map(|asked| &asked.entries);
        entries.any(meets)
    }
}

impl Domain {
    /// Its allow and deny lists, if it has any.
    pub fn lists(&self) -> Option<&Lists> {
        self.lists.as_deref()
    }

    /// What decides a request without any limit: the deny list, else the allow list.
    pub(super) fn listed<'p>(&'p self, query: &Query, stored: &KeyTable) -> Option<&'p Arc<Rule>> {
        let lists = self.lists()?;
        if lists.meets(&lists.deny, self, query, stored) {
            return Some(&lists.denied);
        }
        lists
            .meets(&lists.allow, self, query, stored)
            .then_some(&lists.allowed)
    }
}

impl Reader<'_> {
    /// Reads `allow` or `deny`.
    pub(super) fn list_of(
        &mut self,
        fields: &Fields<'_>,
        top: &Path<'_>,
        name: &str,
    ) -> Option<ListFile> {
        let path = top.field(name);
        let fields = self.fields(fields.get(name)?, &path, &LIST)?;
        let mut list = ListFile::default();
        let (mut nets, mut ids) = (HashSet::new(), HashSet::new());
        let cidr = path.field("cidr");
        let items = fields
            .get("cidr")
            .map(|node| self.list(node, &cidr, "networks"));
        for (index, item) in items.unwrap_or_default().iter().enumerate() {
            let path = cidr.item(index);
            match self.cidr(item, &path) {
                Some(net) if !nets.insert(net) => {
                    self.error(item.place, &path, "stands here twice")
                }
                Some(net) => list.cidr.push(net),
                None => {}
            }
        }
        let api_key = path.field("api_key");
        let node = fields.get("api_key");
        list.api_key_at = node.map(|node| (Arc::clone(&self.file), node.place));
        let items = node.map(|node| self.list(node, &api_key, "ids of API keys"));
        for (index, item) in items.unwrap_or_default().iter().enumerate() {
            let path = api_key.item(index);
            match self.proper_name(item, &path) {
                Some(id) if !ids.insert(id) => self.error(item.place, &path, "stands here twice"),
                Some(id) => list.api_key.push(id.to_owned()),
                None => {}
            }
        }
        Some(list)
    }
}
