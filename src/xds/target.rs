//! Where a control plane is, in the ways in which gRPC's clients are told.

use std::{fmt, net::Ipv6Addr, path::PathBuf, str::FromStr};

use http::uri::Authority;

/// The port of a target that names its resolver but no port. Source: gRPC's naming document.
const USUAL_PORT: u16 = 443;

/// The address of a control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlPlane {
    /// `host:port`, looked up for each connection.
    Tcp(Authority),
    /// The path of a socket.
    Unix(PathBuf),
    /// None: there never is a connection.
    Nowhere(TargetError),
}

/// What gRPC calls a target: `host:port`, `dns:host:port`, `dns:///host:port`, `dns://name-server/host:port`,
/// `passthrough:///host:port`, `unix:path` or `unix:///path`. Without a host it is this machine, without a port behind a scheme
/// it is 443.
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

impl TargetError {
    fn of(text: &str) -> Self {
        let text = text.to_owned();
        Self { text }
    }
}

impl<'t> Target<'t> {
    /// Reads a target.
    ///
    /// # Errors
    /// [`TargetError`], also for other schemes, like `xds:`.
    pub fn parse(text: &'t str) -> Result<Self, TargetError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let server = ControlPlane::Unix(path.into());
            return match path {
                "" => Err(TargetError::of(text)),
                _ => Ok(Self {
                    server,
                    name_server: None,
                }),
            };
        }
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
            server: server.ok_or_else(|| TargetError::of(text))?,
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
            .map(Self::Tcp)
    }

    /// What calls say they are for. Source: grpc-go, for a socket.
    pub(super) fn authority(&self) -> &str {
        match self {
            Self::Tcp(authority) => authority.as_str(),
            Self::Unix(_) | Self::Nowhere(_) => "localhost",
        }
    }

    /// Whom its certificate is for: the host without the brackets of an IPv6 address.
    pub(super) fn host(&self) -> &str {
        let Self::Tcp(authority) = self else {
            return self.authority();
        };
        let host = authority.host();
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
        match self {
            Self::Tcp(authority) => authority.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Nowhere(error) => error.text.fmt(f),
        }
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
            ("unix:x.sock", "localhost", "unix:x.sock"),
            ("unix:///run/x.sock", "localhost", "unix:/run/x.sock"),
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
            "unix:",
            "xds:///a:1",
        ] {
            assert!(text.parse::<ControlPlane>().is_err(), "{text}");
        }
    }
}
