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
    home::{Actor, Home, HomeError, Place},
    key_store::KeyAdmin,
    plan::SharedPlans,
    plan_store::PlanTable,
    settings::Address,
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
        let needed = matches!(place, Place::Folder(_));
        let mut home = place.open::<PlanTable>();
        let mut table = Arc::<PlanTable>::default();
        let without = "the plans of the store, so those of the files hold";
        let found = first_look(home.refresh(&table), needed, without).await;
        if let Some(found) = found.map_err(StartError::StoredPlans)?.flatten() {
            table = Arc::new(found);
        }
        Ok(Self { home, table })
    }
}

/// The keys that are in no plan file. Those of a state directory are read before anything opens; those in Redis are awaited,
/// a little while here and then in the background.
pub async fn open_keys(
    place: Option<Place>,
    plans: &Arc<SharedPlans>,
) -> Result<Option<Arc<KeyAdmin>>, StartError> {
    let Some(place) = place else {
        return Ok(None);
    };
    let needed = matches!(place, Place::Folder(_));
    plans.await_stored_keys();
    let keys = Arc::new(KeyAdmin::new(place.open(), plans.clone()));
    let without = "the API keys of the store, so nobody enters with one";
    let looked = first_look(keys.refresh(), needed, without).await;
    looked.map_err(StartError::Keys)?;
    Ok(Some(keys))
}

/// What a first look at a home finds. Where that is not `needed`, it may take a little while only, and the log says what the
/// start does without.
async fn first_look<T>(
    looking: impl Future<Output = Result<T, HomeError>>,
    needed: bool,
    without: &str,
) -> Result<Option<T>, HomeError> {
    if needed {
        return looking.await.map(Some);
    }
    let error = match timeout(FIRST_CONNECTION, looking).await {
        Ok(Ok(found)) => return Ok(Some(found)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it did not answer in time".to_owned(),
    };
    tracing::warn!("starting without {without}: {error}");
    Ok(None)
}

/// Says so where tokens come over a network as they are.
pub fn warn_of_plain_tokens(address: &Address, tls: bool) {
    if let Address::Tcp(tcp) = address
        && !tls
        && !tcp.ip().is_loopback()
    {
        tracing::warn!(
            %address,
            "the admin API listens without TLS where others than this machine reach it, so its tokens can be read on the way: give it \
             --admin-tls-cert and --admin-tls-key, or an address of this machine alone"
        );
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
