//! A connection whose client may call us by any name. h2 resets a request whose `:authority` is no URI authority, such as
//! `outbound|8081||ratelimit.default.svc.cluster.local`; envoyproxy/ratelimit answers it. Here h2 reads a name that it takes:
//! nobody asks for it.
//!
//! Source: Envoy sends the cluster's name as `:authority` of an `envoy_grpc` service that has no other. Source: grpc-core sends the
//! path of a unix socket, percent-encoded.
//!
//! Every request is looked at, not the first alone: a proxy may send those of many clients over one connection. A read whose
//! names are good costs no copy and no allocation.

mod frames;
mod hpack;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use self::frames::Frames;

/// `S`, on which every request has an authority that h2 takes.
#[derive(Debug)]
pub struct AnyAuthority<S> {
    stream: S,
    frames: Frames,
}

impl<S> AnyAuthority<S> {
    /// A connection on `stream`, of which nothing has been read.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            frames: Frames::new(),
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
        let Self { stream, frames } = &mut *self;
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        while frames.ready().is_empty() {
            ready!(Pin::new(&mut *stream).poll_read(context, into))?;
            let came = &into.filled()[before..];
            if came.is_empty() {
                frames.end();
                break;
            }
            let passed = frames.push(came);
            into.set_filled(before + passed);
            if passed > 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let length = frames.ready().len().min(into.remaining());
        into.put_slice(&frames.ready()[..length]);
        frames.advance(length);
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

#[cfg(test)]
mod tests;
