//! The text services behind the gateway: which are usable, which model they serve, and the calls to them.

use std::sync::Arc;

use fused_lifecycle::Lifecycle;
use fused_proto::common::v1::ModelInfo;
use fused_proto::text::v1::text_generation_client::TextGenerationClient;
use fused_proto::text::v1::text_generation_server::SERVICE_NAME;
use fused_proto::text::v1::{GenerateRequest, GenerateResponse, GetModelRequest};
use fused_status::{Code, Error};
use fused_transport::{
    Channel, Failed, Fault, Fleet, Kind, Lease, Load, MAX_MESSAGE_BYTES, Readiness, Replica, Timing,
};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Response, Status, Streaming};
use tracing::Span;

use crate::events;

/// Hexadecimal digits of the vocabulary's fingerprint that clients see.
const SHOWN_FINGERPRINT_LEN: usize = 12;

/// The client of one text service.
pub(crate) type Client = TextGenerationClient<Channel>;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Backend(Arc<Fleet<Text>>);

/// The model that is served, as far as clients see it.
#[derive(Debug, PartialEq)]
pub(crate) struct Model {
    pub(crate) id: String,
    /// Other names under which it is served.
    pub(crate) aliases: Vec<String>,
    /// The model's own name.
    pub(crate) root: String,
    /// Changes with the vocabulary: the same seed then means another text.
    pub(crate) system_fingerprint: String,
    pub(crate) max_model_len: Option<u32>,
    pub(crate) created_unix_s: i64,
}

/// The answers of one call. Dropping it cancels the call.
pub(crate) struct Answers {
    first: Option<GenerateResponse>,
    rest: Streaming<GenerateResponse>,
    _load: Load,
}

/// What the fleet is of.
struct Text;

impl Backend {
    /// Follows the list of text services and the health of each, until the process stops.
    pub(crate) fn start(replicas: watch::Receiver<Vec<Replica>>, lifecycle: &Lifecycle) -> Self {
        Self(Fleet::start(Text, replicas, Timing::default(), lifecycle))
    }

    /// Why nothing can be answered; none: it can. Names no address: everybody may ask.
    pub(crate) fn not_ready(&self) -> Option<&'static str> {
        if self.0.facts().is_some() {
            return None;
        }
        let reasons = self.0.faults();
        let reason = |fault: &Fault| match fault {
            Fault::Unknown => "the text service was not asked yet",
            Fault::Unreachable(_) => "the text service does not answer",
            Fault::NotServing => "the text service is not serving",
            Fault::Unusable(_) | Fault::Misplaced(_) => "the text service cannot be used",
        };
        // Of several the one that says most.
        let is_away = |fault: &&Fault| matches!(fault, Fault::Unknown | Fault::Unreachable(_));
        let told = reasons.iter().find(|fault| !is_away(fault)).or(reasons.first());
        Some(told.map_or("no text service is known yet", reason))
    }

    pub(crate) async fn wait_ready(&self) {
        // The sender is the fleet's: it cannot be gone.
        let _ = self.0.readiness().wait_for(|readiness| *readiness == Readiness::Ready).await;
    }

    /// The served model.
    pub(crate) async fn model(&self) -> Result<Arc<Model>, Error> {
        self.0.settled_facts().await.ok_or_else(unavailable)
    }

    /// Asks which model is served under this name.
    pub(crate) async fn ask_model(&self, id: Option<String>) -> Result<Model, Error> {
        let request = GetModelRequest { model: id };
        let answer = self.call(request, async |mut client, request| client.get_model(request).await).await?;
        Ok(Model::from(answer))
    }

    /// Makes a call that has one answer, within the current span; where one service does not answer, at another.
    pub(crate) async fn call<M: Clone, A>(
        &self,
        message: M,
        call: impl AsyncFn(Client, tonic::Request<M>) -> Result<Response<A>, Status>,
    ) -> Result<A, Error> {
        let traced = &Traced::new(message);
        let call = &call;
        let attempt = |Lease { channel, load, .. }: Lease| async move {
            let answer = call(client(channel), traced.request()).await?;
            drop(load);
            Ok(answer.into_inner())
        };
        self.0.send(attempt).await
    }

    /// Starts a generation and waits for its first answer; where one service does not give one, at another.
    pub(crate) async fn generate(&self, request: &Traced<GenerateRequest>) -> Result<Answers, Error> {
        let attempt = |Lease { channel, load, attempt }: Lease| async move {
            let mut sent = request.request();
            // The engine may not have seen the end of the first attempt, whose id it would refuse.
            if attempt > 0
                && let Some(id) = &mut sent.get_mut().request_id
            {
                id.push_str("~r");
            }
            let mut rest = client(channel).generate(sent).await?.into_inner();
            let first = rest.message().await?.ok_or_else(Failed::ended_early)?;
            Ok(Answers { first: Some(first), rest, _load: load })
        };
        self.0.send(attempt).await
    }
}

impl Answers {
    /// The next answer; none after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<GenerateResponse>, Error> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => Ok(self.rest.message().await?),
        }
    }
}

impl Kind for Text {
    const SERVICE: &'static str = SERVICE_NAME;
    const NAME: &'static str = "tokenizer";
    type Facts = Model;

    async fn ask(&self, channel: Channel) -> Result<Model, Fault> {
        let answer = client(channel).get_model(GetModelRequest { model: None }).await.map_err(|status| {
            let error = Error::from(status);
            Fault::Unusable(error.detail().unwrap_or(error.message()).to_owned())
        })?;
        Ok(Model::from(answer.into_inner()))
    }

    fn replica_changed(&self, name: &str, fault: Option<&Fault>) {
        events::tokenizer_changed(name, fault);
    }

    fn usable_changed(&self, num_usable: usize) {
        events::tokenizers_usable(num_usable);
    }

    fn readiness_changed(&self, readiness: &Readiness) {
        events::readiness_changed(readiness);
    }

    fn retried(&self, name: &str, error: &Error) {
        events::retried(name, error);
    }
}

impl From<ModelInfo> for Model {
    fn from(info: ModelInfo) -> Self {
        let fingerprint = info.vocabulary_fingerprint();
        let shown = fingerprint.get(..SHOWN_FINGERPRINT_LEN).unwrap_or(fingerprint);
        Self {
            system_fingerprint: format!("fused-{shown}"),
            max_model_len: info.max_model_len,
            created_unix_s: info.created_unix_s(),
            root: info.root.as_ref().or(info.id.as_ref()).cloned().unwrap_or_default(),
            id: info.id.unwrap_or_default(),
            aliases: info.aliases,
        }
    }
}

/// A message that may be sent twice, in the trace of the span in which it was made.
pub(crate) struct Traced<M> {
    message: M,
    metadata: MetadataMap,
}

impl<M: Clone> Traced<M> {
    pub(crate) fn new(message: M) -> Self {
        let mut metadata = MetadataMap::new();
        fused_telemetry::grpc::inject(&Span::current(), &mut metadata);
        Self { message, metadata }
    }

    fn request(&self) -> tonic::Request<M> {
        let mut request = tonic::Request::new(self.message.clone());
        request.metadata_mut().clone_from(&self.metadata);
        request
    }
}

fn client(channel: Channel) -> Client {
    TextGenerationClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn unavailable() -> Error {
    Error::new(Code::Unavailable, "no text service is ready; try again")
}
