//! The token API over gRPC. Generated types end here: in as validated requests, out as events.

mod reply;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fused_lifecycle::{Lifecycle, RequestGuard};
use fused_proto::common::v1 as common;
use fused_proto::engine::v1::engine_server;
use fused_proto::engine::v1::generate_request::Message;
use fused_proto::engine::v1::{
    AbortRequest, AbortResponse, FinishSequence, GenerateOpening, GenerateRequest, GenerateResponse,
    GetLoadRequest, GetLoadResponse, GetModelRequest, PromptChunk,
};
use fused_status::{Code, Error};
use futures_util::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, Span, field};

use crate::ModelInfo;
use crate::core::{Admitted, Door, Event, EventReceiver};
use crate::events;
use crate::request::{Limits, PromptReader, RequestId, ValidGenerateRequest};
use reply::ReplyStream;

/// The gRPC service of an [`Engine`](crate::Engine).
#[derive(Clone, Debug)]
pub struct EngineService {
    door: Door,
    model: Arc<ModelInfo>,
    num_slots: usize,
    prompt_timeout: Duration,
    lifecycle: Lifecycle,
}

/// The stream of one request's answers. Dropping it cancels the request.
#[derive(Debug)]
pub struct GenerateStream {
    replies: ReplyStream,
    /// The client's half behind the prompt; none where it has ended.
    messages: Option<Streaming<GenerateRequest>>,
    /// A sequence that is to end, which the core is too busy to hear as yet.
    finishing: Option<u32>,
    number: u64,
    door: Door,
    _request: RequestGuard,
    span: Span,
}

/// A request whose prompt is arriving.
struct Generation {
    number: u64,
    num_sequences: u32,
    prompt: PromptReader,
    events: EventReceiver,
}

impl EngineService {
    pub(crate) fn new(
        door: Door,
        model: ModelInfo,
        num_slots: usize,
        prompt_timeout: Duration,
        lifecycle: Lifecycle,
    ) -> Self {
        Self { door, model: Arc::new(model), num_slots, prompt_timeout, lifecycle }
    }

    pub(crate) fn model(&self) -> &ModelInfo {
        &self.model
    }

    pub(crate) fn is_serving(&self) -> bool {
        !self.lifecycle.is_draining()
    }

    pub(crate) fn door(&self) -> &Door {
        &self.door
    }

    /// The opening: what is refused here has cost the core nothing.
    async fn admit(&self, messages: &mut Streaming<GenerateRequest>) -> Result<Generation, Error> {
        let arrived = Instant::now();
        let limits = Limits { model: &self.model };
        let request = ValidGenerateRequest::new(read_opening(messages).await?, limits)?;
        Span::current().record("request_id", field::display(&request.id.0));
        let (prompt, num_sequences) = (PromptReader::new(&request, limits), request.num_sequences);
        let Admitted { number, events } = self.door.start(request, arrived)?;
        Ok(Generation { number, num_sequences, prompt, events })
    }

    /// Hands the prompt on while it arrives. Returns an event that came before its end.
    async fn feed(
        &self,
        messages: &mut Streaming<GenerateRequest>,
        generation: &mut Generation,
    ) -> Result<Option<Event>, Error> {
        loop {
            let message = tokio::select! {
                biased;
                // Nothing but an end comes before the prompt is complete: an abort, a deadline, a failure.
                event = generation.events.recv() => return Ok(event),
                message = messages.message() => message,
            };
            let chunk = generation.prompt.read(prompt_chunk(message)?)?;
            let is_last = chunk.max_tokens.is_some();
            self.door.prompt(generation.number, chunk).await?;
            if is_last {
                return Ok(None);
            }
        }
    }

    /// Admits a request and feeds it its prompt; what comes of it is in the stream.
    async fn open(
        &self,
        mut messages: Streaming<GenerateRequest>,
        guard: RequestGuard,
    ) -> Result<GenerateStream, Error> {
        let span = Span::current();
        let arrival = async {
            let admitted = self.admit(&mut messages).await;
            let mut generation = admitted.inspect_err(|error| events::refused(error.code()))?;
            let early = self.feed(&mut messages, &mut generation).await?;
            Ok((generation, early))
        };
        let arrived = tokio::time::timeout(self.prompt_timeout, arrival).await;
        let (generation, early) = arrived.unwrap_or_else(|_| Err(self.prompt_late()))?;
        span.record("prompt_tokens", generation.prompt.num_tokens());
        let fingerprint = self.model.vocabulary_fingerprint.clone();
        let replies = ReplyStream::new(generation.events, early, generation.num_sequences, fingerprint);
        Ok(GenerateStream {
            replies,
            messages: Some(messages),
            finishing: None,
            number: generation.number,
            door: self.door.clone(),
            _request: guard,
            span,
        })
    }

    fn prompt_late(&self) -> Error {
        let message = format!("the prompt was not complete after {} s", self.prompt_timeout.as_secs());
        Error::new(Code::DeadlineExceeded, message).with_param("prompt")
    }
}

#[tonic::async_trait]
impl engine_server::Engine for EngineService {
    type GenerateStream = GenerateStream;

    async fn generate(
        &self,
        request: Request<Streaming<GenerateRequest>>,
    ) -> Result<Response<GenerateStream>, Status> {
        let span = tracing::info_span!(
            "engine.generate",
            request_id = field::Empty,
            prompt_tokens = field::Empty,
            completion_tokens = field::Empty,
            outcome = field::Empty,
        );
        fused_telemetry::grpc::set_parent(&span, request.metadata());
        let guard =
            self.lifecycle.request().map_err(|error| Error::new(Code::ShuttingDown, error.to_string()))?;
        let stream = self.open(request.into_inner(), guard).instrument(span.clone()).await;
        let stream = stream.inspect_err(|error| {
            span.record("outcome", error.code().name());
        })?;
        Ok(Response::new(stream))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<AbortResponse>, Status> {
        let AbortRequest { request_id, reason } = request.into_inner();
        let id = request_id.ok_or_else(|| Error::invalid("request_id", "request_id must be given"))?;
        let aborted = self.door.abort(RequestId(id.as_str().into())).await?;
        if let Some(aborted) = aborted {
            events::aborted(&id, reason.as_deref().unwrap_or(""), aborted.num_sequences, aborted.kv_bytes);
        }
        let freed = aborted.unwrap_or_default();
        Ok(Response::new(AbortResponse {
            found: Some(aborted.is_some()),
            freed_sequences: Some(reply::count(freed.num_sequences)),
            freed_kv_bytes: Some(freed.kv_bytes as u64),
        }))
    }

    async fn get_model(
        &self,
        _request: Request<GetModelRequest>,
    ) -> Result<Response<common::ModelInfo>, Status> {
        // Tokenizers ask this to see where requests can go: not here any more.
        if let Some(reason) = self.door.failure().reason() {
            let message = format!("the engine has failed and must be restarted: {reason}");
            return Err(Error::new(Code::Unavailable, message).into());
        }
        if !self.is_serving() {
            return Err(Error::new(Code::ShuttingDown, "the engine is shutting down").into());
        }
        Ok(Response::new(reply::model_info(&self.model)))
    }

    async fn get_load(&self, _request: Request<GetLoadRequest>) -> Result<Response<GetLoadResponse>, Status> {
        Ok(Response::new(reply::load(&self.door.load(), self.num_slots)))
    }
}

impl GenerateStream {
    /// Hands on which sequences the client has enough of. Before the prompt is answered none of them may end: the first has
    /// its log-probabilities to compute.
    fn finish_sequences(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        while self.replies.told_prompt() {
            if let Some(idx) = self.finishing
                && !self.door.finish_sequence(self.number, idx)
            {
                // The next answer, of which there is one as long as it goes on, is as good a moment.
                return Ok(());
            }
            self.finishing = None;
            let Some(messages) = &mut self.messages else { return Ok(()) };
            match messages.poll_next_unpin(cx) {
                Poll::Pending => return Ok(()),
                // An error says that the client is gone, which the answers will find out.
                Poll::Ready(None | Some(Err(_))) => self.messages = None,
                Poll::Ready(Some(Ok(GenerateRequest { message: Some(Message::Finish(finish)) }))) => {
                    self.finishing = Some(sequence_idx(finish, self.replies.num_sequences())?);
                }
                Poll::Ready(Some(Ok(_))) => {
                    let message = "behind the prompt only the ends of sequences may come";
                    return Err(Error::invalid("finish", message));
                }
            }
        }
        Ok(())
    }
}

impl Stream for GenerateStream {
    type Item = Result<GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Err(error) = self.finish_sequences(cx) {
            self.messages = None;
            return Poll::Ready(Some(Err(self.replies.refuse(error).into())));
        }
        let reply = std::task::ready!(self.replies.poll_next(cx));
        Poll::Ready(reply.map(|reply| reply.map_err(Status::from)))
    }
}

impl Drop for GenerateStream {
    fn drop(&mut self) {
        self.span.record("completion_tokens", self.replies.num_tokens());
        self.span.record("outcome", self.replies.outcome());
    }
}

async fn read_opening(messages: &mut Streaming<GenerateRequest>) -> Result<GenerateOpening, Error> {
    match messages.message().await?.and_then(|message| message.message) {
        Some(Message::Opening(opening)) => Ok(opening),
        _ => Err(Error::invalid("opening", "the first message must be the opening")),
    }
}

fn sequence_idx(finish: FinishSequence, num_sequences: u32) -> Result<u32, Error> {
    let idx = finish.sequence_idx.unwrap_or(0);
    if idx >= num_sequences {
        let message = format!("sequence_idx is {idx}, and the request has {num_sequences} sequences");
        return Err(Error::invalid("sequence_idx", message));
    }
    Ok(idx)
}

fn prompt_chunk(message: Result<Option<GenerateRequest>, Status>) -> Result<PromptChunk, Error> {
    match message? {
        None => Err(Error::invalid("prompt", "the stream ended before the prompt's last chunk")),
        Some(GenerateRequest { message: Some(Message::Prompt(chunk)) }) => Ok(chunk),
        Some(_) => Err(Error::invalid("prompt", "after the opening only chunks of the prompt may come")),
    }
}
