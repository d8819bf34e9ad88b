//! The stream: asks, loads what comes, acknowledges or refuses it, and comes back when it is lost.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::{
        protobuf::{self, value::Kind},
        rpc,
    },
};
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

use super::{
    TYPE_URL, XdsSettings,
    backoff::SHORTEST,
    dial::{DialError, dial},
    resource,
};
use crate::{causes::chain, plan::SharedPlans};

/// Most bytes of the text of a refusal.
const LONGEST_TEXT: usize = 16 << 10;

/// Longest pause before the same version is refused once more.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why a stream ended, or did not begin.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the stream failed")]
    Failed(#[from] Status),
    #[error("the control plane ended the stream")]
    Ended,
}

/// Keeps `plans` as the control plane says, for ever.
pub async fn run(settings: XdsSettings, plans: Arc<SharedPlans>) {
    let mut client = Client::new(settings, plans);
    loop {
        let Err(error) = client.stream().await;
        client.plans.tell_stream(|stream| stream.connected = false);
        let wait = client.wait(&error);
        client.say(&error, wait);
        sleep(wait).await;
    }
}

struct Client {
    settings: XdsSettings,
    plans: Arc<SharedPlans>,
    /// The version in force; empty before the first.
    accepted: String,
    /// The version refused last, and how many times in a row.
    refused: Option<(String, u32)>,
    /// Streams in a row that brought nothing.
    failures: u32,
    /// What was last said of a lost stream.
    said: String,
}

impl Client {
    fn new(settings: XdsSettings, plans: Arc<SharedPlans>) -> Self {
        Self {
            settings,
            plans,
            accepted: String::new(),
            refused: None,
            failures: 0,
            said: String::new(),
        }
    }

    /// Opens one stream and serves it to its end.
    async fn stream(&mut self) -> Result<std::convert::Infallible, StreamError> {
        let channel = dial(&self.settings).await?;
        self.plans.tell_stream(|stream| stream.connected = true);
        tracing::info!(server = %self.settings.server, version = self.accepted, "connected to the control plane");
        let mut service = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(self.settings.max_message);
        let (requests, outgoing) = mpsc::channel(1);
        let mut call = Request::new(ReceiverStream::new(outgoing));
        for (name, value) in &self.settings.headers {
            call.metadata_mut().append(name, value.clone());
        }
        // There is room for one, and the other end is held above.
        let _ = requests.send(self.first_request()).await;
        let mut responses = service
            .stream_aggregated_resources(call)
            .await?
            .into_inner();
        while let Some(response) = responses.message().await? {
            let answer = self.take(response).await;
            if requests.send(answer).await.is_err() {
                break;
            }
        }
        Err(StreamError::Ended)
    }

    /// Asks for everything; says what is in force, and that it is not an answer.
    fn first_request(&self) -> DiscoveryRequest {
        let text = |text: &String| protobuf::Value {
            kind: Some(Kind::StringValue(text.clone())),
        };
        let metadata = &self.settings.node_metadata;
        DiscoveryRequest {
            version_info: self.accepted.clone(),
            node: Some(Node {
                id: self.settings.node_id.clone(),
                metadata: Some(protobuf::Struct {
                    fields: metadata
                        .iter()
                        .map(|(name, value)| (name.clone(), text(value)))
                        .collect(),
                }),
                user_agent_name: "tollgate".to_owned(),
                ..Node::default()
            }),
            type_url: TYPE_URL.to_owned(),
            ..DiscoveryRequest::default()
        }
    }

    /// Loads an update; the answer says how that went.
    async fn take(&mut self, response: DiscoveryResponse) -> DiscoveryRequest {
        let DiscoveryResponse {
            version_info,
            resources,
            type_url,
            nonce,
            ..
        } = response;
        let foreign = type_url != TYPE_URL;
        let asked = type_url.clone();
        let loaded = self
            .plans
            .replace_now(move |notes| resource::sources(&asked, resources, notes))
            .await;
        let error_detail = match loaded {
            Ok(_) => {
                self.accept(version_info);
                None
            }
            Err(error) => Some(self.refuse(version_info, &error.to_string()).await),
        };
        let version_info = match foreign {
            true => String::new(),
            false => self.accepted.clone(),
        };
        DiscoveryRequest {
            version_info,
            type_url,
            response_nonce: nonce,
            error_detail,
            ..DiscoveryRequest::default()
        }
    }

    fn accept(&mut self, version: String) {
        tracing::info!(version, "update of the control plane is in force");
        self.failures = 0;
        self.refused = None;
        self.said.clear();
        self.plans.tell_stream(|stream| {
            stream.accepted += 1;
            stream.version = Some(version.clone());
        });
        self.accepted = version;
    }

    /// What to say of an update that did not load.
    ///
    /// Control planes may send the same again at once, so a repeated refusal takes its time.
    async fn refuse(&mut self, version: String, mistakes: &str) -> rpc::Status {
        let stays = match self.accepted.as_str() {
            "" => "no version is in force yet".to_owned(),
            accepted => format!("version {accepted} stays in force"),
        };
        self.plans.tell_stream(|stream| stream.rejected += 1);
        let times = match self.refused.take() {
            Some((before, times)) if before == version => times.saturating_add(1),
            _ => 0,
        };
        if times == 0 {
            tracing::error!(
                version,
                "update of the control plane refused, {stays}: {mistakes}"
            );
        } else {
            sleep(pause(times)).await;
        }
        self.refused = Some((version, times));
        rpc::Status {
            code: Code::InvalidArgument.into(),
            message: format!("{}\n{stays}", shortened(mistakes)),
            details: Vec::new(),
        }
    }

    /// How long to wait before the next stream.
    fn wait(&mut self, error: &StreamError) -> Duration {
        let wait = self.settings.backoff.wait(self.failures, rand::random());
        self.failures = self.failures.saturating_add(1);
        match error {
            StreamError::Dial(_) => wait.min(self.settings.connect_retry.max(SHORTEST)),
            _ => wait,
        }
    }

    /// Tells of a lost stream; the same again only where more is logged.
    fn say(&mut self, error: &StreamError, wait: Duration) {
        let server = &self.settings.server;
        let error = chain(error);
        if error == self.said {
            tracing::debug!(%server, ?wait, "still no stream from the control plane: {error}");
        } else {
            tracing::warn!(%server, ?wait, "no stream from the control plane, the plans in force stay: {error}");
            self.said = error;
        }
    }
}

fn pause(times: u32) -> Duration {
    let doubled = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
    Duration::from_millis(50)
        .saturating_mul(doubled)
        .min(LONGEST_PAUSE)
}

fn shortened(text: &str) -> String {
    let fits = |(at, character): &(usize, char)| at + character.len_utf8() <= LONGEST_TEXT;
    let characters = text.char_indices().take_while(fits);
    characters.map(|(_, character)| character).collect()
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::pki_types::InvalidDnsNameError;

    use super::*;
    use crate::plan::LoadOptions;

    /// Waits after connections that did not come about, with this longest wait.
    fn redials(connect_retry: Duration) -> Vec<Duration> {
        let settings = XdsSettings {
            connect_retry,
            ..XdsSettings::new("localhost:1".parse().unwrap())
        };
        let plans = SharedPlans::streamed(String::new(), LoadOptions::default());
        let mut client = Client::new(settings, Arc::new(plans));
        let refused = StreamError::Dial(DialError::Name {
            name: String::new(),
            source: InvalidDnsNameError,
        });
        (0..9).map(|_| client.wait(&refused)).collect()
    }

    #[test]
    fn a_control_plane_that_is_away_is_not_called_in_a_loop() {
        assert_eq!(redials(Duration::ZERO), [SHORTEST; 9]);
        let longest = Duration::from_millis(100);
        assert!(
            redials(longest)
                .iter()
                .all(|wait| (SHORTEST..=longest).contains(wait))
        );
    }
}
