//! The gRPC edge: the only place, but for the engines' client, that knows the wire's types.

mod requests;
mod responses;

use std::pin::Pin;
use std::sync::Arc;

use fused_lifecycle::{Lifecycle, RequestGuard};
use fused_proto::common::v1::ModelInfo;
use fused_proto::text::v1::text_generation_server::TextGeneration;
use fused_proto::text::v1::{
    DetokenizeRequest, DetokenizeResponse, GenerateRequest, GenerateResponse, GetModelRequest,
    RenderChatRequest, RenderChatResponse, TokenizeRequest, TokenizeResponse,
};
use fused_status::{Code, Error, Result};
use fused_vocabulary::TokenId;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use crate::engines::Model;
use crate::events;
use crate::generate::{Generation, generate};
use crate::prompt::{Prompt, PromptLimit};
use crate::prompt_ids::EncodedPrompt;
use crate::tokenizer::Core;

/// The service `fused.text.v1.TextGeneration`; [`crate::Tokenizer::service`] makes it.
pub struct TextService {
    core: Arc<Core>,
    lifecycle: Lifecycle,
}

impl TextService {
    pub(crate) fn new(core: Arc<Core>, lifecycle: Lifecycle) -> Self {
        Self { core, lifecycle }
    }

    async fn begin(&self, request: GenerateRequest) -> Result<Generation> {
        let guard = self.admit()?;
        self.model(request.model.as_deref())?;
        let request = requests::generate(request, &self.core)?;
        Span::current().record("request_id", request.id.as_str());
        generate(&self.core, request, guard).await
    }

    async fn tokenize(&self, request: TokenizeRequest) -> Result<TokenizeResponse> {
        let _guard = self.admit()?;
        let model = self.model(request.model.as_deref())?;
        let with_texts = request.return_token_texts();
        let prompt = requests::prompt(request.prompt)?;
        let EncodedPrompt { ids, encoded } = self.encode(prompt).await?;
        let text = |id: &TokenId| String::from_utf8_lossy(self.core.vocabulary.token_bytes(*id)).into_owned();
        Ok(TokenizeResponse {
            token_texts: if with_texts { ids.iter().map(text).collect() } else { Vec::new() },
            token_ids: ids.iter().map(|id| id.0).collect(),
            base_tokens: u32::try_from(encoded.num_base_tokens).ok(),
            max_model_len: model.info.max_model_len,
        })
    }

    async fn detokenize(&self, request: DetokenizeRequest) -> Result<DetokenizeResponse> {
        let _guard = self.admit()?;
        self.model(request.model.as_deref())?;
        let ids: Vec<_> = request.token_ids.iter().copied().map(TokenId).collect();
        let vocab_size = self.core.vocabulary.vocab_size();
        if let Some(id) = ids.iter().find(|id| id.row() >= vocab_size) {
            let message = format!("token id {id} is out of range: the vocabulary has {vocab_size} tokens");
            return Err(Error::invalid("tokens", message));
        }
        let special = requests::special_text(request.skip_special_tokens());
        let core = Arc::clone(&self.core);
        let text = self.core.pool.run(move || Ok(core.vocabulary.decode(&ids, special))).await?;
        Ok(DetokenizeResponse { text: Some(text) })
    }

    async fn render_chat(&self, request: RenderChatRequest) -> Result<RenderChatResponse> {
        let _guard = self.admit()?;
        self.model(request.model.as_deref())?;
        let chat = request.chat.ok_or_else(|| Error::invalid("messages", "the conversation is missing"))?;
        let prompt = Prompt::Text(requests::chat(chat, None));
        let EncodedPrompt { ids, encoded } = self.encode(prompt).await?;
        let token_ids = ids.iter().map(|id| id.0).collect();
        Ok(RenderChatResponse { text: encoded.rendered, token_ids })
    }

    fn get_model(&self, request: &GetModelRequest) -> Result<ModelInfo> {
        let model = self.model(request.model.as_deref())?;
        Ok(ModelInfo { id: Some(model.name.clone()), ..model.info.clone() })
    }

    async fn encode(&self, prompt: Prompt) -> Result<EncodedPrompt> {
        let prompt = self.core.encoder.begin(&self.core.pool, prompt, PromptLimit::None).await?;
        prompt.whole().await
    }

    fn admit(&self) -> Result<RequestGuard> {
        let refused =
            |draining| Error::new(Code::ShuttingDown, "the server is shutting down").with_cause(&draining);
        self.lifecycle.request().map_err(refused)
    }

    /// The served model, if it is the one asked for.
    fn model(&self, name: Option<&str>) -> Result<Arc<Model>> {
        let model = self.core.engines.model()?;
        match name {
            Some(name) if name != model.name => {
                let message = format!("The model `{name}` does not exist");
                Err(Error::new(Code::ModelNotFound, message).with_param("model"))
            }
            _ => Ok(model),
        }
    }
}

/// The answers of a generation as the wire has them. The generation moves along and is dropped with the stream.
fn answers(generation: Generation) -> impl Stream<Item = std::result::Result<GenerateResponse, Status>> {
    futures_util::stream::unfold(generation, async |mut generation| {
        let answer = match generation.next().await? {
            Ok(output) => Ok(responses::generate(output, generation.vocabulary())),
            Err(error) => Err(generation.span().in_scope(|| status(error))),
        };
        Some((answer, generation))
    })
}

fn status(error: Error) -> Status {
    events::failed(&error);
    error.into()
}

fn respond<T>(answer: Result<T>) -> std::result::Result<Response<T>, Status> {
    answer.map(Response::new).map_err(status)
}

fn span(metadata: &tonic::metadata::MetadataMap) -> Span {
    let span = info_span!(
        events::GENERATE_SPAN,
        request_id = Empty,
        prompt_tokens = Empty,
        completion_tokens = Empty
    );
    fused_telemetry::grpc::set_parent(&span, metadata);
    span
}

#[tonic::async_trait]
impl TextGeneration for TextService {
    type GenerateStream = Pin<Box<dyn Stream<Item = std::result::Result<GenerateResponse, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> std::result::Result<Response<Self::GenerateStream>, Status> {
        let span = span(request.metadata());
        let generation = self.begin(request.into_inner()).instrument(span).await.map_err(status)?;
        Ok(Response::new(Box::pin(answers(generation))))
    }

    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> std::result::Result<Response<TokenizeResponse>, Status> {
        respond(self.tokenize(request.into_inner()).await)
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> std::result::Result<Response<DetokenizeResponse>, Status> {
        respond(self.detokenize(request.into_inner()).await)
    }

    async fn render_chat(
        &self,
        request: Request<RenderChatRequest>,
    ) -> std::result::Result<Response<RenderChatResponse>, Status> {
        respond(self.render_chat(request.into_inner()).await)
    }

    async fn get_model(
        &self,
        request: Request<GetModelRequest>,
    ) -> std::result::Result<Response<ModelInfo>, Status> {
        respond(self.get_model(&request.into_inner()))
    }
}
