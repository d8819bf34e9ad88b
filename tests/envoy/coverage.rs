//! `tollgate check --envoy` beside a real Envoy: what it says of each route and method is what happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use hyper::Method;
use serde_json::Value;

use crate::{
    common::{home::finished, plans, tollgate_command, wait_for},
    stack::{Stack, Upstream},
    tools::{REQUESTS, ROUTES},
};

const METHODS: [Method; 4] = [Method::GET, Method::HEAD, Method::POST, Method::DELETE];

/// What of a route's requests by a method is refused where every request that is asked about is: all, some or none.
type Refused = BTreeMap<(String, String), BTreeSet<bool>>;

#[tokio::test]
async fn every_route_and_method_is_limited_as_check_says() {
    // Whatever is asked about is refused, so 429 says that a limit applies.
    let (_folder, path) = plans("domain: stats-api\nunmatched: deny\n");
    let mut written = serde_yaml::Value::Null;
    let stack = Stack::start(&path, &[], Upstream::recording().0, |config| {
        let manager = config.connection_manager();
        let mut routes: serde_yaml::Value = serde_yaml::from_str(ROUTES).expect("YAML");
        let all = routes["virtual_hosts"][1]["routes"].as_sequence_mut();
        for (number, route) in all.expect("a list").iter_mut().enumerate() {
            route["name"] = format!("route {number}").into();
        }
        manager["route_config"] = routes;
        let format = &mut manager["access_log"][0]["typed_config"]["log_format"]["json_format"];
        format["route"] = "%ROUTE_NAME%".into();
        config.drop_authz();
        written = config.0.clone();
    })
    .await;
    let mut client = stack.envoy.client().await;
    for method in METHODS {
        for (path, user) in REQUESTS {
            let user = [("x-user", user)];
            let headers = if user[0].1.is_empty() {
                &user[1..]
            } else {
                &user[..]
            };
            client.ask(method.clone(), path, headers).await;
        }
    }
    let lines = wait_for("the access log", || {
        let lines = stack.envoy.access_log();
        (lines.len() == METHODS.len() * REQUESTS.len()).then_some(lines)
    });
    let mut refused = Refused::new();
    for line in lines {
        let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        let of_route = refused.entry((text("route"), text("method"))).or_default();
        of_route.insert(line["status"] == 429);
    }

    let file = path.join("envoy.json");
    fs::write(&file, serde_json::to_string(&written).expect("JSON")).expect("writable");
    let mut check = tollgate_command();
    check
        .args(["check", "--output", "json", "--envoy"])
        .arg(file)
        .arg(path.join("plans.yaml"));
    let (code, told, errors) = finished(&mut check);
    assert_eq!(code, 0, "{errors}");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let mut seen = BTreeSet::new();
    for route in told["routes"].as_array().expect("a list") {
        let name = route["route"].as_str().expect("text");
        let has = |list: &str, method: &Method| {
            let list = route[list].as_array().expect("a list");
            list.iter().any(|known| known == method.as_str())
        };
        for method in METHODS {
            let Some(refused) = refused.get(&(name.to_owned(), method.to_string())) else {
                continue;
            };
            let (limited, partly) = (has("limited", &method), has("partly", &method));
            let as_said = match (limited, partly) {
                (true, _) => *refused == BTreeSet::from([true]),
                // What that hangs on, these requests may all have, or none.
                (_, true) => true,
                _ => *refused == BTreeSet::from([false]),
            };
            assert!(as_said, "{method}: {refused:?}, and it says {route:#}");
            seen.insert((limited, partly, refused.len()));
        }
    }
    for kind in [(true, false, 1), (false, true, 2), (false, false, 1)] {
        assert!(seen.contains(&kind), "{kind:?} in {seen:?}");
    }
    let asked: BTreeSet<_> = refused.keys().map(|(route, _)| route).collect();
    assert!(asked.len() > 15, "{asked:?}");
}
