//! A connection whose answers leave together: those of all requests that are ready at one time in one write, where h2 would
//! write each on its own. A write to a socket costs about as much as a decision.
//!
//! Source: h2, `proto/connection.rs`: a connection flushes whenever it has run. Source: tokio, "LIFO slot": a task that is woken
//! runs next, so a connection would run after each of its answers, before the next one is made. Here a flush first lets the
//! tasks that are ready run, and what they answer goes the same way. Where that brings nothing, as for a lone request, it is
//! tried more and more seldom.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};
use tonic::transport::server::Connected;

/// Bytes that are gathered at most, some eight answers that name their limits: the first of many is not kept for the last.
const MOST: usize = 2 * 1024;

/// Most flushes in a row that do not wait, after one that waited in vain.
const MOST_AT_ONCE: u32 = 63;

/// `S`, whose flushes wait for one turn of the other tasks.
#[derive(Debug)]
pub struct Coalesced<S: AsyncWrite> {
    stream: BufWriter<S>,
    /// Bytes that were there when the flush began to wait.
    waits_with: Option<usize>,
    /// How many flushes did not wait after the last one that did, and how many still will not.
    at_once: u32,
    at_once_left: u32,
}

impl<S: AsyncWrite> Coalesced<S> {
    /// A connection on `stream`.
    pub fn new(stream: S) -> Self {
        Self {
            stream: BufWriter::with_capacity(MOST, stream),
            waits_with: None,
            at_once: 0,
            at_once_left: 0,
        }
    }

    /// Whether the others run before what is gathered leaves.
    fn waits(&mut self) -> bool {
        let gathered = self.stream.buffer().len();
        if let Some(before) = self.waits_with.take() {
            self.at_once = match gathered > before {
                true => 0,
                false => (self.at_once * 2 + 1).min(MOST_AT_ONCE),
            };
            self.at_once_left = self.at_once;
        } else if gathered > 0 && self.at_once_left == 0 {
            self.waits_with = Some(gathered);
        } else {
            self.at_once_left = self.at_once_left.saturating_sub(1);
        }
        self.waits_with.is_some()
    }
}

impl<S: AsyncWrite + Connected> Connected for Coalesced<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.get_ref().connect_info()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Coalesced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waits() {
            // A task that wakes itself goes behind all that are ready, and runs once, whoever else wakes it meanwhile.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_is_ready_at_one_time_leaves_together() {
        let (ours, mut theirs) = duplex(MOST);
        let mut stream = Coalesced::new(ours);
        stream.write_all(b"one ").await.expect("it takes all");
        let mut others = Some(b"two");
        std::future::poll_fn(|context| {
            let flushed = Pin::new(&mut stream).poll_flush(context);
            if flushed.is_pending()
                && let Some(answer) = others.take()
            {
                let taken = Pin::new(&mut stream).poll_write(context, answer);
                assert!(matches!(taken, Poll::Ready(Ok(3))));
            }
            flushed
        })
        .await
        .expect("it leaves");
        assert_eq!(others, None, "the others had their turn");
        let mut got = [0; 16];
        let length = theirs.read(&mut got).await.expect("something comes");
        assert_eq!(&got[..length], b"one two");
        assert_eq!(stream.at_once, 0, "waiting paid");
    }

    #[tokio::test]
    async fn a_lone_writer_soon_waits_for_nobody() {
        let (ours, mut theirs) = duplex(MOST);
        let mut stream = Coalesced::new(ours);
        let mut waited = 0;
        for _ in 0..1_000 {
            stream.write_all(b"answer").await.expect("it takes all");
            std::future::poll_fn(|context| {
                let flushed = Pin::new(&mut stream).poll_flush(context);
                waited += u32::from(flushed.is_pending());
                flushed
            })
            .await
            .expect("it leaves");
            let mut got = [0; 6];
            theirs.read_exact(&mut got).await.expect("it comes");
        }
        assert!(waited < 30, "{waited}");
    }
}
