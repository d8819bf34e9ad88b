//! The demo's ports: each is free before anything starts, or all that are not are named together.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
};

/// An address that a part of the demo wants, and how to give it another one.
#[derive(Debug, Clone, Copy)]
pub struct Port {
    address: SocketAddr,
    who: &'static str,
    flag: &'static str,
}

/// A port that is ours until this is dropped.
#[derive(Debug)]
pub struct Reserved {
    listener: TcpListener,
    address: SocketAddr,
}

/// Every port that cannot be had, one a line.
#[derive(Debug, thiserror::Error)]
pub struct PortsError(Vec<String>);

impl fmt::Display for PortsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n  "))
    }
}

impl Port {
    /// `who` needs `address`, which `flag` moves.
    pub fn new(address: SocketAddr, who: &'static str, flag: &'static str) -> Self {
        Self { address, who, flag }
    }
}

impl Reserved {
    /// The address with the port that was really taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port as a listener of this process.
    pub fn into_listener(self) -> io::Result<tokio::net::TcpListener> {
        self.listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(self.listener)
    }
}

/// Reads a flag: a port alone is one of 127.0.0.1.
pub fn parse(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse() {
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }
    text.parse()
        .map_err(|_| "neither a port nor IP:PORT, like 10000 or 0.0.0.0:10000".to_owned())
}

/// Where a client on this machine reaches `address`: a server on every address is on 127.0.0.1 too.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            address.set_ip(std::net::Ipv6Addr::LOCALHOST.into())
        }
        _ => {}
    }
    address
}

/// Takes all of `wanted`, in order.
///
/// # Errors
/// Names every one that cannot be taken, also for being wanted twice.
pub fn reserve<const N: usize>(wanted: [Port; N]) -> Result<[Reserved; N], PortsError> {
    let tried = wanted.map(|port| (port, bind(port.address)));
    let refused: Vec<String> = tried
        .iter()
        .filter_map(|(port, bound)| Some(complaint(port, bound.as_ref().err()?, &tried)))
        .collect();
    if !refused.is_empty() {
        return Err(PortsError(refused));
    }
    Ok(tried.map(|(_, bound)| bound.expect("those refused have returned above")))
}

/// Takes any free port of 127.0.0.1.
///
/// # Errors
/// The system has none left.
pub fn reserve_any() -> Result<Reserved, PortsError> {
    let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    bind(any).map_err(|error| PortsError(vec![format!("no free port on 127.0.0.1: {error}")]))
}

fn bind(address: SocketAddr) -> io::Result<Reserved> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    Ok(Reserved { listener, address })
}

fn complaint(port: &Port, error: &io::Error, tried: &[(Port, io::Result<Reserved>)]) -> String {
    let Port { address, who, flag } = port;
    let number = address.port();
    let ours = tried.iter().find(|(_, bound)| {
        bound
            .as_ref()
            .is_ok_and(|taken| taken.address.port() == number)
    });
    match (error.kind(), ours) {
        (io::ErrorKind::AddrInUse, Some((other, _))) => {
            format!(
                "port {number} is wanted twice: by {} ({}) and by {who} ({flag})",
                other.who, other.flag
            )
        }
        (io::ErrorKind::AddrInUse, None) => {
            format!("port {number} is in use: {who} needs it; choose another with {flag}")
        }
        _ => format!("{who} cannot listen on {address}: {error}; choose another with {flag}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(port: u16) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
    }

    #[test]
    fn a_flag_is_a_port_or_an_address() {
        assert_eq!(parse("10000"), Ok(local(10000)));
        assert_eq!(parse("0.0.0.0:80"), Ok("0.0.0.0:80".parse().unwrap()));
        assert_eq!(parse("[::1]:80"), Ok("[::1]:80".parse().unwrap()));
        for wrong in ["", "localhost:80", "70000", "127.0.0.1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_taken_port_is_named_with_its_flag() {
        let (a, b) = (reserve_any().unwrap(), reserve_any().unwrap());
        let wanted = [
            Port::new(a.address(), "Envoy's listener", "--listen"),
            Port::new(local(0), "the stats service", "--stats-listen"),
            Port::new(b.address(), "Envoy's admin page", "--admin-listen"),
        ];
        assert_eq!(
            reserve(wanted).unwrap_err().to_string(),
            format!(
                "port {} is in use: Envoy's listener needs it; choose another with --listen\n  \
                 port {} is in use: Envoy's admin page needs it; choose another with --admin-listen",
                a.address().port(),
                b.address().port()
            )
        );
    }

    #[test]
    fn a_port_taken_on_one_address_is_not_shared_by_listening_on_all() {
        let taken = reserve_any().unwrap();
        let all = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), taken.address().port());
        let refused = reserve([Port::new(all, "Envoy's listener", "--listen")]);
        assert!(refused.unwrap_err().to_string().contains("is in use"));
    }

    #[test]
    fn a_port_wanted_twice_is_said_to_be() {
        let port = reserve_any().unwrap().address();
        let wanted = [
            Port::new(port, "Tollgate's gRPC", "--grpc-listen"),
            Port::new(port, "the stats service", "--stats-listen"),
        ];
        assert_eq!(
            reserve(wanted).unwrap_err().to_string(),
            format!(
                "port {} is wanted twice: by Tollgate's gRPC (--grpc-listen) and by the stats service (--stats-listen)",
                port.port()
            )
        );
    }
}
