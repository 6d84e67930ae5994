use fused_proto::common::v1::{
    LogprobParams, ModelInfo, SamplingParams, StoppingParams, Timings, TokenLogprobs,
};
use fused_proto::engine::v1::engine_client::EngineClient;
use fused_proto::engine::v1::finish_info::Matched as WireMatched;
use fused_proto::engine::v1::generate_request::Message as Sent;
use fused_proto::engine::v1::generate_response::Message as Received;
use fused_proto::engine::v1::{
    FinishInfo, FinishSequence, GenerateOpening, GenerateRequest, GenerateResponse, GetModelRequest,
    PromptChunk, PromptInfo,
};
use fused_status::{Error, Result};
use fused_transport::{Channel, Failed, Lease, Load};
use fused_vocabulary::{Fingerprint, TokenId};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Request, Streaming};
use tracing::Span;

use crate::detokenize::{Logprobs, SampledToken};
use crate::prompt_ids::PromptIds;

/// The largest message from an engine: a long prompt's log-probabilities come in one.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// The longest id that an engine takes.
const MAX_ID_BYTES: usize = 128;
/// What the engine is asked to do, as it came from the caller: carried here unread, checked by the engine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parameters {
    pub(crate) sampling: Option<SamplingParams>,
    pub(crate) stopping: Option<StoppingParams>,
    pub(crate) logprobs: Option<LogprobParams>,
    pub(crate) cache_salt: Option<String>,
    pub(crate) priority: Option<i32>,
    pub(crate) group_id: Option<String>,
}

/// One request for an engine.
#[derive(Clone, Debug)]
pub(crate) struct EngineRequest {
    pub(crate) id: String,
    pub(crate) vocabulary: Fingerprint,
    pub(crate) parameters: Parameters,
    pub(crate) num_sequences: usize,
    pub(crate) deadline: Option<Instant>,
    pub(crate) prompt: PromptIds,
}

/// The engine's first answer.
#[derive(Debug)]
pub(crate) struct PromptAnswer {
    pub(crate) num_cached_tokens: usize,
    /// One a prompt token, or none.
    pub(crate) logprobs: Vec<Logprobs>,
}

/// What follows it. `last_ends`: the last of the tokens has ended the sequence.
#[derive(Debug)]
pub(crate) enum Event {
    Tokens { sequence_idx: usize, tokens: Vec<SampledToken>, last_ends: bool },
    Finish { sequence_idx: usize, finish: Finish },
}

/// How a sequence ended.
#[derive(Debug)]
pub(crate) struct Finish {
    pub(crate) reason: FinishReason,
    pub(crate) matched: Option<Matched>,
    /// The engine's, passed on unread.
    pub(crate) timings: Option<Timings>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FinishReason {
    Stop,
    Length,
    Aborted,
}

/// What ended a sequence that stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Matched {
    Eos(TokenId),
    StopToken(TokenId),
    StopString(String),
}

/// An engine's answers to one request. Dropping it cancels the request there.
#[derive(Debug)]
pub(crate) struct EngineStream {
    messages: Streaming<GenerateResponse>,
    num_sequences: usize,
    /// Which sequences the engine is to end, behind the prompt on their way to it; none where there is one only, which ends
    /// with the stream.
    finishes: Option<mpsc::Sender<u32>>,
    _load: Load,
}

fn client(channel: Channel) -> EngineClient<Channel> {
    EngineClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Which model an engine has.
pub(super) async fn model(channel: Channel) -> Result<ModelInfo> {
    Ok(client(channel).get_model(GetModelRequest {}).await?.into_inner())
}

/// Sends a request and waits for the first answer, which comes when the prompt has been processed.
pub(super) async fn generate(
    request: &EngineRequest,
    lease: Lease,
) -> std::result::Result<(EngineStream, PromptAnswer), Failed> {
    let Lease { channel, load, attempt } = lease;
    // A place for each, so that nobody waits.
    let (finishes, finished) = match request.num_sequences {
        0 | 1 => (None, None),
        several => Some(mpsc::channel(several)).unzip(),
    };
    let mut outgoing = Request::new(messages(request, attempt, finished));
    fused_telemetry::grpc::inject(&Span::current(), outgoing.metadata_mut());
    let mut messages = client(channel).generate(outgoing).await?.into_inner();
    match messages.message().await?.ok_or_else(Failed::ended_early)?.message {
        Some(Received::PromptInfo(info)) => {
            let prompt = prompt_answer(info, request.prompt.len())?;
            let num_sequences = request.num_sequences;
            Ok((EngineStream { messages, num_sequences, finishes, _load: load }, prompt))
        }
        _ => Err(broken("a first answer that is not about the prompt").into()),
    }
}

impl EngineStream {
    /// The next answer; none when the engine has nothing more to say.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>> {
        match self.messages.message().await? {
            None => Ok(None),
            Some(answer) => match answer.message {
                Some(Received::Tokens(tokens)) => {
                    let sequence_idx = self.sequence_idx(tokens.sequence_idx)?;
                    let last_ends = tokens.last_ends();
                    let tokens = sampled(tokens.token_ids, tokens.logprobs)?;
                    Ok(Some(Event::Tokens { sequence_idx, tokens, last_ends }))
                }
                Some(Received::Finish(info)) => {
                    let sequence_idx = self.sequence_idx(info.sequence_idx)?;
                    Ok(Some(Event::Finish { sequence_idx, finish: finish(&info)? }))
                }
                Some(Received::PromptInfo(_)) | None => {
                    Err(broken("an answer that has no place in the stream"))
                }
            },
        }
    }

    /// Has the engine end one of several sequences. Its end comes like any other.
    pub(crate) fn finish_sequence(&self, sequence_idx: usize) {
        if let (Some(finishes), Ok(idx)) = (&self.finishes, u32::try_from(sequence_idx)) {
            // Each is ended once at most, and an engine that has gone needs not to be told.
            let _ = finishes.try_send(idx);
        }
    }

    fn sequence_idx(&self, idx: Option<u32>) -> Result<usize> {
        let idx = idx.unwrap_or(0) as usize;
        if idx < self.num_sequences { Ok(idx) } else { Err(broken("a sequence that was not asked for")) }
    }
}

/// `finished`: which sequences are to end, once the prompt is sent.
fn messages(
    request: &EngineRequest,
    attempt: u32,
    mut finished: Option<mpsc::Receiver<u32>>,
) -> impl Stream<Item = GenerateRequest> + Send + use<> {
    let timeout_us = request.deadline.map(|deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        u64::try_from(left.as_micros()).unwrap_or(u64::MAX)
    });
    let parameters = request.parameters.clone();
    let opening = Sent::Opening(GenerateOpening {
        request_id: Some(attempt_id(&request.id, attempt)),
        vocabulary_fingerprint: Some(request.vocabulary.to_string()),
        sampling: parameters.sampling,
        stopping: parameters.stopping,
        logprobs: parameters.logprobs,
        num_sequences: u32::try_from(request.num_sequences).ok(),
        timeout_us,
        cache_salt: parameters.cache_salt,
        priority: parameters.priority,
        group_id: parameters.group_id.clone(),
    });
    let chunks = request.prompt.clone().chunks().flat_map(move |(token_ids, is_last)| {
        let chunk = Sent::Prompt(PromptChunk { token_ids, last: Some(is_last) });
        // Of a prompt that fails no chunk is the last, and the engine is to see that nothing more comes.
        let finished = if is_last { finished.take() } else { None };
        stream::once(std::future::ready(chunk)).chain(finishes(finished))
    });
    let messages = stream::once(std::future::ready(opening)).chain(chunks);
    messages.map(|message| GenerateRequest { message: Some(message) })
}

fn finishes(finished: Option<mpsc::Receiver<u32>>) -> impl Stream<Item = Sent> + Send {
    stream::unfold(finished, |finished| async {
        let mut finished = finished?;
        let idx = finished.recv().await?;
        Some((Sent::Finish(FinishSequence { sequence_idx: Some(idx) }), Some(finished)))
    })
}

/// The id of an attempt: an engine that has not yet seen the end of an earlier one would refuse the same id.
fn attempt_id(id: &str, attempt: u32) -> String {
    if attempt == 0 {
        return id.to_owned();
    }
    let suffix = format!("~{attempt}");
    let end = id.floor_char_boundary(MAX_ID_BYTES - suffix.len());
    format!("{}{suffix}", &id[..end])
}

fn prompt_answer(info: PromptInfo, num_prompt_tokens: usize) -> Result<PromptAnswer> {
    if !info.logprobs.is_empty() && info.logprobs.len() != num_prompt_tokens {
        return Err(broken("another number of prompt log-probabilities than prompt tokens"));
    }
    Ok(PromptAnswer {
        num_cached_tokens: info.cached_prompt_tokens.unwrap_or(0) as usize,
        logprobs: info.logprobs.into_iter().map(logprobs).collect(),
    })
}

fn sampled(ids: Vec<u32>, wire: Vec<TokenLogprobs>) -> Result<Vec<SampledToken>> {
    if wire.is_empty() {
        return Ok(ids.into_iter().map(|id| SampledToken { id: TokenId(id), logprobs: None }).collect());
    }
    if wire.len() != ids.len() {
        return Err(broken("another number of log-probabilities than tokens"));
    }
    let token = |(id, wire)| SampledToken { id: TokenId(id), logprobs: Some(logprobs(wire)) };
    Ok(ids.into_iter().zip(wire).map(token).collect())
}

fn logprobs(wire: TokenLogprobs) -> Logprobs {
    let top = wire.top.into_iter().map(|token| (TokenId(token.token_id.unwrap_or(0)), token.logprob));
    Logprobs { logprob: wire.logprob, top: top.collect() }
}

fn finish(info: &FinishInfo) -> Result<Finish> {
    use fused_proto::common::v1::FinishReason as Wire;
    let reason = match info.reason() {
        Wire::Stop => FinishReason::Stop,
        Wire::Length => FinishReason::Length,
        Wire::Aborted => FinishReason::Aborted,
        Wire::Unspecified => return Err(broken("a sequence's end without a reason")),
    };
    let matched = match info.matched {
        Some(WireMatched::EosTokenId(id)) => Some(Matched::Eos(TokenId(id))),
        Some(WireMatched::StopTokenId(id)) => Some(Matched::StopToken(TokenId(id))),
        None => None,
    };
    Ok(Finish { reason, matched, timings: info.timings })
}

/// The engine does not keep the contract.
#[derive(Debug, thiserror::Error)]
#[error("the engine sent {0}")]
struct BrokenContract(&'static str);

fn broken(what: &'static str) -> Error {
    Error::internal(&BrokenContract(what))
}
