use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use fused_lifecycle::RequestGuard;
use fused_proto::common::v1::Timings;
use fused_status::{Code, Error, Result};
use fused_vocabulary::{Decoder, SpecialText, TokenId, Vocabulary};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Span;

use crate::detokenize::{Logprobs, Piece, PlacedToken, SampledToken, Sequence};
use crate::encode::{Purpose, Worker};
use crate::engines::{EngineRequest, EngineStream, Event, Finish, FinishReason, Matched, Parameters};
use crate::events::{self, InFlight};
use crate::prompt::{Prompt, PromptLimit};
use crate::prompt_ids::EncodedPrompt;
use crate::stop::{StopStrings, StopText};
use crate::tokenizer::Core;

/// How long the engine may take to close a stream in which it has said everything.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A request that `service` has found valid.
#[derive(Debug)]
pub(crate) struct GenerateRequest {
    pub(crate) id: String,
    pub(crate) prompt: Prompt,
    pub(crate) truncate_prompt_tokens: Option<usize>,
    pub(crate) stop: StopStrings,
    pub(crate) min_tokens: usize,
    pub(crate) num_sequences: usize,
    pub(crate) special: SpecialText,
    /// Whether the prompt's text comes first.
    pub(crate) echo: bool,
    pub(crate) deadline: Option<Instant>,
    pub(crate) parameters: Parameters,
}

/// What a generation answers, in this order: the prompt once, texts, one end a sequence, the usage once.
#[derive(Debug)]
pub(crate) enum Output {
    Prompt(PromptOutput),
    Text { sequence_idx: usize, piece: Piece },
    Finish { sequence_idx: usize, reason: FinishReason, matched: Option<Matched>, timings: Option<Timings> },
    Usage(Usage),
}

/// The prompt as the model saw it.
#[derive(Debug)]
pub(crate) struct PromptOutput {
    pub(crate) ids: Arc<[TokenId]>,
    /// Where echo was asked for.
    pub(crate) text: Option<String>,
    /// With their log-probabilities, where those were asked for.
    pub(crate) tokens: Vec<PlacedToken>,
}

/// Tokens of a request, as they are and as the base vocabulary would have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) num_prompt_tokens: usize,
    pub(crate) num_cached_prompt_tokens: usize,
    pub(crate) num_prompt_base_tokens: usize,
    pub(crate) num_completion_tokens: usize,
    pub(crate) num_completion_base_tokens: usize,
}

/// The life of one request, up to where its answers flow: encode, find an engine, wait for its first answer.
pub(crate) async fn generate(
    core: &Arc<Core>,
    request: GenerateRequest,
    guard: RequestGuard,
) -> Result<Generation> {
    let model = core.engines.model()?;
    core.check_prompt(&model, &request.prompt)?;
    let limit = match request.truncate_prompt_tokens {
        Some(num_tokens) => PromptLimit::KeepLast { num_tokens },
        None => PromptLimit::Refuse { max_model_len: model.max_model_len },
    };
    let prompt = within(request.deadline, core.encoder.begin(&core.pool, request.prompt, limit)).await?;

    let engine_request = EngineRequest {
        id: request.id,
        vocabulary: core.vocabulary.fingerprint(),
        parameters: request.parameters,
        num_sequences: request.num_sequences,
        deadline: request.deadline,
        prompt: prompt.clone(),
    };
    let answered = within(request.deadline, core.engines.generate(&engine_request)).await;
    // A prompt that turned out bad after its beginning: the engine can only have missed its end.
    let (engine, answer) = answered.map_err(|error| prompt.failure().unwrap_or(error))?;
    let EncodedPrompt { ids, encoded } = within(request.deadline, prompt.whole()).await?;
    Span::current().record("prompt_tokens", ids.len());

    let usage = Usage {
        num_prompt_tokens: ids.len(),
        num_cached_prompt_tokens: answer.num_cached_tokens,
        num_prompt_base_tokens: encoded.num_base_tokens,
        ..Usage::default()
    };
    let ids: Arc<[TokenId]> = ids.into();
    let echoed = if request.echo || !answer.logprobs.is_empty() {
        let (vocabulary, ids) = (Arc::clone(&core.vocabulary), Arc::clone(&ids));
        let num_bytes = size_of_val(&*ids);
        let place = move |_: &Worker<'_>, _: &dyn Fn() -> bool| {
            place_prompt(&vocabulary, &ids, answer.logprobs, request.special)
        };
        let placed = core.pool.run(Purpose::Generation, num_bytes, num_bytes, place);
        within(request.deadline, placed).await?.0
    } else {
        Piece::default()
    };
    let first_offset = if request.echo { echoed.text.chars().count() } else { 0 };
    let prompt_output = PromptOutput {
        ids: Arc::clone(&ids),
        text: request.echo.then_some(echoed.text),
        tokens: echoed.tokens,
    };
    let sequence = || {
        let decoder = Decoder::after(&core.vocabulary, &ids, request.special);
        Running {
            sequence: Sequence::new(decoder, request.stop.matcher(), request.min_tokens, first_offset),
            is_done: false,
        }
    };
    Ok(Generation {
        core: Arc::clone(core),
        sequences: std::iter::repeat_with(sequence).take(request.num_sequences).collect(),
        num_running: request.num_sequences,
        num_at_engine: request.num_sequences,
        engine: Some(engine),
        deadline: request.deadline,
        ready: VecDeque::from([Output::Prompt(prompt_output)]),
        usage,
        span: Span::current(),
        _guard: guard,
        _in_flight: InFlight::begin(),
    })
}

/// The prompt's tokens with their text and places, as if they had been generated.
fn place_prompt(
    vocabulary: &Vocabulary,
    ids: &[TokenId],
    logprobs: Vec<Logprobs>,
    special: SpecialText,
) -> Result<Piece> {
    let logprobs = logprobs.into_iter().map(Some).chain(std::iter::repeat(None));
    let tokens = ids.iter().zip(logprobs).map(|(id, logprobs)| SampledToken { id: *id, logprobs });
    let no_stop = StopStrings::new(Vec::new(), StopText::Cut)?.matcher();
    let mut sequence = Sequence::new(Decoder::new(vocabulary, special), no_stop, 0, 0);
    let (mut piece, _) = sequence.push(vocabulary, tokens.collect());
    piece.text.push_str(&sequence.finish().0.text);
    Ok(piece)
}

/// A request whose answers flow. It owns all that the request holds: the engine's stream, the place in the load count,
/// the lifecycle's guard. Dropping it ends the request everywhere.
pub(crate) struct Generation {
    core: Arc<Core>,
    sequences: Vec<Running>,
    num_running: usize,
    /// Sequences that the engine has not finished.
    num_at_engine: usize,
    engine: Option<EngineStream>,
    deadline: Option<Instant>,
    ready: VecDeque<Output>,
    usage: Usage,
    /// Entered where something is said of the request, not for every answer.
    span: Span,
    _guard: RequestGuard,
    _in_flight: InFlight,
}

struct Running {
    sequence: Sequence,
    is_done: bool,
}

impl Generation {
    /// The vocabulary of the tokens in its answers.
    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.core.vocabulary
    }

    /// The request's span.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// The next answer; none after the last, or after an error.
    pub(crate) async fn next(&mut self) -> Option<Result<Output>> {
        loop {
            if let Some(output) = self.ready.pop_front() {
                return Some(Ok(output));
            }
            if self.num_running == 0 {
                self.close().await;
                return None;
            }
            let engine = self.engine.as_mut()?;
            let answer = within(self.deadline, engine.next()).await;
            let ended =
                || Error::new(Code::Unavailable, "the engine ended the stream before the output's end");
            match answer.and_then(|event| event.ok_or_else(ended)) {
                Ok(event) => self.take(event),
                Err(error) => {
                    self.engine = None;
                    self.num_running = 0;
                    return Some(Err(error));
                }
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Tokens { sequence_idx, mut tokens, last_ends } => {
                let end = if last_ends { tokens.pop() } else { None };
                self.take_tokens(sequence_idx, |sequence, vocabulary| sequence.push(vocabulary, tokens));
                if let Some(end) = end {
                    self.take_tokens(sequence_idx, |sequence, vocabulary| sequence.push_end(vocabulary, end));
                }
            }
            Event::Finish { sequence_idx, finish } => {
                self.num_at_engine = self.num_at_engine.saturating_sub(1);
                let running = &mut self.sequences[sequence_idx];
                if !running.is_done {
                    let (piece, hit) = running.sequence.finish();
                    self.emit(sequence_idx, piece);
                    match hit {
                        Some(string) => self.stop(sequence_idx, string),
                        None => self.finish(sequence_idx, finish),
                    }
                }
            }
        }
    }

    /// What is on its way when a stop string is hit is not looked at.
    fn take_tokens(
        &mut self,
        sequence_idx: usize,
        take: impl FnOnce(&mut Sequence, &Vocabulary) -> (Piece, Option<String>),
    ) {
        let running = &mut self.sequences[sequence_idx];
        if running.is_done {
            return;
        }
        let (piece, hit) = take(&mut running.sequence, &self.core.vocabulary);
        self.emit(sequence_idx, piece);
        if let Some(string) = hit {
            self.stop(sequence_idx, string);
        }
    }

    fn emit(&mut self, sequence_idx: usize, piece: Piece) {
        if !piece.text.is_empty() || !piece.tokens.is_empty() {
            self.ready.push_back(Output::Text { sequence_idx, piece });
        }
    }

    /// Ends a sequence at a stop string. Its last token is the one that completed the string.
    fn stop(&mut self, sequence_idx: usize, string: String) {
        let finish =
            Finish { reason: FinishReason::Stop, matched: Some(Matched::StopString(string)), timings: None };
        self.finish(sequence_idx, finish);
        // The engine knows of no stop strings. The last of its sequences ends with the stream.
        if let Some(engine) = &self.engine {
            engine.finish_sequence(sequence_idx);
        }
    }

    fn finish(&mut self, sequence_idx: usize, finish: Finish) {
        let running = &mut self.sequences[sequence_idx];
        running.is_done = true;
        self.num_running -= 1;
        self.usage.num_completion_tokens += running.sequence.num_tokens();
        self.usage.num_completion_base_tokens += running.sequence.num_base_tokens();
        let Finish { reason, matched, timings } = finish;
        self.ready.push_back(Output::Finish { sequence_idx, reason, matched, timings });
        if self.num_running == 0 {
            let usage = self.usage;
            events::finished(
                usage.num_prompt_tokens,
                usage.num_completion_tokens,
                usage.num_prompt_base_tokens + usage.num_completion_base_tokens,
            );
            self.span.record("completion_tokens", usage.num_completion_tokens);
            self.ready.push_back(Output::Usage(usage));
            if self.num_at_engine > 0 {
                // Ended here and not there: the engine stops when its stream is dropped.
                self.engine = None;
            }
        }
    }

    /// Reads to the end of a stream that the engine has finished, so that it counts as finished there, not cancelled.
    async fn close(&mut self) {
        if let Some(mut engine) = self.engine.take() {
            // Whatever is said now changes nothing.
            let _ = timeout(CLOSE_TIMEOUT, engine.next()).await;
        }
    }
}

async fn within<T>(deadline: Option<Instant>, work: impl Future<Output = Result<T>>) -> Result<T> {
    match deadline {
        None => work.await,
        Some(deadline) => timeout_at(deadline, work).await.unwrap_or_else(|_| {
            Err(Error::new(Code::DeadlineExceeded, "the request's deadline passed before its output's end"))
        }),
    }
}
