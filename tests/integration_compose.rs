//! docker-compose.yml, as far as it can be held to its word without Docker.

use std::{fs, path::PathBuf, process::Command};

use serde_yaml::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn compose() -> Value {
    let text = fs::read_to_string(PathBuf::from(ROOT).join("docker-compose.yml")).unwrap();
    let mut compose: Value = serde_yaml::from_str(&text).unwrap();
    compose.apply_merge().unwrap();
    compose
}

/// The value of a node of the compose file as the container gets it.
fn unescaped(value: &Value) -> String {
    value.as_str().unwrap().replace("$$", "$")
}

#[test]
fn every_service_is_locked_down_and_health_checked() {
    let compose = compose();
    let services = compose["services"].as_mapping().unwrap();
    assert_eq!(services.len(), 4);
    for (name, service) in services {
        let name = name.as_str().unwrap();
        assert_eq!(service["read_only"], Value::Bool(true), "{name}");
        assert_eq!(service["cap_drop"][0].as_str(), Some("ALL"), "{name}");
        assert_eq!(
            service["security_opt"][0].as_str(),
            Some("no-new-privileges:true"),
            "{name}"
        );
        assert!(service["healthcheck"]["test"].is_sequence(), "{name}");
        for port in service["ports"].as_sequence().into_iter().flatten() {
            assert!(
                port.as_str().unwrap().starts_with("127.0.0.1:"),
                "{name} is open to the network"
            );
        }
    }
}

#[test]
fn envoy_starts_with_the_host_names_of_the_services() {
    let folder = tempfile::tempdir().unwrap();
    let inside = |path: &str| folder.path().join(path).display().to_string();
    let script = unescaped(&compose()["services"]["envoy"]["command"][0])
        .replace("/etc/envoy/envoy.yaml", &format!("{ROOT}/envoy/envoy.yaml"))
        .replace("/tmp/envoy.yaml", &inside("rendered.yaml"))
        .replace("exec envoy", "exec echo");
    let done = Command::new("sh").args(["-ec", &script]).output().unwrap();
    let said = String::from_utf8(done.stdout).unwrap();
    assert_eq!(
        said.trim(),
        format!(
            "--config-path {} --disable-hot-restart",
            inside("rendered.yaml")
        )
    );

    let rendered: Value =
        serde_yaml::from_str(&fs::read_to_string(inside("rendered.yaml")).unwrap()).unwrap();
    let clusters = rendered["static_resources"]["clusters"]
        .as_sequence()
        .unwrap();
    let endpoints: Vec<_> = clusters
        .iter()
        .map(|cluster| {
            let endpoint =
                &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
            let address = &endpoint["address"]["socket_address"];
            assert_eq!(cluster["type"].as_str(), Some("STRICT_DNS"));
            (
                address["address"].as_str().unwrap(),
                address["port_value"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(endpoints, [("tollgate", 8081), ("stats", 8000)]);
    let edge = &rendered["static_resources"]["listeners"][0]["address"]["socket_address"];
    assert_eq!(
        (edge["address"].as_str(), edge["port_value"].as_u64()),
        (Some("0.0.0.0"), Some(10000))
    );
}
