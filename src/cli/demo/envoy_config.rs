//! Envoy's configuration with the demo's ports in it.
//!
//! `envoy/envoy.yaml` marks each line with an address that moves, by `# address: NAME` at its end. Only those lines are
//! written anew, so that what the demo runs is the file that people read. `docker-compose.yml` goes by the same marks.

use std::{fs, io, net::SocketAddr, path::Path};

const FILE: &str = "envoy/envoy.yaml";
const BUILT_IN: &str = include_str!("../../../envoy/envoy.yaml");
const MARK: &str = "# address: ";

/// What is wrong with a configuration to be rendered.
#[derive(Debug, thiserror::Error)]
pub enum EnvoyConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// An address that must move is nowhere.
    #[error(
        "Envoy's configuration has no line `socket_address: {{ … }}  {MARK}{0}`, so that its port cannot be moved"
    )]
    NoMark(String),
    /// A marked line is no address.
    #[error(
        "Envoy's configuration, line {0}: `{MARK}…` must follow `socket_address: {{ … }}` in the same line"
    )]
    NoAddress(usize),
}

/// The text of `path`, which must be there; without one that of `envoy/envoy.yaml` in the current folder, or else the one
/// this program was built with.
///
/// # Errors
/// [`EnvoyConfigError::Read`].
pub fn template(path: Option<&Path>) -> Result<String, EnvoyConfigError> {
    let wanted = path.unwrap_or(Path::new(FILE));
    match fs::read_to_string(wanted) {
        Ok(text) => Ok(text),
        Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
            Ok(BUILT_IN.to_owned())
        }
        Err(source) => Err(EnvoyConfigError::Read {
            path: wanted.display().to_string(),
            source,
        }),
    }
}

/// `template` with the address of each marked line replaced by that of its name. Marks of other names stay as they are.
///
/// # Errors
/// A name without a marked line, or a mark on a line that is no address.
pub fn render(
    template: &str,
    addresses: &[(&str, SocketAddr)],
) -> Result<String, EnvoyConfigError> {
    let mut missing: Vec<&str> = addresses.iter().map(|(name, _)| *name).collect();
    let mut text = String::with_capacity(template.len());
    for (index, line) in template.lines().enumerate() {
        let marked = line.split_once(MARK).and_then(|(yaml, name)| {
            let (_, address) = addresses
                .iter()
                .find(|(known, _)| *known == name.trim_end())?;
            Some((yaml, name.trim_end(), address))
        });
        match marked {
            Some((yaml, name, address)) if !yaml.trim_start().starts_with('#') => {
                let indent = yaml.split_once("socket_address:").map(|(indent, _)| indent);
                let indent = indent.ok_or(EnvoyConfigError::NoAddress(index + 1))?;
                let (ip, port) = (address.ip(), address.port());
                text += &format!(
                    "{indent}socket_address: {{ address: \"{ip}\", port_value: {port} }}  {MARK}{name}"
                );
                missing.retain(|other| *other != name);
            }
            _ => text += line,
        }
        text.push('\n');
    }
    match missing.first() {
        Some(name) => Err(EnvoyConfigError::NoMark((*name).to_owned())),
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use serde_yaml::Value;

    use super::*;

    const NAMES: [&str; 4] = ["edge", "admin", "tollgate", "stats"];

    fn addresses(text: &str) -> Vec<(String, u64)> {
        fn collect(value: &Value, found: &mut Vec<(String, u64)>) {
            match value {
                Value::Mapping(map) => {
                    for (key, value) in map {
                        if key.as_str() == Some("socket_address") {
                            let port = value["port_value"].as_u64().unwrap();
                            found.push((value["address"].as_str().unwrap().to_owned(), port));
                        }
                        collect(value, found);
                    }
                }
                Value::Sequence(items) => items.iter().for_each(|item| collect(item, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        collect(&serde_yaml::from_str(text).unwrap(), &mut found);
        found.sort();
        found
    }

    #[test]
    fn every_address_of_the_shipped_file_moves_and_nothing_else_does() {
        let moved: Vec<_> = (1..)
            .zip(NAMES)
            .map(|(port, name)| (name, SocketAddr::from(([127, 0, 0, 3], port))))
            .collect();
        let text = render(BUILT_IN, &moved).unwrap();
        let expected: Vec<_> = (1..=4).map(|port| ("127.0.0.3".to_owned(), port)).collect();
        assert_eq!(addresses(&text), expected);

        let changed = BUILT_IN
            .lines()
            .zip(text.lines())
            .filter(|(old, new)| old != new);
        assert_eq!(changed.count(), 4);
        assert_eq!(BUILT_IN.lines().count(), text.lines().count());
    }

    #[test]
    fn the_shipped_file_has_the_documented_ports() {
        let address = |ip: &str, port| (ip.to_owned(), port);
        assert_eq!(
            addresses(BUILT_IN),
            [
                address("0.0.0.0", 10000),
                address("127.0.0.1", 8000),
                address("127.0.0.1", 8081),
                address("127.0.0.1", 9901)
            ]
        );
    }

    #[test]
    fn a_configuration_whose_port_cannot_be_moved_is_refused() {
        let at = [("edge", SocketAddr::from(([127, 0, 0, 1], 1)))];
        let missing = render("admin: {}\n", &at).unwrap_err().to_string();
        assert!(missing.contains("# address: edge"), "{missing}");
        let misplaced = render("a: 1\nport_value: 3  # address: edge\n", &at)
            .unwrap_err()
            .to_string();
        assert!(misplaced.contains("line 2"), "{misplaced}");
    }

    #[test]
    fn a_named_file_must_be_there() {
        let error = template(Some(Path::new("nowhere/envoy.yaml")))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("cannot read nowhere/envoy.yaml"),
            "{error}"
        );
    }

    #[test]
    fn no_try_is_cut_shorter_than_the_timeout() {
        let config: Value = serde_yaml::from_str(BUILT_IN).unwrap();
        let manager = &config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0];
        let filters = &manager["typed_config"]["http_filters"];
        let seconds = |value: &Value| value.as_str().unwrap().trim_end_matches('s').parse::<f64>();
        let longest_try = |service: &Value| {
            // Source: Envoy 1.40: a GrpcService's max_interval becomes its per-try timeout, too.
            seconds(&service["retry_policy"]["retry_back_off"]["max_interval"]).unwrap()
        };
        let authz = &filters[0]["typed_config"]["grpc_service"];
        assert!(longest_try(authz) > seconds(&authz["timeout"]).unwrap());
        let limit = &filters[1]["typed_config"];
        let service = &limit["rate_limit_service"]["grpc_service"];
        assert!(longest_try(service) > seconds(&limit["timeout"]).unwrap());
    }
}
