//! A connection whose client may call us by any name. h2 resets a request whose `:authority` is no URI authority, such as
//! `outbound|8081||ratelimit.default.svc.cluster.local`; envoyproxy/ratelimit answers it. Here h2 reads a name that it takes:
//! nobody asks for it.
//!
//! Source: Envoy sends the cluster's name as `:authority` of an `envoy_grpc` service that has no other. Source: grpc-core sends the
//! path of a unix socket, percent-encoded.
//!
//! The first request of a connection tells: after a good one bytes pass as they come.

mod frames;
mod hpack;

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use self::frames::{Frames, Renamed};

/// Octets of a name in the log at most.
const MOST_LOGGED: usize = 128;

/// `S`, on which every request has an authority that h2 takes.
#[derive(Debug)]
pub struct AnyAuthority<S> {
    stream: S,
    /// None once no name needs a change.
    frames: Option<Box<Frames>>,
}

impl<S> AnyAuthority<S> {
    /// A connection on `stream`, of which nothing has been read.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            frames: Some(Box::new(Frames::new())),
        }
    }
}

impl<S: Connected> Connected for AnyAuthority<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(frames) = &mut this.frames else {
            return Pin::new(&mut this.stream).poll_read(context, into);
        };
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        while frames.ready().is_empty() {
            ready!(Pin::new(&mut this.stream).poll_read(context, into))?;
            let came = &into.filled()[before..];
            if came.is_empty() {
                frames.end();
                if frames.ready().is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
            let known = frames.renamed().is_some();
            frames.push(came);
            into.set_filled(before);
            if let Some(renamed) = frames.renamed().filter(|_| !known) {
                tell(renamed);
            }
        }
        let length = frames.ready().len().min(into.remaining());
        into.put_slice(&frames.ready()[..length]);
        frames.advance(length);
        if frames.is_done() {
            this.frames = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Says it once aloud, and then to those who look for it.
fn tell(Renamed { from, to }: &Renamed) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let text = |name: &[u8]| {
        name[..name.len().min(MOST_LOGGED)]
            .escape_ascii()
            .to_string()
    };
    let (from, to) = (text(from), text(to));
    if SAID.swap(true, Ordering::Relaxed) {
        tracing::debug!("a client calls this service `{from}`, read as `{to}`");
    } else {
        tracing::warn!(
            "a client calls this service `{from}`, which is no URI authority: its calls are answered as if it said `{to}`. Envoy says another name if its grpc_service has one as `authority`"
        );
    }
}

#[cfg(test)]
mod tests;
