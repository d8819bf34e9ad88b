//! Routes, and what the rate limit filter asks on each.
//!
//! Source: the rate limit filter: the descriptors of the most specific per-route configuration win over the filter's own, and
//! those over the older `rate_limits` of route and virtual host.

use std::time::Duration;

use serde_json::Value;

use super::{
    action::{Ask, Facts, Found, Missing, Source, list},
    matcher::{RouteMatcher, flag, number, text},
};

/// Envoy's own patience with the rate-limit service. Source: rate_limit.proto.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(20);

/// A rate limit filter of a connection manager.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Its name in the chain.
    pub name: String,
    /// The domain that it asks about, unless a route says another.
    pub domain: String,
    /// How long Envoy waits for an answer; none for ever.
    pub timeout: Option<Duration>,
    /// Whether requests are refused when there is no answer.
    pub failure_mode_deny: bool,
    /// `internal` or `external` where only such requests are asked about.
    pub requests: Option<String>,
    disabled: bool,
    stage: u64,
    asks: Vec<Ask>,
}

/// What a filter asks on a route.
#[derive(Debug, Clone)]
pub enum Asked {
    /// It is switched off here.
    Off,
    /// It is on, and has nothing to ask: no descriptor stands here.
    Nothing,
    /// These descriptors of that domain.
    Of(String, Vec<Ask>),
}

/// A virtual host.
#[derive(Debug, Clone)]
pub struct VirtualHost {
    /// Its name.
    pub name: String,
    /// The host names it is for.
    pub domains: Vec<String>,
    /// Its routes, in the order in which they are tried.
    pub routes: Vec<Route>,
    /// Whether it has routes that stand in a matcher tree, which is not read.
    pub has_more: bool,
    /// Whether a request's port does not matter for the host name.
    any_port: bool,
}

/// A route.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its name; may be empty.
    pub name: String,
    /// Which requests it takes.
    pub matcher: RouteMatcher,
    /// What Envoy answers by itself, without asking about limits; none for a route to a cluster.
    pub answered: Option<String>,
    /// The cluster that it leads to, if that is always the same.
    pub cluster: Option<String>,
    /// What each rate limit filter asks, in the order of the filters.
    pub asked: Vec<Asked>,
}

impl Filter {
    /// Reads an item of `http_filters`, if it is a rate limit filter.
    pub(super) fn read(item: &Value) -> Option<Self> {
        let config = &item["typed_config"];
        if !text(&config["@type"])?.ends_with(".ratelimit.v3.RateLimit") {
            return None;
        }
        let timeout = match text(&config["timeout"]) {
            None => Some(DEFAULT_TIMEOUT),
            Some(timeout) => duration(timeout).filter(|timeout| !timeout.is_zero()),
        };
        let requests = text(&config["request_type"]).filter(|kind| !["", "both"].contains(kind));
        Some(Self {
            name: text(&item["name"]).unwrap_or_default().to_owned(),
            domain: text(&config["domain"]).unwrap_or_default().to_owned(),
            timeout,
            failure_mode_deny: flag(&config["failure_mode_deny"]),
            requests: requests.map(str::to_owned),
            disabled: flag(&item["disabled"]),
            stage: number(&config["stage"]).unwrap_or_default(),
            asks: asks(&config["rate_limits"]),
        })
    }

    /// What it asks on a route. `levels` are the route, its virtual host and the whole table.
    fn asked(&self, levels: [&Value; 3]) -> Asked {
        let mut specific = levels
            .iter()
            .map(|level| &level["typed_per_filter_config"][&self.name])
            .find(|config| !config.is_null());
        let mut disabled = self.disabled && specific.is_none();
        if let Some(wrapped) = specific
            && text(&wrapped["@type"]).is_some_and(|kind| kind.ends_with(".FilterConfig"))
        {
            disabled |= flag(&wrapped["disabled"]);
            specific = Some(&wrapped["config"]);
        }
        if disabled {
            return Asked::Off;
        }
        let specific = specific.unwrap_or(&Value::Null);
        let domain = text(&specific["domain"]).filter(|domain| !domain.is_empty());
        let own = asks(&specific["rate_limits"]);
        let asks = match (own.is_empty(), self.asks.is_empty()) {
            (false, _) => own,
            (true, false) => self.asks.clone(),
            (true, true) => self.older_asks(levels, specific),
        };
        match asks.is_empty() {
            true => Asked::Nothing,
            false => Asked::Of(domain.unwrap_or(&self.domain).to_owned(), asks),
        }
    }

    fn older_asks(&self, [route, host, _]: [&Value; 3], specific: &Value) -> Vec<Ask> {
        let action = &route["route"];
        let mut asks_of_route = asks(&action["rate_limits"]);
        let include = match text(&specific["vh_rate_limits"]) {
            _ if flag(&action["include_vh_rate_limits"]) => true,
            Some("INCLUDE") => true,
            Some("IGNORE") => false,
            _ => asks_of_route.is_empty(),
        };
        if include {
            asks_of_route.extend(asks(&host["rate_limits"]));
        }
        asks_of_route.retain(|ask| ask.stage == self.stage);
        asks_of_route
    }
}

fn asks(rate_limits: &Value) -> Vec<Ask> {
    list(rate_limits).iter().map(Ask::read).collect()
}

/// `0.25s`, as protobuf's JSON writes it.
fn duration(text: &str) -> Option<Duration> {
    let seconds = text.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Reads the virtual hosts of a route table.
pub(super) fn hosts(table: &Value, filters: &[Filter]) -> Vec<VirtualHost> {
    let hosts = list(&table["virtual_hosts"]).iter();
    hosts
        .map(|host| VirtualHost::read(host, table, filters))
        .collect()
}

impl VirtualHost {
    fn read(host: &Value, table: &Value, filters: &[Filter]) -> Self {
        let domains = list(&host["domains"]).iter().filter_map(text);
        let routes = list(&host["routes"]).iter();
        Self {
            name: text(&host["name"]).unwrap_or_default().to_owned(),
            domains: domains.map(str::to_lowercase).collect(),
            routes: routes
                .map(|route| Route::read(route, host, table, filters))
                .collect(),
            has_more: !host["matcher"].is_null(),
            any_port: flag(&table["ignore_port_in_host_matching"]),
        }
    }

    /// How well a domain of it fits a host name; none if none does. Source: route_components.proto: the exact name, then the
    /// longest suffix `*.name`, then the longest prefix `name.*`, then `*`.
    fn fit(&self, authority: &str) -> Option<(u8, usize)> {
        let fit = |domain: &str| match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
            (Some(""), _) => Some((0, 0)),
            (Some(end), _) => authority.ends_with(end).then_some((2, end.len())),
            (_, Some(start)) => authority.starts_with(start).then_some((1, start.len())),
            _ => (authority == domain).then_some((3, 0)),
        };
        self.domains.iter().filter_map(|domain| fit(domain)).max()
    }
}

/// The route that takes a request, if one does.
///
/// # Errors
/// What is not known of the request.
pub fn find<'c>(
    hosts: &'c [VirtualHost],
    facts: &impl Facts,
) -> Result<Option<&'c Route>, Missing> {
    let host = match hosts {
        [only] if only.domains.iter().any(|domain| domain == "*") => Some(only),
        hosts => match facts.find(&Source::Header(":authority".to_owned())) {
            Found::Unknown(missing) => return Err(missing),
            Found::Absent => None,
            Found::Value(authority) => best_host(hosts, &authority.to_lowercase()),
        },
    };
    for route in host.into_iter().flat_map(|host| &host.routes) {
        if route.matcher.matches(facts)? {
            return Ok(Some(route));
        }
    }
    Ok(None)
}

fn best_host<'c>(hosts: &'c [VirtualHost], authority: &str) -> Option<&'c VirtualHost> {
    let with_fit = |host: &'c VirtualHost| {
        let bare = authority.rsplit_once(':').filter(|_| host.any_port);
        let name = bare.map_or(authority, |(name, _)| name);
        Some((host.fit(name)?, host))
    };
    let fits = hosts.iter().filter_map(with_fit);
    fits.max_by_key(|(fit, _)| *fit).map(|(_, host)| host)
}

impl Route {
    fn read(route: &Value, host: &Value, table: &Value, filters: &[Filter]) -> Self {
        let status = &route["direct_response"]["status"];
        let answered = match () {
            () if !status.is_null() => Some(format!("answered by Envoy with {status}")),
            () if !route["redirect"].is_null() => Some("redirected by Envoy".to_owned()),
            () => None,
        };
        Self {
            name: text(&route["name"]).unwrap_or_default().to_owned(),
            matcher: RouteMatcher::read(&route["match"]),
            answered,
            cluster: text(&route["route"]["cluster"]).map(str::to_owned),
            asked: filters
                .iter()
                .map(|filter| filter.asked([route, host, table]))
                .collect(),
        }
    }
}
