//! The stats service that stands behind Envoy in the demo: ten live matches whose numbers move.
//!
//! It is what the limits protect, so it has a limit of its own, as a small backend has: so many requests at once, and no
//! more. It knows nothing of keys, tiers or Tollgate; Envoy cuts `/unsecure`, `/public` and `/secure` off the path.
//!
//! | request | answer |
//! |---|---|
//! | `GET /stats` | one of the ten matches, by chance |
//! | `GET /stats/{0..9}` | that match |
//! | `GET /stats/{0..9}/events` | that match as server-sent events, one at each step of the game |
//! | `GET /healthcheck` | `OK`, always: it takes no place |
//!
//! Every answer about a match carries `timestamp`, the time of the answer. Errors are JSON: 404 `{"message":"Not Found"}`,
//! and 500 `{"message":"Internal server error"}` for whoever finds no place.
//!
//! A stream of events holds a place only while it opens, for the time any request takes: twenty watchers would otherwise
//! shut the service for everybody else. Open streams are counted apart (`max_streams`) and refused with the same 500.

mod game;

use std::{io, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::get,
    serve::ListenerExt,
};
use futures::{Stream, StreamExt};
use serde::Serialize;
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::MissedTickBehavior,
};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;

pub use game::{Game, MATCHES, Side};

/// How long requests that are under way when `shutdown` is cancelled may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// What the service may do at once, and how fast.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Time that a request takes, and holds its place.
    pub request_time: Duration,
    /// Requests answered at once; one more gets 500.
    pub max_concurrent: usize,
    /// Streams of events open at once; one more gets 500.
    pub max_streams: usize,
    /// Time between two steps of every game. A step is a second on the game's clock. Must not be zero.
    pub step: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            request_time: Duration::from_millis(20),
            max_concurrent: 20,
            max_streams: 1000,
            step: Duration::from_secs(1),
        }
    }
}

/// Serves on `listener` until `shutdown` is cancelled.
///
/// Then no connection is accepted any more, streams of events end, and requests under way are answered; what is still
/// open after 5 seconds is dropped.
///
/// # Errors
/// The listener's own, when it can accept no more.
pub async fn serve(
    listener: TcpListener,
    settings: Settings,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let stop_playing = CancellationToken::new();
    let _stops_with_us = stop_playing.clone().drop_guard();
    let (games, shown) = watch::channel(game::kick_off());
    let playing = tokio::spawn(play(games, settings.step, stop_playing.clone()));

    let service = Arc::new(Service {
        places: Semaphore::new(settings.max_concurrent),
        streams: Arc::new(Semaphore::new(settings.max_streams)),
        request_time: settings.request_time,
        games: shown,
        shutdown: shutdown.clone(),
    });
    let listener = listener.tap_io(|stream| {
        // Only costs latency when it fails, and a connection that is gone already shows so at its first read.
        let _ = stream.set_nodelay(true);
    });
    let serving = axum::serve(listener, router(service))
        .with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let too_late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    let served = tokio::select! {
        served = serving.into_future() => served,
        () = too_late => Ok(()),
    };
    stop_playing.cancel();
    playing.await.map_err(io::Error::other)?;
    served
}

struct Service {
    places: Semaphore,
    streams: Arc<Semaphore>,
    request_time: Duration,
    games: watch::Receiver<Vec<Game>>,
    shutdown: CancellationToken,
}

fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/healthcheck", get(|| async { "OK" }))
        .route("/stats", get(any_match))
        .route("/stats/{id}", get(one_match))
        .route("/stats/{id}/events", get(events))
        .fallback(|| async { Refusal::NotFound })
        .with_state(service)
}

async fn any_match(State(service): State<Arc<Service>>) -> Result<Response, Refusal> {
    service.work().await?;
    Ok(service.answer(rand::random_range(0..MATCHES)))
}

async fn one_match(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let id = parse_id(&id)?;
    service.work().await?;
    Ok(service.answer(id))
}

async fn events(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, axum::Error>>>, Refusal> {
    let id = parse_id(&id)?;
    let open = service.streams.clone().try_acquire_owned();
    let open = open.map_err(|_| Refusal::NoPlace)?;
    service.work().await?;
    let steps = WatchStream::new(service.games.clone())
        .map(move |games| {
            let _counted_until_the_stream_ends = &open;
            Event::default()
                .event("stats")
                .json_data(Answer::now(&games[id]))
        })
        .take_until(service.shutdown.clone().cancelled_owned());
    Ok(Sse::new(steps).keep_alive(KeepAlive::default()))
}

impl Service {
    /// Holds a place for the time a request takes.
    async fn work(&self) -> Result<(), Refusal> {
        let _place = self.places.try_acquire().map_err(|_| {
            tracing::debug!("all places are taken");
            Refusal::NoPlace
        })?;
        tokio::time::sleep(self.request_time).await;
        Ok(())
    }

    fn answer(&self, id: usize) -> Response {
        tracing::debug!(id, "a match is told");
        Json(Answer::now(&self.games.borrow()[id])).into_response()
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    timestamp: String,
    #[serde(flatten)]
    game: &'a Game,
}

impl<'a> Answer<'a> {
    fn now(game: &'a Game) -> Self {
        let now = std::time::SystemTime::now();
        Self {
            timestamp: humantime::format_rfc3339_millis(now).to_string(),
            game,
        }
    }
}

#[derive(Debug)]
enum Refusal {
    NotFound,
    NoPlace,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, message) = match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "Not Found"),
            Self::NoPlace => (StatusCode::INTERNAL_SERVER_ERROR, "Internal server error"),
        };
        (status, Json(json!({ "message": message }))).into_response()
    }
}

fn parse_id(id: &str) -> Result<usize, Refusal> {
    match id.as_bytes() {
        [digit @ b'0'..=b'9'] => Ok(usize::from(digit - b'0')),
        _ => Err(Refusal::NotFound),
    }
}

/// Plays every game on, one step at a time, until `stop` is cancelled.
async fn play(games: watch::Sender<Vec<Game>>, step: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(step);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        games.send_modify(|games| {
            let rng = &mut rand::rng();
            games.iter_mut().for_each(|game| game.play_on(rng));
        });
    }
}
