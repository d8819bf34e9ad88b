//! Which limits apply to which routes of an Envoy configuration, and which routes and methods have none. Pure.

mod descriptor;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use crate::{
    envoy::{Ask, Asked, EnvoyConfig, Filter, Manager, Route},
    plan::{Domain, Plans, Rule},
};
use descriptor::{Met, allows, combinations, may_refuse, methods_of, only_if};

/// The methods that are told apart.
pub const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// The least patience with which Envoy hears an answer over a connection that must be opened first, or after a store that did
/// not answer in time.
const ENOUGH: Duration = Duration::from_millis(50);

/// An answer leaves so long before the caller's deadline.
const MARGIN: Duration = Duration::from_millis(2);

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

    /// Warns of a filter that does not wait for those whom the plans let wait.
    fn patience(&mut self, filter: &Filter, domain: &Domain) {
        let (delay, name) = (domain.longest_delay(), domain.name());
        let needed = delay + MARGIN;
        if let Some(timeout) = filter.timeout.filter(|timeout| *timeout < needed)
            && !delay.is_zero()
        {
            self.warn(format!(
                "the filter {} waits {timeout:?} for an answer, but limits of domain {name} delay answers up to {delay:?}: what would wait longer than {:?} is refused; say `timeout: {}s` or more",
                filter.name,
                timeout.saturating_sub(MARGIN),
                needed.as_millis().div_ceil(100) as f64 / 10.0,
            ));
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
        if let Some((state, why)) = on_purpose(route) {
            covered.state = state;
            covered.why = Some(why);
            return covered;
        }
        let asks = asks(manager, route);
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
        covered.state = covered.of_all_methods();
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
        self.patience(filter, domain);
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
        let refuses = !ask.after_response && rules.iter().any(|rule| may_refuse(rule));
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
            let of_list = |rule: &Rule| domain.lists().is_some_and(|lists| lists.has_rule(rule));
            let rules = domain
                .rules()
                .filter(|rule| Some(&rule.path) != unmatched && !of_list(rule));
            let alone = rules.filter(|rule| !self.reached.contains(&(domain.name(), &*rule.path)));
            unreached.extend(alone.map(|rule| RuleName {
                domain: domain.name().to_owned(),
                rule: rule.path.to_string(),
            }));
        }
        unreached
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

/// Why a route that asks about no limit does so on purpose.
fn on_purpose(route: &Route) -> Option<(State, String)> {
    if let Some(answered) = &route.answered {
        return Some((State::AnsweredByEnvoy, answered.clone()));
    }
    let off = route.asked.iter().all(|asked| matches!(asked, Asked::Off));
    let why = "the rate limit filter is switched off here";
    (off && !route.asked.is_empty()).then(|| (State::SwitchedOff, why.to_owned()))
}

/// What is asked on a route: by which filter, about which domain, and what.
fn asks<'c>(manager: &'c Manager, route: &'c Route) -> Vec<(&'c Filter, &'c str, &'c Ask)> {
    let mut asks = Vec::new();
    for (filter, asked) in manager.filters.iter().zip(&route.asked) {
        if let Asked::Of(domain, of_filter) = asked {
            asks.extend(of_filter.iter().map(|ask| (filter, domain.as_str(), ask)));
        }
    }
    asks
}

impl RouteCoverage {
    fn of_all_methods(&self) -> State {
        let none = [&self.limited, &self.partly, &self.without].map(Vec::is_empty);
        match none {
            [false, true, true] => State::Limited,
            [true, true, _] => State::Without,
            _ => State::Partly,
        }
    }
}

/// A route, as warnings call it.
fn label(route: &RouteCoverage) -> String {
    match route.route.as_str() {
        "" => format!("{} {}", route.virtual_host, route.matches),
        name => format!("{} {name} ({})", route.virtual_host, route.matches),
    }
}
