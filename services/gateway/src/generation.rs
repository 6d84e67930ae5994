//! The calls of one request to the text service: one a prompt, their answers merged as they arrive, or collected.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use fused_proto::text::v1::generate_response::Message;
use fused_proto::text::v1::{FinishInfo, GenerateRequest, PromptInfo, TextIncrement, TextLogprobs, Usage};
use fused_status::Error;
use futures_util::stream::{BoxStream, SelectAll, select_all, try_unfold};
use futures_util::{Stream, StreamExt, TryStreamExt};

use crate::admission::Share;
use crate::backend::{Answers, Backend, Traced};
use crate::error::Fault;
use crate::field_names::FieldNames;

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
    /// The memory of the request, which its calls hold on to.
    _share: Share,
}

impl Generation {
    /// Starts one call a prompt, within the current span. Their errors name fields as the client does.
    pub(crate) fn start(
        backend: &Backend,
        requests: Vec<GenerateRequest>,
        names: FieldNames,
        share: Share,
    ) -> Self {
        let calls = requests.into_iter().enumerate().map(|(prompt_idx, request)| {
            let answers = answers(backend.clone(), prompt_idx, Traced::new(request));
            answers.map_err(move |error| names.rename(error)).boxed()
        });
        Self { answers: select_all(calls), first: None, _share: share }
    }

    /// Waits for the first answer, because a failure before it still has an HTTP status of its own; but no longer than
    /// `patience`, because a client or a proxy gives up on an answer whose head does not come.
    pub(crate) async fn first_answer(mut self, patience: Duration) -> Result<Self, Error> {
        if let Ok(Some(first)) = tokio::time::timeout(patience, self.answers.next()).await {
            self.first = Some(first?);
        }
        Ok(self)
    }

    /// Waits for the whole of it: `num_sequences` for each of `num_prompts`.
    pub(crate) async fn collect(
        mut self,
        num_prompts: usize,
        num_sequences: u32,
    ) -> Result<Collected, Error> {
        let mut collected = Collected::new(num_prompts, num_sequences);
        while let Some(answer) = self.next().await {
            collected.add(answer?)?;
        }
        Ok(collected)
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
            None => self.answers.poll_next_unpin(cx),
        }
    }
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
