//! The calls of one request to the text service: one a prompt, their answers merged as they arrive, or collected.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use fused_proto::text::v1::generate_response::Message;
use fused_proto::text::v1::{FinishInfo, GenerateRequest, PromptInfo, TextIncrement, TextLogprobs, Usage};
use fused_status::{Code, Error};
use futures_util::stream::{BoxStream, SelectAll, select_all, try_unfold};
use futures_util::{Stream, StreamExt, TryStreamExt};

use crate::admission::Share;
use crate::auth::TokenMeter;
use crate::backend::{Answers, Backend, Traced};
use crate::error::Fault;
use crate::field_names::FieldNames;

/// Log-probabilities of all outputs of a request whose answer is collected; a stream passes them on.
pub(crate) const MAX_OUTPUT_LOGPROBS: usize = 1 << 19;
/// What one of them takes: its token's text and bytes here, and both once more in the answer's JSON.
const LOGPROB_BYTES: usize = 256;
/// What a token id takes, here and in the answer's JSON.
const TOKEN_ID_BYTES: usize = 16;

/// One message of one prompt's call.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) prompt_idx: usize,
    pub(crate) message: Message,
}

/// Running calls. Dropping it cancels them.
pub(crate) struct Generation {
    answers: SelectAll<BoxStream<'static, Result<Answer, Error>>>,
    first: Option<Answer>,
    num_sequences: u32,
    /// The memory of the request, which its calls hold on to.
    share: Share,
    meter: TokenMeter,
}

/// What a request's calls hold.
pub(crate) struct Holdings {
    /// Its memory.
    pub(crate) share: Share,
    /// Its tenant's tokens.
    pub(crate) meter: TokenMeter,
}

impl Generation {
    /// Starts one call a prompt, within the current span. Their errors name fields as the client does.
    pub(crate) fn start(
        backend: &Backend,
        requests: Vec<GenerateRequest>,
        names: FieldNames,
        Holdings { share, meter }: Holdings,
    ) -> Self {
        let num_sequences = requests.first().map_or(1, GenerateRequest::num_sequences);
        let calls = requests.into_iter().enumerate().map(|(prompt_idx, request)| {
            let answers = answers(backend.clone(), prompt_idx, Traced::new(request));
            answers.map_err(move |error| names.rename(error)).boxed()
        });
        Self { answers: select_all(calls), first: None, num_sequences, share, meter }
    }

    /// Waits for the first answer, because a failure before it still has an HTTP status of its own; but no longer than
    /// `patience`, because a client or a proxy gives up on an answer whose head does not come.
    pub(crate) async fn first_answer(mut self, patience: Duration) -> Result<Self, Error> {
        if let Ok(Some(first)) = tokio::time::timeout(patience, self.next()).await {
            self.first = Some(first?);
        }
        Ok(self)
    }

    /// Waits for the whole of it, as many sequences as were asked for of each of `num_prompts`. The memory of the request
    /// grows with it.
    pub(crate) async fn collect(mut self, num_prompts: usize) -> Result<(Collected, Share), Error> {
        let mut collected = Collected::new(num_prompts, self.num_sequences);
        let mut num_logprobs = 0;
        while let Some(answer) = self.next().await {
            let answer = answer?;
            if let Message::Text(increment) = &answer.message {
                num_logprobs += count_logprobs(&increment.logprobs);
                if num_logprobs > MAX_OUTPUT_LOGPROBS {
                    return Err(too_many_logprobs());
                }
                self.share.grow_by(
                    2 * increment.text().len()
                        + TOKEN_ID_BYTES * increment.token_ids.len()
                        + LOGPROB_BYTES * count_logprobs(&increment.logprobs),
                )?;
            }
            collected.add(answer)?;
        }
        Ok((collected, self.share))
    }

    /// Counts an answer, and takes the memory for a prompt's: every sequence's answer repeats what is told of it.
    fn account(&mut self, answer: &Answer) -> Result<(), Error> {
        self.meter.count(answer.prompt_idx, &answer.message);
        let Message::PromptInfo(info) = &answer.message else { return Ok(()) };
        let told = 2 * info.text().len() + LOGPROB_BYTES * count_logprobs(&info.logprobs);
        self.share.grow_by(told.saturating_mul(self.num_sequences as usize))
    }

    /// Ends all calls.
    pub(crate) fn cancel(&mut self) {
        self.answers.clear();
        self.first = None;
    }
}

impl Stream for Generation {
    type Item = Result<Answer, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => {
                let mut answer = ready!(self.answers.poll_next_unpin(cx));
                if let Some(Ok(heard)) = &answer
                    && let Err(error) = self.account(heard)
                {
                    answer = Some(Err(error));
                }
                if matches!(answer, Some(Err(_))) {
                    self.meter.fail();
                }
                Poll::Ready(answer)
            }
        }
    }
}

fn count_logprobs(positions: &[TextLogprobs]) -> usize {
    positions.iter().map(|position| 1 + position.top.len()).sum()
}

/// Refuses what could not be collected.
pub(crate) fn check_output_logprobs(
    num_sequences: usize,
    max_tokens: u32,
    num_top: u32,
) -> Result<(), Error> {
    let num = num_sequences.saturating_mul(max_tokens as usize).saturating_mul(num_top as usize + 1);
    if num <= MAX_OUTPUT_LOGPROBS { Ok(()) } else { Err(too_many_logprobs()) }
}

fn too_many_logprobs() -> Error {
    let message = format!(
        "the answer may have over {MAX_OUTPUT_LOGPROBS} log-probabilities, too many to come at once: set \"stream\": true, or \
         lower the number of log-probabilities, max_tokens or n"
    );
    Error::new(Code::InvalidArgument, message)
}

enum Call {
    Starting(Backend, Box<Traced<GenerateRequest>>),
    Running(Box<Answers>, Progress),
}

#[derive(Clone, Copy, PartialEq)]
enum Progress {
    Unfinished,
    /// Usage has come: it is the last message.
    Finished,
}

/// The answers of one call. The call starts when this is first polled, so that many prompts start together.
fn answers(
    backend: Backend,
    prompt_idx: usize,
    request: Traced<GenerateRequest>,
) -> impl Stream<Item = Result<Answer, Error>> {
    try_unfold(Call::Starting(backend, Box::new(request)), move |call| async move {
        let (mut stream, progress) = match call {
            Call::Starting(backend, request) => {
                (Box::new(backend.generate(&request).await?), Progress::Unfinished)
            }
            Call::Running(stream, progress) => (stream, progress),
        };
        let Some(response) = stream.next().await? else {
            // A stream that was cut off must not pass for a whole one.
            return if progress == Progress::Finished { Ok(None) } else { Err(Fault::EndedEarly.into()) };
        };
        let message = response.message.ok_or(Fault::Incomplete("a message"))?;
        let progress = if matches!(message, Message::Usage(_)) { Progress::Finished } else { progress };
        Ok(Some((Answer { prompt_idx, message }, Call::Running(stream, progress))))
    })
}

/// All answers of a request.
#[derive(Debug)]
pub(crate) struct Collected {
    num_sequences: u32,
    pub(crate) prompts: Vec<PromptInfo>,
    /// Prompt by prompt, each with its sequences in order.
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) usages: Vec<Usage>,
}

/// One continuation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sequence {
    pub(crate) text: String,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) logprobs: Vec<TextLogprobs>,
    pub(crate) finish: FinishInfo,
}

impl Collected {
    fn new(num_prompts: usize, num_sequences: u32) -> Self {
        Self {
            num_sequences,
            prompts: vec![PromptInfo::default(); num_prompts],
            sequences: vec![Sequence::default(); num_prompts * num_sequences as usize],
            usages: Vec::with_capacity(num_prompts),
        }
    }

    fn add(&mut self, answer: Answer) -> Result<(), Fault> {
        match answer.message {
            Message::PromptInfo(info) => {
                if let Some(prompt) = self.prompts.get_mut(answer.prompt_idx) {
                    *prompt = info;
                }
            }
            Message::Text(TextIncrement { sequence_idx, text, token_ids, logprobs }) => {
                let sequence = self.sequence(answer.prompt_idx, sequence_idx)?;
                sequence.text.push_str(text.as_deref().unwrap_or_default());
                sequence.token_ids.extend(token_ids);
                sequence.logprobs.extend(logprobs);
            }
            Message::Finish(finish) => {
                let sequence = self.sequence(answer.prompt_idx, finish.sequence_idx)?;
                sequence.finish = finish;
            }
            Message::Usage(usage) => self.usages.push(usage),
        }
        Ok(())
    }

    fn sequence(&mut self, prompt_idx: usize, sequence_idx: Option<u32>) -> Result<&mut Sequence, Fault> {
        let idx = choice_idx(prompt_idx, sequence_idx, self.num_sequences)?;
        self.sequences.get_mut(idx).ok_or(Fault::Incomplete("a prompt of this request"))
    }
}

/// The index of a choice: prompt by prompt, each with its sequences in order.
pub(crate) fn choice_idx(
    prompt_idx: usize,
    sequence_idx: Option<u32>,
    num_sequences: u32,
) -> Result<usize, Fault> {
    let sequence_idx = sequence_idx.unwrap_or_default();
    if sequence_idx >= num_sequences {
        return Err(Fault::NoSuchSequence { sequence_idx, num_sequences });
    }
    Ok(prompt_idx * num_sequences as usize + sequence_idx as usize)
}
