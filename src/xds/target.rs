//! Where a control plane is, in the ways in which gRPC's clients are told.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use http::uri::Authority;

/// The port of a target that names its resolver but no port. Source: gRPC's naming document.
const USUAL_PORT: u16 = 443;

/// The address of a control plane: `host:port`, looked up for each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlane(Authority);

/// What gRPC calls a target: `host:port`, `dns:host:port`, `dns:///host:port`, `dns://name-server/host:port` or
/// `passthrough:///host:port`. Without a host it is this machine, without a port behind a scheme it is 443.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'t> {
    /// Where the connection goes.
    pub server: ControlPlane,
    /// Who is to be asked for the host's address; the system's own resolver is asked all the same.
    pub name_server: Option<&'t str>,
}

/// The text is no such address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no address of a control plane: write host:port, like envoy-gateway:18001")]
pub struct TargetError {
    text: String,
}

impl<'t> Target<'t> {
    /// Reads a target.
    ///
    /// # Errors
    /// [`TargetError`], also for other schemes, like `unix:` and `xds:`.
    pub fn parse(text: &'t str) -> Result<Self, TargetError> {
        let (named, rest) = match text.split_once(':') {
            Some((scheme, rest))
                if ["dns", "passthrough"]
                    .iter()
                    .any(|known| scheme.eq_ignore_ascii_case(known)) =>
            {
                (true, rest)
            }
            _ => (false, text),
        };
        let (name_server, address) = match rest.strip_prefix("//").filter(|_| named) {
            Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
            None => ("", rest),
        };
        let server = ControlPlane::of(address, named.then_some(USUAL_PORT));
        Ok(Self {
            server: server.ok_or_else(|| TargetError {
                text: text.to_owned(),
            })?,
            name_server: (!name_server.is_empty()).then_some(name_server),
        })
    }
}

impl ControlPlane {
    fn of(address: &str, usual_port: Option<u16>) -> Option<Self> {
        let mut whole = match address.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) if address.starts_with(':') => format!("localhost{address}"),
            Err(_) => address.to_owned(),
        };
        let authority = |text: &str| text.parse::<Authority>().ok();
        if let (None, Some(port)) = (authority(&whole)?.port(), usual_port) {
            whole = format!("{whole}:{port}");
        }
        authority(&whole)
            .filter(|authority| authority.port_u16().is_some() && !whole.contains('@'))
            .map(Self)
    }

    /// Without the brackets of an IPv6 address.
    pub(super) fn host(&self) -> &str {
        let host = self.0.host();
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
    }
}

impl FromStr for ControlPlane {
    type Err = TargetError;

    /// Reads any [`Target`].
    fn from_str(text: &str) -> Result<Self, TargetError> {
        Ok(Target::parse(text)?.server)
    }
}

impl fmt::Display for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_those_of_grpc() {
        for (text, host, shown) in [
            ("localhost:18000", "localhost", "localhost:18000"),
            ("dns:gateway:1", "gateway", "gateway:1"),
            ("dns:gateway", "gateway", "gateway:443"),
            ("DNS:///gateway:18001", "gateway", "gateway:18001"),
            ("dns:///gateway", "gateway", "gateway:443"),
            ("dns://8.8.8.8/gateway", "gateway", "gateway:443"),
            ("dns:///::1", "::1", "[::1]:443"),
            ("passthrough:///gateway:1", "gateway", "gateway:1"),
            ("passthrough:gateway:1", "gateway", "gateway:1"),
            ("dns:1", "1", "1:443"),
            (":18000", "localhost", "localhost:18000"),
            ("[::1]:18000", "::1", "[::1]:18000"),
        ] {
            let address: ControlPlane = text.parse().unwrap();
            assert_eq!(
                (address.host(), address.to_string().as_str()),
                (host, shown)
            );
        }
        let server = |text| Target::parse(text).unwrap().name_server;
        assert_eq!(server("dns://8.8.8.8:53/gateway:1"), Some("8.8.8.8:53"));
        assert_eq!(server("dns:///gateway:1"), None);
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for text in [
            "",
            "localhost",
            "::1",
            "http://localhost:1",
            "a:b",
            "u@h:1",
            "h:99999",
            "dns:",
            "dns:///",
            "dns://8.8.8.8",
            "dns:///a:b",
            "unix:/run/x.sock",
        ] {
            assert!(text.parse::<ControlPlane>().is_err(), "{text}");
        }
    }
}
