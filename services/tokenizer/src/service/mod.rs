//! The gRPC edge: the only place, but for the engines' client, that knows the wire's types.

mod requests;
mod responses;
mod token_pieces;

use std::pin::Pin;
use std::sync::Arc;

use fused_lifecycle::{Lifecycle, RequestGuard};
use fused_proto::common::v1::ModelInfo;
use fused_proto::text::v1::text_generation_server::TextGeneration;
use fused_proto::text::v1::{
    DetokenizeRequest, DetokenizeResponse, GenerateRequest, GenerateResponse, GetModelRequest,
    GetTokenizerInfoRequest, RenderChatRequest, RenderChatResponse, TokenizeRequest, TokenizeResponse,
    TokenizerInfo,
};
use fused_status::{Code, Error, Result};
use fused_transport::MAX_MESSAGE_BYTES;
use fused_vocabulary::TokenId;
use futures_util::StreamExt;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use crate::encode::{Purpose, Worker};
use crate::engines::Model;
use crate::events;
use crate::generate::{Generation, generate};
use crate::prompt::Prompt;
use crate::prompt_ids::EncodedPrompt;
use crate::tokenizer::Core;

use token_pieces::{Strings, TokenPieces};

/// The longest text that tokens are turned into: the answer is one message.
const MAX_TEXT_BYTES: usize = MAX_MESSAGE_BYTES - (64 << 10);

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
        let strings = Strings::asked_for(&request);
        let prompt = requests::prompt(request.prompt)?;
        let (prompt, _memory) = self.core.encoder.whole(&self.core.pool, prompt).await?;
        let pieces = TokenPieces::new(&self.core, prompt, strings, model.info.max_model_len);
        let num_bytes = pieces.num_message_bytes();
        if num_bytes > MAX_MESSAGE_BYTES {
            let message = format!(
                "the answer would have up to {num_bytes} bytes, and a message has {MAX_MESSAGE_BYTES}: ask TokenizeStream"
            );
            return Err(Error::invalid("prompt", message));
        }
        let _answer = self.core.pool.answer_memory().share(pieces.num_memory_bytes())?;
        Ok(pieces.whole())
    }

    /// The answer holds its memory until it is out, and its place among the requests in flight.
    async fn tokenize_stream(
        &self,
        request: TokenizeRequest,
    ) -> Result<impl Stream<Item = TokenizeResponse> + Send + use<>> {
        let guard = self.admit()?;
        let model = self.model(request.model.as_deref())?;
        let strings = Strings::asked_for(&request);
        let prompt = requests::prompt(request.prompt)?;
        let (prompt, memory) = self.core.encoder.whole(&self.core.pool, prompt).await?;
        let pieces = TokenPieces::new(&self.core, prompt, strings, model.info.max_model_len);
        let held = (guard, memory);
        Ok(futures_util::stream::unfold((pieces, held), async |(mut pieces, held)| {
            let piece = pieces.next()?;
            Some((piece, (pieces, held)))
        }))
    }

    async fn detokenize(&self, request: DetokenizeRequest) -> Result<DetokenizeResponse> {
        let _guard = self.admit()?;
        self.model(request.model.as_deref())?;
        let ids: Vec<_> = request.token_ids.iter().copied().map(TokenId).collect();
        let vocab_size = self.core.vocabulary.vocab_size();
        if let Some(id) = ids.iter().find(|id| id.row() >= vocab_size) {
            let message = format!(
                "token id {id} is out of range: the model's vocabulary has {vocab_size} tokens, with ids as /tokenize gives them"
            );
            return Err(Error::invalid("tokens", message));
        }
        let num_bytes = ids.iter().map(|id| self.core.vocabulary.token_bytes(*id).len()).sum::<usize>();
        if num_bytes > MAX_TEXT_BYTES {
            let message =
                format!("the tokens' text has {num_bytes} bytes, over {MAX_TEXT_BYTES}: send fewer");
            return Err(Error::invalid("tokens", message));
        }
        let special = requests::special_text(request.skip_special_tokens());
        let core = Arc::clone(&self.core);
        let decode = move |_: &Worker<'_>, _: &dyn Fn() -> bool| Ok(core.vocabulary.decode(&ids, special));
        let memory_bytes = 4 * num_bytes;
        let (text, _memory) =
            self.core.pool.run(Purpose::Translation, num_bytes, memory_bytes, decode).await?;
        Ok(DetokenizeResponse { text: Some(text) })
    }

    async fn render_chat(&self, request: RenderChatRequest) -> Result<RenderChatResponse> {
        let _guard = self.admit()?;
        self.model(request.model.as_deref())?;
        let chat = request.chat.ok_or_else(|| Error::invalid("messages", "the conversation is missing"))?;
        let prompt = Prompt::Text(requests::chat(chat, None));
        let (prompt, _memory) = self.core.encoder.whole(&self.core.pool, prompt).await?;
        let EncodedPrompt { ids, encoded } = prompt;
        let token_ids = ids.iter().map(|id| id.0).collect();
        Ok(RenderChatResponse { text: encoded.rendered, token_ids })
    }

    fn get_model(&self, request: &GetModelRequest) -> Result<ModelInfo> {
        let model = self.model(request.model.as_deref())?;
        Ok(ModelInfo {
            // As it was asked for.
            id: Some(request.model.as_ref().unwrap_or(&model.name).clone()),
            aliases: model.aliases.clone(),
            root: Some(self.core.root.clone()),
            ..model.info.clone()
        })
    }

    fn get_tokenizer_info(&self, request: &GetTokenizerInfoRequest) -> Result<TokenizerInfo> {
        self.model(request.model.as_deref())?;
        Ok(TokenizerInfo { json: Some(self.core.info.clone()) })
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
            Some(name) if name != model.name && !model.aliases.iter().any(|alias| alias == name) => {
                let served =
                    std::iter::once(&model.name).chain(&model.aliases).map(|name| format!("`{name}`"));
                let served = served.collect::<Vec<_>>().join(", ");
                let message = format!("The model `{name:.256}` does not exist; served here: {served}");
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

    type TokenizeStreamStream =
        Pin<Box<dyn Stream<Item = std::result::Result<TokenizeResponse, Status>> + Send>>;

    async fn tokenize_stream(
        &self,
        request: Request<TokenizeRequest>,
    ) -> std::result::Result<Response<Self::TokenizeStreamStream>, Status> {
        let pieces = self.tokenize_stream(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(Box::pin(pieces.map(Ok))))
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

    async fn get_tokenizer_info(
        &self,
        request: Request<GetTokenizerInfoRequest>,
    ) -> std::result::Result<Response<TokenizerInfo>, Status> {
        respond(self.get_tokenizer_info(&request.into_inner()))
    }
}
