//! A text service that answers by script and remembers what it was asked.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use fused_proto::common::v1::{FinishReason, ModelInfo};
use fused_proto::text::v1::finish_info::Matched;
use fused_proto::text::v1::generate_response::Message;
use fused_proto::text::v1::text_generation_server::TextGeneration;
use fused_proto::text::v1::{
    DetokenizeRequest, DetokenizeResponse, FinishInfo, GenerateRequest, GenerateResponse, GetModelRequest,
    GetTokenizerInfoRequest, PromptInfo, RenderChatRequest, RenderChatResponse, TextIncrement, TextLogprobs,
    TextToken, TokenizeRequest, TokenizeResponse, TokenizerInfo, Usage,
};
use fused_status::{Code, Error};
use futures_util::stream::{BoxStream, iter, pending};
use futures_util::{Stream, StreamExt};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// What one call answers.
pub(crate) struct Script {
    pub(crate) refusal: Option<Error>,
    pub(crate) messages: Vec<Message>,
    pub(crate) end: End,
}

/// How a call's stream ends after its messages.
pub(crate) enum End {
    Whole,
    Failure(Error),
    /// Not before the client goes.
    Never,
}

type MakeScript = Arc<dyn Fn(&GenerateRequest) -> Script + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Fake {
    make_script: MakeScript,
    /// What tokenizing and its reverse are answered with, where they are refused.
    refusal: Option<Error>,
    asked: Arc<Mutex<Vec<GenerateRequest>>>,
    num_open: Arc<watch::Sender<usize>>,
}

impl Fake {
    pub(crate) fn new(make_script: impl Fn(&GenerateRequest) -> Script + Send + Sync + 'static) -> Self {
        Self {
            make_script: Arc::new(make_script),
            refusal: None,
            asked: Arc::default(),
            num_open: Arc::new(watch::Sender::new(0)),
        }
    }

    /// One that refuses every call.
    pub(crate) fn refusing(error: Error) -> Self {
        let refusal = Some(error);
        let script = refusal.clone();
        let refuse = move |_: &_| Script { refusal: script.clone(), messages: vec![], end: End::Whole };
        Self { refusal, ..Self::new(refuse) }
    }

    fn refuse(&self) -> Result<(), Status> {
        self.refusal.clone().map_or(Ok(()), |error| Err(error.into()))
    }

    /// The calls so far.
    pub(crate) fn asked(&self) -> Vec<GenerateRequest> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until so many streams are open.
    pub(crate) async fn open_streams(&self, wanted: usize) {
        let mut num_open = self.num_open.subscribe();
        num_open.wait_for(|num| *num == wanted).await.unwrap();
    }
}

/// A stream that is counted while it is open.
struct Counted {
    messages: BoxStream<'static, Result<GenerateResponse, Status>>,
    num_open: Arc<watch::Sender<usize>>,
}

impl Stream for Counted {
    type Item = Result<GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages.poll_next_unpin(cx)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.num_open.send_modify(|num| *num -= 1);
    }
}

#[tonic::async_trait]
impl TextGeneration for Fake {
    type GenerateStream = BoxStream<'static, Result<GenerateResponse, Status>>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let request = request.into_inner();
        let script = (self.make_script)(&request);
        self.asked.lock().unwrap().push(request);
        if let Some(refusal) = script.refusal {
            return Err(refusal.into());
        }
        let messages =
            script.messages.into_iter().map(|message| Ok(GenerateResponse { message: Some(message) }));
        let messages = match script.end {
            End::Whole => iter(messages).boxed(),
            End::Failure(error) => iter(messages.chain([Err(error.into())])).boxed(),
            End::Never => iter(messages).chain(pending()).boxed(),
        };
        self.num_open.send_modify(|num| *num += 1);
        Ok(Response::new(Counted { messages, num_open: Arc::clone(&self.num_open) }.boxed()))
    }

    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        self.refuse()?;
        let has_pieces = request.get_ref().return_token_pieces();
        Ok(Response::new(TokenizeResponse {
            token_ids: vec![7, 8],
            token_pieces: if has_pieces { vec!["a".to_owned(), "Ġb".to_owned()] } else { Vec::new() },
            base_tokens: Some(3),
            max_model_len: Some(1024),
            num_tokens: Some(2),
            ..TokenizeResponse::default()
        }))
    }

    type TokenizeStreamStream = BoxStream<'static, Result<TokenizeResponse, Status>>;

    async fn tokenize_stream(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<Self::TokenizeStreamStream>, Status> {
        let whole = self.tokenize(request).await?.into_inner();
        let cut = TokenizeResponse { token_ids: vec![7], token_pieces: Vec::new(), ..whole.clone() };
        let rest = TokenizeResponse {
            token_ids: vec![8],
            token_pieces: whole.token_pieces,
            ..TokenizeResponse::default()
        };
        Ok(Response::new(iter([Ok(cut), Ok(rest)]).boxed()))
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        self.refuse()?;
        let text = format!("{:?}", request.get_ref().token_ids);
        Ok(Response::new(DetokenizeResponse { text: Some(text) }))
    }

    async fn render_chat(
        &self,
        _: Request<RenderChatRequest>,
    ) -> Result<Response<RenderChatResponse>, Status> {
        Ok(Response::new(RenderChatResponse::default()))
    }

    async fn get_tokenizer_info(
        &self,
        _: Request<GetTokenizerInfoRequest>,
    ) -> Result<Response<TokenizerInfo>, Status> {
        self.refuse()?;
        Ok(Response::new(TokenizerInfo { json: Some(r#"{"eos_token":"</s>"}"#.to_owned()) }))
    }

    async fn get_model(&self, request: Request<GetModelRequest>) -> Result<Response<ModelInfo>, Status> {
        let asked = request.into_inner().model;
        if let Some(id) = &asked
            && !matches!(id.as_str(), "org/demo" | "alias")
        {
            let message = format!("the model `{id}` does not exist");
            return Err(Error::new(Code::ModelNotFound, message).with_param("model").into());
        }
        Ok(Response::new(ModelInfo {
            id: Some(asked.unwrap_or_else(|| "org/demo".to_owned())),
            aliases: vec!["alias".to_owned()],
            root: Some("demo-dir".to_owned()),
            vocabulary_fingerprint: Some("0123456789abcdef".repeat(4)),
            max_model_len: Some(1024),
            created_unix_s: Some(1_700_000_000),
            ..ModelInfo::default()
        }))
    }
}

pub(crate) fn prompt_info() -> Message {
    Message::PromptInfo(PromptInfo {
        prompt_tokens: Some(3),
        text: Some("Hé ".to_owned()),
        logprobs: vec![
            TextLogprobs {
                token: Some(TextToken { logprob: None, ..token("Hé", 0.0) }),
                ..TextLogprobs::default()
            },
            TextLogprobs { token: Some(token(" ", -0.5)), top: vec![token(" ", -0.5)], text_offset: Some(2) },
        ],
        token_ids: vec![1, 2, 3],
    })
}

pub(crate) fn text(sequence_idx: u32, text: &str) -> Message {
    Message::Text(TextIncrement {
        sequence_idx: Some(sequence_idx),
        text: Some(text.to_owned()),
        token_ids: vec![u32::try_from(text.len()).unwrap()],
        logprobs: Vec::new(),
    })
}

pub(crate) fn token(text: &str, logprob: f32) -> TextToken {
    TextToken {
        token_id: Some(9),
        text: Some(text.to_owned()),
        bytes: Some(text.as_bytes().to_vec()),
        logprob: Some(logprob),
    }
}

pub(crate) fn finish(sequence_idx: u32, reason: FinishReason, matched: Option<Matched>) -> Message {
    let finish = FinishInfo { sequence_idx: Some(sequence_idx), matched, ..FinishInfo::default() };
    let mut finish = FinishInfo { timings: None, ..finish };
    finish.set_reason(reason);
    Message::Finish(finish)
}

pub(crate) fn usage() -> Message {
    Message::Usage(Usage {
        prompt_tokens: Some(3),
        completion_tokens: Some(2),
        cached_prompt_tokens: Some(1),
        prompt_base_tokens: Some(4),
        completion_base_tokens: Some(5),
    })
}

/// For each sequence "Hello" and " world", then its end.
pub(crate) fn hello(request: &GenerateRequest) -> Script {
    let mut messages = vec![prompt_info()];
    for idx in 0..request.num_sequences() {
        messages.push(text(idx, "Hello"));
    }
    for idx in 0..request.num_sequences() {
        messages.push(text(idx, " world"));
        messages.push(finish(idx, FinishReason::Stop, Some(Matched::EosTokenId(0))));
    }
    messages.push(usage());
    Script { refusal: None, messages, end: End::Whole }
}
