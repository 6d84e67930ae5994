//! The text service behind the gateway: its client, which model it serves, and whether it is ready.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use fused_proto::common::v1::ModelInfo;
use fused_proto::text::v1::GetModelRequest;
use fused_proto::text::v1::text_generation_client::TextGenerationClient;
use fused_proto::text::v1::text_generation_server::SERVICE_NAME;
use fused_status::{Code, Error};
use fused_transport::MAX_MESSAGE_BYTES;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tracing::Span;

use crate::events;

const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Hexadecimal digits of the vocabulary's fingerprint that clients see.
const SHOWN_FINGERPRINT_LEN: usize = 12;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    client: TextGenerationClient<Channel>,
    health: HealthClient<Channel>,
    readiness: Arc<watch::Sender<Readiness>>,
    model: Arc<watch::Sender<Option<Arc<Model>>>>,
}

/// Whether requests can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    NotReady(&'static str),
}

/// The model that is served, as far as clients see it.
#[derive(Debug, PartialEq)]
pub(crate) struct Model {
    pub(crate) id: String,
    /// Changes with the vocabulary: the same seed then means another text.
    pub(crate) system_fingerprint: String,
    pub(crate) max_model_len: Option<u32>,
    pub(crate) created_unix_s: i64,
}

impl Backend {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            client: TextGenerationClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
            health: HealthClient::new(channel),
            readiness: Arc::new(watch::Sender::new(Readiness::NotReady(
                "the text service was not asked yet",
            ))),
            model: Arc::default(),
        }
    }

    /// The client; clones share one connection.
    pub(crate) fn client(&self) -> TextGenerationClient<Channel> {
        self.client.clone()
    }

    /// What the last check found. Never waits.
    pub(crate) fn readiness(&self) -> Readiness {
        *self.readiness.borrow()
    }

    pub(crate) async fn wait_ready(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.readiness.subscribe().wait_for(|readiness| *readiness == Readiness::Ready).await;
    }

    /// The served model; asks for it only where no check has found it yet.
    pub(crate) async fn model(&self) -> Result<Arc<Model>, Error> {
        let known = self.model.borrow().clone();
        match known {
            Some(model) => Ok(model),
            None => self.ask_model(None).await.map(Arc::new),
        }
    }

    /// Asks the text service which model it serves under this name, or at all.
    pub(crate) async fn ask_model(&self, id: Option<String>) -> Result<Model, Error> {
        let mut client = self.client();
        let asked = client.get_model(traced(GetModelRequest { model: id }));
        let answered = timeout(CHECK_TIMEOUT, asked).await.map_err(|elapsed| {
            Error::new(Code::Unavailable, "the text service does not answer; try again").with_cause(&elapsed)
        })?;
        Ok(Model::from(answered?.into_inner()))
    }

    /// Checks every second until `stopped`.
    pub(crate) async fn watch(self, stopped: impl Future<Output = ()>) {
        let mut stopped = pin!(stopped);
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let check = async {
                ticks.tick().await;
                timeout(CHECK_TIMEOUT, self.check()).await
            };
            let checked = tokio::select! {
                () = &mut stopped => return,
                checked = check => checked,
            };
            let readiness = checked.unwrap_or(Readiness::NotReady("the text service does not answer"));
            let previous = self.readiness.send_replace(readiness);
            if previous != readiness {
                events::readiness_changed(readiness);
            }
        }
    }

    async fn check(&self) -> Readiness {
        let request = HealthCheckRequest { service: SERVICE_NAME.to_owned() };
        let Ok(answer) = self.health.clone().check(request).await else {
            return Readiness::NotReady("the text service cannot be reached");
        };
        if answer.into_inner().status() != ServingStatus::Serving {
            return Readiness::NotReady("the text service is not serving");
        }
        // Asked again each time: behind the same address another model may have been rolled out.
        let Ok(model) = self.ask_model(None).await else {
            return Readiness::NotReady("the text service does not say which model it serves");
        };
        self.model.send_if_modified(|known| {
            let is_new = known.as_deref() != Some(&model);
            if is_new {
                *known = Some(Arc::new(model));
            }
            is_new
        });
        Readiness::Ready
    }
}

impl From<ModelInfo> for Model {
    fn from(info: ModelInfo) -> Self {
        let fingerprint = info.vocabulary_fingerprint();
        let shown = fingerprint.get(..SHOWN_FINGERPRINT_LEN).unwrap_or(fingerprint);
        Self {
            id: info.id().to_owned(),
            system_fingerprint: format!("fused-{shown}"),
            max_model_len: info.max_model_len,
            created_unix_s: info.created_unix_s(),
        }
    }
}

/// A call that belongs to the current span's trace.
pub(crate) fn traced<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    fused_telemetry::grpc::inject(&Span::current(), request.metadata_mut());
    request
}
