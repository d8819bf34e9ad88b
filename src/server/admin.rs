//! The admin API's listener, and what must be read from its home before anything opens.

use std::{future::pending, io, sync::Arc};

use axum::{
    Router,
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::{FIRST_CONNECTION, ServeError, Socket, StartError, serve_http, tls::ServerTls};
use crate::{
    admin_api::Peer,
    home::{Actor, Home, Place},
    plan_store::PlanTable,
    tls::name_of,
};

/// Plans in the place of files, as they were read at the start.
#[derive(Debug)]
pub struct StoredPlans {
    /// Where they are kept.
    pub home: Home<PlanTable>,
    /// What was read.
    pub table: Arc<PlanTable>,
}

impl StoredPlans {
    /// Reads them. Those of a state directory must be readable; those in Redis are awaited a little while, and then in the
    /// background while the files hold.
    pub async fn read(place: Place) -> Result<Self, StartError> {
        let needs_files = matches!(place, Place::Folder(_));
        let mut home = place.open::<PlanTable>();
        let mut table = Arc::<PlanTable>::default();
        match timeout(FIRST_CONNECTION, home.refresh(&table)).await {
            Ok(Ok(Some(found))) => table = Arc::new(found),
            Ok(Err(error)) if needs_files => return Err(StartError::StoredPlans(error)),
            Ok(Err(error)) => tracing::warn!(
                "starting without the plans of the store, so those of the files hold: {error}"
            ),
            Err(_) => tracing::warn!(
                "starting without the plans of the store, so those of the files hold: it did not answer in time"
            ),
            Ok(Ok(None)) => {}
        }
        Ok(Self { home, table })
    }
}

/// Serves the admin API. TLS is for TCP only: who may open a unix socket, the file system says.
pub async fn serve_admin(
    socket: Socket,
    tls: Option<Arc<ServerTls>>,
    app: Router,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    match (socket, tls) {
        (Socket::Tcp(listener), Some(tls)) => {
            let (ready, accepted) = mpsc::channel(1);
            let accepting = stop.run_until_cancelled(tls.accept(listener, ready));
            let app = app.into_make_service_with_connect_info::<Peer>();
            let serving = axum::serve(Accepted(accepted), app)
                .with_graceful_shutdown(stop.clone().cancelled_owned());
            let (served, _) = tokio::join!(serving.into_future(), accepting);
            Ok(served?)
        }
        (socket, _) => serve_http(socket, app, stop).await,
    }
}

/// Connections whose handshake went well.
struct Accepted(mpsc::Receiver<TlsStream<TcpStream>>);

impl Listener for Accepted {
    type Io = TlsStream<TcpStream>;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, ()) {
        match self.0.recv().await {
            Some(stream) => (stream, ()),
            // Nobody accepts any more: the server is stopping.
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Connected<IncomingStream<'_, Accepted>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Accepted>) -> Self {
        let (_, session) = stream.io().get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        Self(certificate.and_then(name_of).map(|name| Actor::new(&name)))
    }
}
