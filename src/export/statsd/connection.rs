//! A connection to a StatsD server.

use std::io;

use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, UdpSocket, lookup_host},
};

use crate::settings::{Protocol, StatsdAddress};

/// Most bytes of a datagram that passes any network whole: what an Ethernet frame leaves after the headers of IPv6.
const DATAGRAM: usize = 1_432;

pub(super) enum Connection {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Connection {
    pub(super) async fn open(to: &StatsdAddress) -> io::Result<Self> {
        match to.protocol {
            Protocol::Tcp => Ok(Self::Tcp(TcpStream::connect(&to.host).await?)),
            Protocol::Udp => {
                let mut found = lookup_host(&to.host).await?;
                let server = found.next().ok_or(io::ErrorKind::NotFound)?;
                let any = if server.is_ipv6() {
                    "[::]:0"
                } else {
                    "0.0.0.0:0"
                };
                let socket = UdpSocket::bind(any).await?;
                socket.connect(server).await?;
                Ok(Self::Udp(socket))
            }
        }
    }

    /// Whether the server has closed it. Without this look, the first report after that would be lost.
    pub(super) fn is_closed(&self) -> bool {
        let Self::Tcp(stream) = self else {
            return false;
        };
        // A StatsD server says nothing; if one does, that is of no interest.
        match stream.try_read(&mut [0; 64]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Sends lines.
    pub(super) async fn send(&mut self, text: &str) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(text.as_bytes()).await,
            Self::Udp(socket) => {
                for datagram in datagrams(text) {
                    socket.send(datagram.as_bytes()).await?;
                }
                Ok(())
            }
        }
    }
}

/// `text` in pieces of whole lines, none longer than a datagram unless a single line is.
fn datagrams(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let fits = text.as_bytes()[..text.len().min(DATAGRAM)]
            .iter()
            .rposition(|byte| *byte == b'\n');
        let end = fits.or_else(|| text.find('\n'))?;
        let (datagram, rest) = text.split_at(end + 1);
        text = rest;
        Some(datagram)
    })
}

#[cfg(test)]
mod tests {
    use super::{DATAGRAM, datagrams};

    #[test]
    fn datagrams_hold_whole_lines() {
        let long = "é".repeat(DATAGRAM);
        let text = format!("{}{long}:1|c\nlast:1|c\n", "some.name:1|c\n".repeat(500));
        let all: Vec<&str> = datagrams(&text).collect();
        assert_eq!(all.concat(), text);
        assert!(all.iter().all(|datagram| datagram.ends_with('\n')));
        let too_long = all.iter().filter(|datagram| datagram.len() > DATAGRAM);
        assert_eq!(too_long.count(), 1, "only the line that is too long itself");
        assert_eq!(datagrams("").count(), 0);
    }
}
