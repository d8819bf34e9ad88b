//! `envoy.service.auth.v3.Authorization`: is there a valid API key, and whose is it?
//!
//! `find` looks where the plans say that a request carries its key, `answer` says what Envoy is to do.

mod answer;
mod find;

use std::{net::IpAddr, sync::Arc};

use envoy_types::pb::envoy::{
    config::core::v3::address::Address as SourceAddress,
    service::auth::v3::{
        AttributeContext, CheckRequest, CheckResponse, attribute_context::HttpRequest,
        authorization_server::Authorization,
    },
};
use tonic::{Request, Response, Status};

use self::answer::Refusal;
use super::status;
use crate::{
    keys::{Form, form},
    limiter::DecideError,
    metrics::{CheckLabels, CheckResult, Metrics},
    plan::{Authentication, Domain, KeyCheck, List, Plans, SharedPlans},
    settings::Dialect,
};

/// The context extension of a route that names the domain whose keys open it.
const DOMAIN: &str = "domain";

/// The service.
#[derive(Debug)]
pub struct Service {
    plans: Arc<SharedPlans>,
    metrics: Arc<Metrics>,
}

impl Service {
    /// Looks keys up in `plans`.
    pub fn new(plans: Arc<SharedPlans>, metrics: Arc<Metrics>) -> Self {
        Self { plans, metrics }
    }

    fn count(&self, result: CheckResult) {
        self.metrics
            .key_checks
            .get_or_create(&CheckLabels { result })
            .inc();
    }

    fn refuse(&self, asked: &Authentication, result: CheckResult) -> CheckResponse {
        self.count(result);
        let refusal = match result {
            CheckResult::Missing => Refusal::Missing,
            CheckResult::Mistyped => Refusal::Mistyped,
            CheckResult::Denied => Refusal::Denied,
            _ => Refusal::Invalid,
        };
        answer::refusal(asked, refusal)
    }

    fn answer(
        &self,
        plans: &Plans,
        scope: &Scope<'_>,
        http: &HttpRequest,
    ) -> Option<CheckResponse> {
        let asked = scope.authentication;
        if scope.denies(plans, |list| {
            scope.address.is_some_and(|from| list.has_address(from))
        }) {
            return Some(self.refuse(asked, CheckResult::Denied));
        }
        let Some(found) = find::secret(http, &asked.key_from) else {
            return Some(self.refuse(asked, CheckResult::Missing));
        };
        let result = match scope.check(plans, &found.secret) {
            KeyCheck::Known(key) if scope.denies(plans, |list| list.has_key(key.id())) => {
                CheckResult::Denied
            }
            KeyCheck::Known(key) => {
                self.count(CheckResult::Known);
                return Some(answer::welcome(key, asked, http, found.source));
            }
            KeyCheck::Disabled => CheckResult::Disabled,
            KeyCheck::Expired => CheckResult::Expired,
            KeyCheck::Unknown if form(&found.secret) == Form::Mistyped => CheckResult::Mistyped,
            KeyCheck::Unknown if !plans.keys_are_complete() => return None,
            KeyCheck::Unknown => CheckResult::Unknown,
        };
        Some(self.refuse(asked, result))
    }
}

#[tonic::async_trait]
impl Authorization for Service {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let attributes = request.into_inner().attributes.unwrap_or_default();
        let plans = self.plans.load();
        if !plans.loaded() {
            let none = DecideError::NoPlans;
            return Err(status::undecided(&self.metrics, Dialect::Tollgate, &none));
        }
        let scope = Scope::of(&plans, &attributes);
        let http = attributes
            .request
            .as_ref()
            .and_then(|request| request.http.as_ref());
        let none = HttpRequest::default();
        match self.answer(&plans, &scope, http.unwrap_or(&none)) {
            Some(answer) => Ok(Response::new(answer)),
            None => Err(status::keys_awaited(&self.metrics)),
        }
    }
}

/// Whose keys open.
enum Keys<'p> {
    /// Those of all domains: the route names none.
    All,
    /// Those of the domain that the route names.
    Of(&'p Domain),
    /// No plan has the domain that the route names, so none does.
    None,
}

/// Whose keys open, and how they are asked for.
struct Scope<'p> {
    keys: Keys<'p>,
    authentication: &'p Authentication,
    /// Where the request comes from, as Envoy takes it.
    address: Option<IpAddr>,
}

impl<'p> Scope<'p> {
    fn of(plans: &'p Plans, attributes: &AttributeContext) -> Self {
        let named = attributes.context_extensions.get(DOMAIN);
        let keys = named.map_or(Keys::All, |name| {
            plans.domain(name).map_or(Keys::None, Keys::Of)
        });
        let own = match keys {
            Keys::Of(domain) => domain.authentication(),
            Keys::All | Keys::None => None,
        };
        Self {
            keys,
            authentication: own.unwrap_or(plans.authentication()),
            address: source_address(attributes),
        }
    }

    /// Whether the deny list of the domain, or of any if the route names none, meets the client.
    fn denies(&self, plans: &Plans, meets: impl Fn(&List) -> bool) -> bool {
        let denies = |domain: &Domain| domain.lists().is_some_and(|lists| meets(&lists.deny));
        match self.keys {
            Keys::Of(domain) => denies(domain),
            Keys::All | Keys::None => plans.domains().any(denies),
        }
    }

    fn check(&self, plans: &'p Plans, secret: &[u8]) -> KeyCheck<'p> {
        match self.keys {
            Keys::All => plans.check_secret(secret),
            Keys::Of(domain) => domain.check_secret(plans.stored_keys(), secret),
            Keys::None => KeyCheck::Unknown,
        }
    }
}

fn source_address(attributes: &AttributeContext) -> Option<IpAddr> {
    let address = attributes.source.as_ref()?.address.as_ref()?;
    match address.address.as_ref()? {
        SourceAddress::SocketAddress(socket) => socket.address.parse().ok(),
        _ => None,
    }
}
