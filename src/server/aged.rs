//! A connection that is cut when its time is over, whatever is on it.
//!
//! tonic can tell connections of an age to end, or cut them some time after that age, but not both: where it knows both, it
//! tells nobody (0.14.9, `connection_timeout_future`), and calls are lost. So it is told of the age alone.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

use crate::settings::ConnectionAge;

/// `S`, which fails once it is too old.
#[derive(Debug)]
pub struct Aged<S> {
    stream: S,
    end: Option<Pin<Box<Sleep>>>,
    /// Whether the clock knows whom to wake: the one task that serves the connection.
    watched: bool,
}

impl<S> Aged<S> {
    /// A connection on `stream` that begins now.
    pub fn new(stream: S, age: ConnectionAge) -> Self {
        let lifetime = age.limit.zip(age.grace);
        let end = lifetime.map(|(limit, grace)| Box::pin(sleep(limit.saturating_add(grace))));
        Self {
            stream,
            end,
            watched: false,
        }
    }

    /// The stream while there is time.
    fn stream(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut S>>
    where
        S: Unpin,
    {
        if let Some(end) = &mut self.end {
            if !self.watched {
                self.watched = true;
                // Its answer is the same as that below.
                let _ = end.as_mut().poll(context);
            }
            if end.is_elapsed() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(Pin::new(&mut self.stream))
    }
}

impl<S: Connected> Connected for Aged<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Aged<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Aged<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream(context)?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn age(grace: Option<Duration>) -> ConnectionAge {
        ConnectionAge {
            limit: Some(Duration::ZERO),
            grace,
        }
    }

    #[tokio::test]
    async fn is_cut_when_its_time_is_over() {
        let (ours, _theirs) = duplex(16);
        let mut stream = Aged::new(ours, age(Some(Duration::from_millis(1))));
        let cut = stream.read_u8().await.expect_err("nobody writes");
        assert_eq!(cut.kind(), io::ErrorKind::TimedOut);
        assert!(stream.write_all(b"x").await.is_err());
    }

    #[tokio::test]
    async fn is_never_cut_without_a_grace() {
        let (ours, mut theirs) = duplex(16);
        let mut stream = Aged::new(ours, age(None));
        theirs.write_all(b"x").await.expect("it takes all");
        assert_eq!(stream.read_u8().await.expect("it is there"), b'x');
    }
}
