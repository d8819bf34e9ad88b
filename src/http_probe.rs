//! Asks an HTTP server on this machine one question and tells the status: the health checks of the demo and of the image.

use std::{io, net::SocketAddr, time::Duration};

use hyper::{Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The status that `GET path` gets from `address`, on a connection of its own.
///
/// # Errors
/// The server cannot be reached, speaks no HTTP/1.1, or has not answered within `timeout`.
pub async fn get_status(address: SocketAddr, path: &str, timeout: Duration) -> io::Result<u16> {
    tokio::time::timeout(timeout, ask(address, path))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {timeout:?}")))?
}

async fn ask(address: SocketAddr, path: &str) -> io::Result<u16> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .body(String::new())
        .map_err(io::Error::other)?;
    // The connection's future moves the bytes; the answer ends it.
    let answer = tokio::select! {
        answer = sender.send_request(request) => answer,
        Err(broken) = connection => Err(broken),
    };
    Ok(answer.map_err(io::Error::other)?.status().as_u16())
}
