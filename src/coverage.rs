//! Which limits apply to which routes of an Envoy configuration, and which routes and methods have none. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use crate::{
    envoy::{
        Action, Ask, Asked, EnvoyConfig, Facts, Filter, Found, Manager, Missing, Route, Source,
        action::Absent, matcher::HeaderMatcher,
    },
    plan::{Allowance, Domain, Plans, Role, Rule, RuleLimit},
};

/// The methods that are told apart.
pub const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// The least patience with which Envoy hears an answer over a connection that must be opened first, or after a store that did
/// not answer in time.
const ENOUGH: Duration = Duration::from_millis(50);

/// Most optional entries of a descriptor whose every combination is looked at.
const MOST_OPTIONAL: usize = 6;

/// The answer.
#[derive(Debug, Serialize)]
pub struct Coverage {
    /// Every route.
    pub routes: Vec<RouteCoverage>,
    /// Rules that no route of this configuration reaches; empty where not all routes are known.
    pub unreached: Vec<RuleName>,
    /// What is worth a look.
    pub warnings: Vec<String>,
    /// What the configuration takes from elsewhere, so that it is not told here.
    pub elsewhere: Vec<String>,
}

/// A rule by its name.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct RuleName {
    pub domain: String,
    pub rule: String,
}

/// A route, and what limits it.
#[derive(Debug, Serialize)]
pub struct RouteCoverage {
    /// Its listener.
    pub listener: String,
    /// Its virtual host.
    pub virtual_host: String,
    /// Its own name; may be empty.
    pub route: String,
    /// Which paths it takes, and on which further conditions.
    pub matches: String,
    /// How far it is limited.
    pub state: State,
    /// Why it has that state, where its descriptors do not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Methods all of whose requests meet a rule.
    pub limited: Vec<&'static str>,
    /// Methods some of whose requests meet a rule.
    pub partly: Vec<&'static str>,
    /// Methods none of whose requests meets a rule that could refuse it.
    pub without: Vec<&'static str>,
    /// What is asked, and what it can meet.
    pub descriptors: Vec<DescriptorCoverage>,
}

/// How far a route is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No request meets a rule that could refuse it.
    Without,
    /// Some requests meet a rule.
    Partly,
    /// Every request meets a rule.
    Limited,
    /// The filter is switched off here, on purpose.
    SwitchedOff,
    /// Envoy answers by itself.
    AnsweredByEnvoy,
}

/// A descriptor of a route, and what it can meet.
#[derive(Debug, Serialize)]
pub struct DescriptorCoverage {
    /// The domain that is asked.
    pub domain: String,
    /// Keys and where their values come from.
    pub entries: String,
    /// What a request must have, or be, to get it.
    pub only_if: Vec<String>,
    /// Rules that it can meet.
    pub rules: Vec<RuleCoverage>,
    /// Whether each of its values meets a rule.
    pub every_value: bool,
}

/// A rule that a descriptor can meet.
#[derive(Debug, Serialize)]
pub struct RuleCoverage {
    /// Its path.
    pub rule: String,
    /// What it allows.
    pub allows: String,
}

/// Looks at every route of `config` with the rules of `plans`.
pub fn coverage(config: &EnvoyConfig, plans: &Plans) -> Coverage {
    let mut survey = Survey {
        plans,
        reached: BTreeSet::new(),
        unmatched: BTreeMap::new(),
        warnings: plans.warnings().iter().map(ToString::to_string).collect(),
    };
    let mut routes = Vec::new();
    for manager in &config.managers {
        survey.filters(manager);
        for host in &manager.hosts {
            for route in &host.routes {
                routes.push(survey.route(manager, &host.name, route));
            }
        }
    }
    for manager in &config.managers {
        for host in manager.hosts.iter().filter(|host| host.has_more) {
            let what = "has routes in a matcher tree, which are not told here";
            survey.warn(format!(
                "{}: the virtual host {} {what}",
                manager.name, host.name
            ));
        }
    }
    survey.uncovered(&routes);
    survey.unmatched_descriptors();
    let whole = config.elsewhere.is_empty();
    let unreached = if whole {
        survey.unreached(config)
    } else {
        Vec::new()
    };
    for RuleName { domain, rule } in &unreached {
        survey.warn(format!(
            "no route reaches the rule `{rule}` of domain {domain}"
        ));
    }
    Coverage {
        routes,
        unreached,
        warnings: survey.warnings,
        elsewhere: config.elsewhere.clone(),
    }
}

struct Survey<'p> {
    plans: &'p Plans,
    /// Domain and path of rules that some route reaches.
    reached: BTreeSet<(&'p str, &'p str)>,
    /// Descriptors that meet no rule, each with its routes.
    unmatched: BTreeMap<(String, String), BTreeSet<String>>,
    warnings: Vec<String>,
}

impl<'p> Survey<'p> {
    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn filters(&mut self, manager: &Manager) {
        let name = &manager.name;
        if manager.filters.is_empty() && !manager.hosts.is_empty() {
            self.warn(format!(
                "{name}: no rate limit filter, so nothing limits its routes"
            ));
        }
        for filter in &manager.filters {
            if let Some(timeout) = filter.timeout.filter(|timeout| *timeout < ENOUGH) {
                self.warn(format!(
                    "{name}: the filter {} waits {timeout:?} for an answer, and then {}: too short for the first answer over a new connection, and for one after a store that is slow (10ms unless told); say `timeout: 1s`",
                    filter.name,
                    without_answer(filter),
                ));
            }
        }
    }

    fn route(&mut self, manager: &Manager, host: &str, route: &Route) -> RouteCoverage {
        let mut covered = RouteCoverage {
            listener: manager.name.clone(),
            virtual_host: host.to_owned(),
            route: route.name.clone(),
            matches: route.matcher.to_string(),
            state: State::Without,
            why: None,
            limited: Vec::new(),
            partly: Vec::new(),
            without: Vec::new(),
            descriptors: Vec::new(),
        };
        if let Some(answered) = &route.answered {
            covered.state = State::AnsweredByEnvoy;
            covered.why = Some(answered.clone());
            return covered;
        }
        let off = route.asked.iter().all(|asked| matches!(asked, Asked::Off));
        if off && !route.asked.is_empty() {
            covered.state = State::SwitchedOff;
            covered.why = Some("the rate limit filter is switched off here".to_owned());
            return covered;
        }
        let mut asks = Vec::new();
        for (filter, asked) in manager.filters.iter().zip(&route.asked) {
            if let Asked::Of(domain, of_filter) = asked {
                asks.extend(of_filter.iter().map(|ask| (filter, domain.as_str(), ask)));
            }
        }
        if asks.is_empty() {
            covered.why = Some("it asks for no descriptor".to_owned());
        }
        let label = label(&covered);
        let names_keys = asks
            .iter()
            .any(|(_, domain, ask)| self.names_keys(domain, ask));
        let met: Vec<Met<'_>> = asks
            .into_iter()
            .map(|(filter, domain, ask)| self.ask(filter, domain, ask, names_keys, &label))
            .collect();
        for method in methods_of(&route.matcher.headers) {
            let state = met.iter().map(|met| met.state(method)).max();
            match state.unwrap_or(State::Without) {
                State::Limited => covered.limited.push(method),
                State::Partly => covered.partly.push(method),
                _ => covered.without.push(method),
            }
        }
        covered.state = match (
            covered.limited.is_empty(),
            covered.partly.is_empty(),
            covered.without.is_empty(),
        ) {
            (false, true, true) => State::Limited,
            (true, true, _) => State::Without,
            _ => State::Partly,
        };
        covered.descriptors = met.into_iter().map(|met| met.told).collect();
        covered
    }

    /// Whether a descriptor may name an API key.
    fn names_keys(&self, domain: &str, ask: &Ask) -> bool {
        let domain = self.plans.domain(domain);
        domain.is_some_and(|domain| {
            ask.actions
                .iter()
                .any(|action| domain.holds_api_key(&action.key))
        })
    }

    fn ask<'a>(
        &mut self,
        filter: &Filter,
        domain: &str,
        ask: &'a Ask,
        names_keys: bool,
        route: &str,
    ) -> Met<'a> {
        let mut told = DescriptorCoverage {
            domain: domain.to_owned(),
            entries: ask.to_string(),
            only_if: only_if(filter, ask),
            rules: Vec::new(),
            every_value: false,
        };
        let Some(domain) = self.plans.domain(domain) else {
            self.warn(format!(
                "no plan has the domain `{domain}`, which the filter {} asks: all its requests pass",
                filter.name
            ));
            return Met {
                ask,
                told,
                refuses: false,
            };
        };
        let mut rules: Vec<&'p Arc<Rule>> = Vec::new();
        let mut every = true;
        for mut entries in combinations(&ask.actions) {
            if names_keys {
                // A known API key's tier stands in for the one that is sent.
                let tiers = entries.iter_mut().filter(|(key, _)| *key == "tier");
                tiers.for_each(|(_, value)| *value = None);
            }
            let reach = domain.reach(&entries);
            every &= reach.always;
            for rule in reach.rules {
                if !rules.iter().any(|known| Arc::ptr_eq(known, rule)) {
                    rules.push(rule);
                }
            }
        }
        if rules.is_empty() {
            let known = (domain.name().to_owned(), told.entries.clone());
            self.unmatched
                .entry(known)
                .or_default()
                .insert(route.to_owned());
        }
        if !every {
            rules.extend(domain.unmatched_rule());
        }
        self.reached
            .extend(rules.iter().map(|rule| (domain.name(), &*rule.path)));
        let refuses = !ask.after_response && rules.iter().any(|rule| rule.role != Role::Shadow);
        told.every_value = every || domain.unmatched_rule().is_some();
        told.rules = rules
            .into_iter()
            .map(|rule| RuleCoverage {
                rule: rule.path.to_string(),
                allows: allows(domain, rule),
            })
            .collect();
        Met { ask, told, refuses }
    }

    fn uncovered(&mut self, routes: &[RouteCoverage]) {
        for route in routes {
            let label = label(route);
            match route.state {
                State::Without => self.warn(format!("no limit applies to {label}")),
                _ if !route.without.is_empty() => {
                    let methods = route.without.join(", ");
                    self.warn(format!("no limit applies to {methods} of {label}"));
                }
                _ => {}
            }
        }
    }

    fn unmatched_descriptors(&mut self) {
        for ((domain, entries), routes) in std::mem::take(&mut self.unmatched) {
            let routes: Vec<String> = routes.into_iter().collect();
            let routes = routes.join(", ");
            self.warn(format!(
                "no rule of domain {domain} matches ({entries}), asked on {routes}"
            ));
        }
    }

    /// Rules that nobody reaches, of the domains that somebody asks.
    fn unreached(&self, config: &EnvoyConfig) -> Vec<RuleName> {
        let asked = asked_domains(config);
        let mut unreached = Vec::new();
        for domain in self
            .plans
            .domains()
            .filter(|domain| asked.contains(domain.name()))
        {
            let unmatched = domain.unmatched_rule().map(|rule| &rule.path);
            let rules = domain.rules().filter(|rule| Some(&rule.path) != unmatched);
            let alone = rules.filter(|rule| !self.reached.contains(&(domain.name(), &*rule.path)));
            unreached.extend(alone.map(|rule| RuleName {
                domain: domain.name().to_owned(),
                rule: rule.path.to_string(),
            }));
        }
        unreached
    }
}

/// A descriptor and what it can meet, before it is known for which method.
struct Met<'a> {
    ask: &'a Ask,
    told: DescriptorCoverage,
    /// Whether it ever refuses anybody: rules in shadow mode do not, and neither does what is asked after the response.
    refuses: bool,
}

impl Met<'_> {
    /// How far it limits the requests of a method.
    fn state(&self, method: &str) -> State {
        let facts = Method(method);
        let mut state = match (self.refuses, self.told.every_value) {
            (false, _) => return State::Without,
            (true, true) => State::Limited,
            (true, false) => State::Partly,
        };
        for action in &self.ask.actions {
            match action
                .only_if
                .as_ref()
                .map(|condition| condition.holds(&facts))
            {
                Some(Ok(false)) => return State::Without,
                Some(Err(_)) => state = State::Partly,
                None if may_be_absent(action) => state = State::Partly,
                _ => {}
            }
        }
        match self
            .told
            .only_if
            .iter()
            .any(|only| only.ends_with(" requests"))
        {
            true => State::Partly,
            false => state,
        }
    }
}

/// A request of which only the method is known.
struct Method<'a>(&'a str);

impl Facts for Method<'_> {
    fn find(&self, source: &Source) -> Found<'_> {
        match source {
            Source::Header(name) if name == ":method" => Found::Value(self.0.into()),
            other => Found::Unknown(Missing(other.to_string())),
        }
    }
}

fn methods_of(headers: &[HeaderMatcher]) -> impl Iterator<Item = &'static str> {
    let takes = |method: &&str| {
        !matches!(
            HeaderMatcher::all_match(headers, &Method(method)),
            Ok(false)
        )
    };
    METHODS.into_iter().filter(takes)
}

/// Whether a request may lack it, which drops the descriptor.
fn may_be_absent(action: &Action) -> bool {
    let always = match &action.source {
        Source::Text(_) | Source::Address | Source::Network(..) | Source::Cluster => true,
        Source::Header(name) => [":method", ":path", ":authority"].contains(&name.as_str()),
        _ => false,
    };
    !always && action.absent == Absent::Drop
}

/// What a request must have, or be, to get a descriptor.
fn only_if(filter: &Filter, ask: &Ask) -> Vec<String> {
    let requests = filter
        .requests
        .iter()
        .map(|kind| format!("{kind} requests"));
    let conditions = ask.actions.iter().filter_map(|action| {
        let condition = action.only_if.as_ref().map(ToString::to_string);
        condition.or_else(|| may_be_absent(action).then(|| format!("{} is there", action.source)))
    });
    conditions.chain(requests).collect()
}

/// The entries that a descriptor can have, with and without those that may be left out.
fn combinations(actions: &[Action]) -> Vec<Vec<(&str, Option<&str>)>> {
    let entry = |action: &Action| action.absent == Absent::Skip;
    let optional = actions.iter().filter(|action| entry(action)).count();
    let choices = 1_u32 << optional.min(MOST_OPTIONAL);
    (0..choices)
        .map(|choice| {
            let mut left = choice;
            let chosen = actions.iter().filter(|action| {
                let leave_out = entry(action) && left & 1 == 1;
                if entry(action) {
                    left >>= 1;
                }
                !leave_out
            });
            let shapes: Vec<_> = chosen.map(shape).collect();
            shapes
        })
        .collect()
}

fn shape(action: &Action) -> (&str, Option<&str>) {
    match &action.source {
        Source::Text(value) => (&action.key, Some(value)),
        _ => (&action.key, None),
    }
}

fn asked_domains(config: &EnvoyConfig) -> BTreeSet<&str> {
    let hosts = config.managers.iter().flat_map(|manager| &manager.hosts);
    let asked = hosts
        .flat_map(|host| &host.routes)
        .flat_map(|route| &route.asked);
    asked
        .filter_map(|asked| match asked {
            Asked::Of(domain, _) => Some(domain.as_str()),
            _ => None,
        })
        .collect()
}

fn without_answer(filter: &Filter) -> &'static str {
    match filter.failure_mode_deny {
        true => "refuses",
        false => "lets pass, unlimited",
    }
}

/// A route, as warnings call it.
fn label(route: &RouteCoverage) -> String {
    match route.route.as_str() {
        "" => format!("{} {}", route.virtual_host, route.matches),
        name => format!("{} {name} ({})", route.virtual_host, route.matches),
    }
}

/// What a rule allows, in words.
fn allows(domain: &Domain, rule: &Rule) -> String {
    let limits = |limits: &[Arc<RuleLimit>]| match limits {
        [] => "no limit".to_owned(),
        limits => {
            let texts: Vec<String> = limits.iter().map(|limit| limit.limit.to_string()).collect();
            texts.join(" and ")
        }
    };
    let allows = match &rule.allowance {
        Allowance::Unlimited => "unlimited".to_owned(),
        Allowance::Listed => "no limit".to_owned(),
        Allowance::Denied => "nothing".to_owned(),
        Allowance::Limits(own) => limits(own),
        Allowance::Tiers(tiers) => {
            let named = domain.tiers().iter().zip(tiers);
            let texts: Vec<String> = named
                .map(|(name, own)| format!("{name}: {}", limits(own)))
                .collect();
            texts.join("; ")
        }
    };
    match rule.role {
        Role::Enforced => allows,
        Role::Shadow => format!("{allows} (in shadow mode)"),
        Role::Quota => format!("{allows} (in quota mode)"),
    }
}
