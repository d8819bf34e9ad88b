//! Turns a file that was read without a mistake into a [`Domain`]. Cannot fail: `read` has checked everything.

mod limits;
mod names;

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
};

use self::{
    limits::{counted, from_limits, from_rate_limit, shared_bucket, unleasable},
    names::{key_level, names, variable},
};
use super::{
    authentication::Authentication,
    beyond::{Beyond, Mode, WarnAt},
    domain::{Domain, KeyRule, Node, Overrides, OwnedRuleNames, RuleNames, Unmatched, buckets},
    file::{ListFile, PlanFile, ResponseFile, RuleFile, TierFile, UnmatchedFile},
    keys::{ApiKey, ApiKeys},
    level::{Level, NodeIndex},
    lists::Lists,
    mistake::{Mistake, Notes, Path},
    options::LoadOptions,
    pacing::{cannot_wait, idle_when_soft, paces},
    rule::{
        Allowance, Counting, MetadataStyle, OnStoreError, ResponseOptions, Role, Rule, RuleCounters,
    },
    subject::Variable,
};
use crate::statistics::{KeyLevel, RuleStatistics};

/// Path of the rule for what no rule matches, as people see it; and in buckets' names, where no rule's own path looks so.
const UNMATCHED: (&str, &str) = ("(unmatched)", "%unmatched");

/// Paths of what stands for the lists of a domain.
const DENY_LIST: &str = "(deny list)";
const ALLOW_LIST: &str = "(allow list)";

/// Compiles one file. Counters of rules that `previous` has at the same path go on. Unreachable rules are warned of. What
/// the file does not say of answers and of counting is as in `outer`.
pub fn compile(
    file: PlanFile,
    name: &Arc<str>,
    outer: &LoadOptions,
    previous: Option<&Domain>,
    notes: &mut Notes,
) -> Domain {
    let domain: Arc<str> = file.domain.as_str().into();
    let response = Arc::new(response(file.response, &outer.response));
    let mut compiler = Compiler {
        warn_at: response.warn_at,
        file: Arc::clone(name),
        further: file.further,
        first: 0,
        counters: previous.map(counters).unwrap_or_default(),
        tiers: file.tiers.into_iter().collect(),
        paths: HashSet::new(),
        nodes: Vec::new(),
        rules: Vec::new(),
        levels: Vec::new(),
        key_names: HashSet::new(),
        networks: HashSet::new(),
        secrets: HashSet::new(),
        notes,
        buckets: buckets(&outer.key_prefix, &domain),
        domain,
    };
    let on_store_error = file.on_store_error.map(Into::into).unwrap_or_default();
    let counting = outer
        .counting
        .but(file.algorithm, file.charge, file.overdraw);
    compiler.nodes.push(Node {
        level: None,
        rule: None,
        variable: Variable::Nothing,
        key_rule: None,
    });
    let top = Place {
        path: Path::Top,
        key: &Arc::clone(&compiler.domain),
        shown: "",
        escaped: "",
        on_store_error,
        counting,
    };
    compiler.level(0, file.descriptors.unwrap_or_default(), &top);
    let unmatched = compiler.unmatched(file.unmatched, on_store_error, counting);
    let rules = (
        compiler.list_rule(DENY_LIST, Allowance::Denied),
        compiler.list_rule(ALLOW_LIST, Allowance::Unlimited),
    );
    let (networks, secrets) = (
        mem::take(&mut compiler.networks),
        mem::take(&mut compiler.secrets),
    );
    compiler.warn_if_nobody_is_known(file.allow.as_ref());
    let lists = Lists::new((file.deny, file.allow), rules, networks, secrets);
    if let Some(lists) = &lists {
        compiler
            .rules
            .extend([lists.denied.clone(), lists.allowed.clone()]);
    }
    let keys = compiler.keys(file.api_keys.unwrap_or_default());
    Domain {
        response,
        authentication: file.authentication.map(Authentication::from).map(Arc::new),
        on_store_error,
        counting,
        replaces: compiler.rules.iter().any(|rule| !rule.replaces.is_empty()),
        paces: compiler.rules.iter().any(|rule| paces(rule)),
        tiers: compiler
            .tiers
            .iter()
            .map(|(name, _)| name.as_str().into())
            .collect(),
        key_names: compiler.key_names.into_iter().collect(),
        name: compiler.domain,
        buckets: compiler.buckets,
        rules: compiler.rules,
        nodes: compiler.nodes,
        keys,
        unmatched,
        lists,
        overrides: Overrides::default(),
    }
}

struct Compiler<'n> {
    /// The file that is compiled now, and which of the rules is the first of it.
    file: Arc<str>,
    first: usize,
    further: Vec<(usize, Arc<str>)>,
    domain: Arc<str>,
    buckets: Arc<str>,
    counters: HashMap<Arc<str>, Arc<RuleCounters>>,
    tiers: Vec<(String, TierFile)>,
    /// From how much use of a calendar limit on answers warn, unless it says so itself.
    warn_at: WarnAt,
    /// Paths for people that are taken.
    paths: HashSet<Arc<str>>,
    nodes: Vec<Node>,
    rules: Vec<Arc<Rule>>,
    /// The levels from the top to the rule at hand, as statistics name them.
    levels: Vec<KeyLevel>,
    key_names: HashSet<Box<str>>,
    /// Keys of entries that are addresses, and of those whose API keys count by their secret only.
    networks: HashSet<Box<str>>,
    secrets: HashSet<Box<str>>,
    notes: &'n mut Notes,
}

/// Where a level hangs.
struct Place<'a> {
    path: Path<'a>,
    /// As envoyproxy/ratelimit says it, with the domain.
    key: &'a str,
    shown: &'a str,
    escaped: &'a str,
    on_store_error: OnStoreError,
    counting: Counting,
}

impl Compiler<'_> {
    fn level(&mut self, parent: NodeIndex, rules: Vec<RuleFile>, place: &Place<'_>) {
        if rules.is_empty() {
            return;
        }
        let mut level = Level::with_capacity(rules.len());
        let descriptors = place.path.field("descriptors");
        for (index, rule) in rules.into_iter().enumerate() {
            let node = self.nodes.len() as NodeIndex;
            let index = match place.path {
                Path::Top => self.index_in_file(index),
                _ => index,
            };
            self.warn_if_covered(&level, &rule, &descriptors.item(index));
            match rule.cidr {
                Some(net) => level.add_network(&rule.key, net, node),
                None => level.add_text(&rule.joined(), node),
            }
            self.rule(rule, place, &descriptors.item(index));
        }
        self.nodes[parent as usize].level = Some(Box::new(level));
    }

    /// Where a rule at the top stands in its own file, which is from now on the one that warnings name.
    fn index_in_file(&mut self, index: usize) -> usize {
        let file = self.further.iter().rfind(|(first, _)| *first <= index);
        if let Some((first, file)) = file {
            (self.first, self.file) = (*first, Arc::clone(file));
        }
        index - self.first
    }

    /// Adds a rule and all below it. Nodes are numbered in file order, which patterns rely on.
    fn rule(&mut self, mut file: RuleFile, place: &Place<'_>, path: &Path<'_>) {
        let (element, shown, escaped) = names(&file, place);
        let key = format!("{}.{}", place.key, file.shown());
        let on_store_error = file.on_store_error.map_or(place.on_store_error, Into::into);
        let counting = place
            .counting
            .but(file.algorithm, file.charge, file.overdraw);
        let below = file.descriptors.take().unwrap_or_default();
        if file.cidr.is_some() {
            self.networks.insert(file.key.as_str().into());
        }
        if file.api_key_is.is_some() {
            self.secrets.insert(file.key.as_str().into());
        }
        let key_rule = file.limits_from.map(|_| {
            self.key_names.insert(file.key.as_str().into());
            let name = file.name.as_deref().map(Arc::from);
            Box::new(KeyRule {
                names: OwnedRuleNames::new(RuleNames {
                    buckets: &self.buckets,
                    path: &escaped,
                    shown: &element,
                    name: name.as_ref(),
                    durable: file.durable.map(Into::into),
                    lease: file.lease,
                }),
                beyond: self.beyond(file.mode),
                secret_only: file.api_key_is.is_some(),
                unknown: file
                    .unknown_key
                    .as_ref()
                    .and_then(|name| self.tier_index(name)),
            })
        });
        let variable = variable(&file);
        self.levels.push(key_level(&file));
        let branch = !below.is_empty();
        let names = Names {
            element: &element,
            key: &key,
            shown: &shown,
            escaped: &escaped,
            path,
        };
        let rule = self.compiled(file, &names, on_store_error, counting, branch);
        let index = self.nodes.len() as NodeIndex;
        self.nodes.push(Node {
            level: None,
            rule,
            variable,
            key_rule,
        });
        let place = Place {
            path: *path,
            key: &key,
            shown: &shown,
            escaped: &escaped,
            on_store_error,
            counting,
        };
        self.level(index, below, &place);
        self.levels.pop();
    }

    /// What a rule says, or none for a mere branch.
    fn compiled(
        &mut self,
        file: RuleFile,
        names: &Names<'_>,
        on_store_error: OnStoreError,
        counting: Counting,
        branch: bool,
    ) -> Option<Arc<Rule>> {
        let limited =
            file.rate_limit.is_some() || file.limits.is_some() || file.limits_from.is_some();
        if branch && !limited {
            return None;
        }
        let beyond = self.beyond(file.mode);
        let rate_limit = file.rate_limit;
        let (name, replaces) = match &rate_limit {
            Some(rate_limit) => (rate_limit.name.clone(), rate_limit.replaces.clone()),
            None => (file.name, file.replaces),
        };
        let name: Option<Arc<str>> = name.map(Into::into);
        let (domain, buckets) = (Arc::clone(&self.domain), Arc::clone(&self.buckets));
        let limit_names = RuleNames {
            buckets: &buckets,
            path: names.escaped,
            shown: names.element,
            name: name.as_ref(),
            durable: file.durable.map(Into::into),
            lease: file.lease,
        };
        let mut shared = None;
        let quota = file.quota_mode == Some(true);
        let allowance = match (rate_limit, file.limits, file.limits_from) {
            (Some(rate_limit), ..) => {
                from_rate_limit(&rate_limit, counting.algorithm, limit_names, beyond)
            }
            (_, Some(limits), _) => {
                let limits = counted(&limits, counting.algorithm);
                shared = shared_bucket(&limits).or_else(|| cannot_wait(&limits, counting, quota));
                Allowance::Limits(from_limits(&limits, limit_names, beyond))
            }
            (_, _, Some(_)) => {
                let tiers = self.tiers.iter();
                let tiers = tiers.map(|(_, tier)| {
                    let limits = counted(&tier.limits, counting.algorithm);
                    shared = shared
                        .take()
                        .or_else(|| shared_bucket(&limits))
                        .or_else(|| cannot_wait(&limits, counting, quota));
                    from_limits(&limits, limit_names, beyond)
                });
                Allowance::Tiers(tiers.collect())
            }
            _ => Allowance::Listed,
        };
        if let Some(message) = shared {
            self.notes.error(Mistake {
                file: Arc::clone(&self.file),
                place: file.place,
                path: names.path.to_string(),
                message,
            });
        }
        if let Some(message) = idle_when_soft(&allowance) {
            self.notes.warning(Mistake {
                file: Arc::clone(&self.file),
                place: file.place,
                path: names.path.to_string(),
                message,
            });
        }
        if file.lease.is_some()
            && let Some(message) = unleasable(&allowance, counting, file.durable.is_some())
        {
            self.notes.error(Mistake {
                file: Arc::clone(&self.file),
                place: file.place,
                path: names.path.field("lease").to_string(),
                message,
            });
        }
        let path = self.free_path(names);
        let detailed = file.detailed_metric == Some(true);
        let rule = Arc::new(Rule {
            counters: self.counters_of(&path),
            statistics: Box::new(RuleStatistics::new(&domain, &self.levels, detailed)),
            domain,
            path,
            key: names.key.into(),
            name: name.as_deref().map(Into::into),
            allowance,
            role: match (file.shadow_mode, file.quota_mode) {
                (Some(true), _) => Role::Shadow,
                (_, Some(true)) => Role::Quota,
                _ => Role::Enforced,
            },
            quota,
            counting,
            on_store_error,
            replaces: replaces
                .unwrap_or_default()
                .into_iter()
                .map(|replaced| replaced.name.into())
                .collect(),
            metadata: file.metadata.map(Box::new),
        });
        self.rules.push(Arc::clone(&rule));
        Some(rule)
    }

    /// What a rule says of its limits.
    fn beyond(&self, mode: Option<Mode>) -> Beyond {
        Beyond {
            mode: mode.unwrap_or_default(),
            warn_at: self.warn_at,
        }
    }

    /// A path for people and metrics that no other rule of the domain has; the plain one where that is so.
    fn free_path(&mut self, names: &Names<'_>) -> Arc<str> {
        let numbered = (2..).map(|number| format!("{} ({number})", names.shown));
        let path = [names.shown.to_owned(), names.escaped.to_owned()]
            .into_iter()
            .chain(numbered)
            .map(Arc::<str>::from)
            .find(|path| !self.paths.contains(path))
            .expect("the numbers do not end");
        self.paths.insert(Arc::clone(&path));
        path
    }

    fn counters_of(&self, path: &str) -> Arc<RuleCounters> {
        self.counters.get(path).map(Arc::clone).unwrap_or_default()
    }

    fn unmatched(
        &mut self,
        file: UnmatchedFile,
        on_store_error: OnStoreError,
        counting: Counting,
    ) -> Unmatched {
        let (shown, path) = UNMATCHED;
        let names = RuleNames {
            buckets: &Arc::clone(&self.buckets),
            path,
            shown: "unmatched",
            name: None,
            durable: None,
            lease: None,
        };
        let allowance = match &file {
            UnmatchedFile::Allow => return Unmatched::Allow,
            UnmatchedFile::Deny => Allowance::Denied,
            UnmatchedFile::Limit(limit) => {
                let limits = counted(std::slice::from_ref(limit), counting.algorithm);
                Allowance::Limits(from_limits(&limits, names, self.beyond(None)))
            }
        };
        let rule = Arc::new(Rule {
            domain: Arc::clone(&self.domain),
            path: shown.into(),
            key: format!("{}.{shown}", self.domain).into(),
            name: None,
            allowance,
            role: Role::Enforced,
            quota: false,
            counting,
            on_store_error,
            replaces: Box::default(),
            metadata: None,
            counters: self.counters_of(shown),
            statistics: Box::new(RuleStatistics::fixed(&self.domain, ["unmatched"])),
        });
        self.rules.push(Arc::clone(&rule));
        match file {
            UnmatchedFile::Limit(_) => Unmatched::Limit(rule),
            _ => Unmatched::Deny(rule),
        }
    }

    /// What stands for a list of the domain.
    fn list_rule(&self, path: &str, allowance: Allowance) -> Arc<Rule> {
        Arc::new(Rule {
            domain: Arc::clone(&self.domain),
            path: path.into(),
            key: format!("{}.{path}", self.domain).into(),
            name: None,
            allowance,
            role: Role::Enforced,
            quota: false,
            counting: Counting::default(),
            on_store_error: OnStoreError::default(),
            replaces: Box::default(),
            metadata: None,
            counters: self.counters_of(path),
            statistics: Box::new(RuleStatistics::fixed(&self.domain, [path])),
        })
    }

    fn tier_index(&self, name: &str) -> Option<u32> {
        let index = self.tiers.iter().position(|(tier, _)| tier == name);
        index.map(|index| index as u32)
    }

    fn keys(&self, files: Vec<super::file::ApiKeyFile>) -> ApiKeys {
        let mut keys = ApiKeys::default();
        for file in files {
            let tier = self.tier_index(&file.tier);
            let key = ApiKey {
                id: file.id.into(),
                domain: Arc::clone(&self.domain),
                tier: file.tier.into(),
                tier_index: tier.expect("read() rejects unknown tiers"),
                owner: file.owner.map(Into::into),
            };
            keys.add(file.sha256, &Arc::new(key));
        }
        keys
    }

    /// Warns of a rule that no request reaches, since an earlier pattern takes all that it could meet.
    fn warn_if_covered(&mut self, level: &Level, rule: &RuleFile, path: &Path<'_>) {
        let text = match rule.value {
            _ if rule.cidr.is_some() => return,
            None if !rule.key.contains('*') => format!("{}_*", rule.key),
            _ => rule.joined(),
        };
        if !text.contains('*') {
            return;
        }
        if let Some(earlier) = level.covering(&text) {
            let path_of = self.path_in_brackets(earlier);
            let message =
                format!("never reached: an earlier rule{path_of} meets all of its values");
            self.notes.warning(Mistake {
                file: Arc::clone(&self.file),
                place: rule.place,
                path: path.to_string(),
                message,
            });
        }
    }

    /// Warns of API keys that are to be let pass where no rule tells one from another. Denied ones are refused by ext_authz.
    fn warn_if_nobody_is_known(&mut self, allow: Option<&ListFile>) {
        let keys = allow.filter(|list| !list.api_key.is_empty() && self.key_names.is_empty());
        if let Some((file, place)) = keys.and_then(|list| list.api_key_at.clone()) {
            self.notes.warning(Mistake {
                file,
                place,
                path: "allow.api_key".to_owned(),
                message: "lets nobody pass: keys are known by rules with `limits_from: tier`, and this domain has none"
                    .to_owned(),
            });
        }
    }

    fn path_in_brackets(&self, node: NodeIndex) -> String {
        match self.nodes[node as usize].rule.as_ref() {
            Some(rule) => format!(" (`{}`)", rule.path),
            None => String::new(),
        }
    }
}

/// What a rule is called while it is compiled.
struct Names<'a> {
    element: &'a str,
    key: &'a str,
    shown: &'a str,
    escaped: &'a str,
    /// Where it stands in the file.
    path: &'a Path<'a>,
}

fn response(file: ResponseFile, default: &ResponseOptions) -> ResponseOptions {
    let default = default.clone();
    ResponseOptions {
        retry_after: file.retry_after.unwrap_or(default.retry_after),
        ratelimit: file.ratelimit.unwrap_or(default.ratelimit),
        x_ratelimit: file.x_ratelimit.unwrap_or(default.x_ratelimit),
        degraded: file.degraded.unwrap_or(default.degraded),
        metadata: match file.metadata {
            Some(true) => MetadataStyle::Rule,
            Some(false) => MetadataStyle::None,
            None => default.metadata,
        },
        limit_headers: default.limit_headers,
        // Who writes one body wants to see no other.
        quota_body: file
            .quota_body
            .or_else(|| file.body.clone())
            .map_or(default.quota_body, Into::into),
        body: file.body.map_or(default.body, Into::into),
        content_type: file.content_type.map_or(default.content_type, Into::into),
        warning_header: file
            .warning_header
            .map_or(default.warning_header, Into::into),
        warn_at: file.warn_at.unwrap_or(default.warn_at),
        overage_header: file
            .overage_header
            .map_or(default.overage_header, Into::into),
    }
}

fn counters(domain: &Domain) -> HashMap<Arc<str>, Arc<RuleCounters>> {
    domain
        .rules()
        .map(|rule| (Arc::clone(&rule.path), Arc::clone(&rule.counters)))
        .collect()
}
