use fused_status::{Error, Result};
use fused_vocabulary::TokenId;
use futures_util::{Stream, stream};
use tokio::sync::watch;

use crate::events;
use crate::prompt::Listener;

/// Prompt tokens a message: the engine prefills the first while later ones are still being made.
const CHUNK_TOKENS: usize = 512;

/// A prompt's ids, to be read while they are still being made; by several readers, each from the beginning, so that a
/// request can be sent to another engine.
#[derive(Clone, Debug)]
pub(crate) struct PromptIds(watch::Receiver<State>);

/// Makes them.
#[derive(Debug)]
pub(crate) struct PromptWriter(watch::Sender<State>);

#[derive(Debug, Default)]
struct State {
    ids: Vec<TokenId>,
    end: Option<Result<Encoded>>,
}

/// What is known of a prompt once it is encoded, apart from its ids.
#[derive(Clone, Debug, Default)]
pub(crate) struct Encoded {
    /// What the base vocabulary would have taken.
    pub(crate) num_base_tokens: usize,
    /// What the chat template made, where one did.
    pub(crate) rendered: Option<String>,
}

/// A whole prompt as the engine takes it.
#[derive(Debug)]
pub(crate) struct EncodedPrompt {
    pub(crate) ids: Vec<TokenId>,
    pub(crate) encoded: Encoded,
}

pub(crate) fn prompt_ids() -> (PromptWriter, PromptIds) {
    let (writer, ids) = watch::channel(State::default());
    (PromptWriter(writer), PromptIds(ids))
}

impl PromptWriter {
    /// Takes the last ids, and says how the prompt ended.
    pub(crate) fn end(self, rest: Result<EncodedPrompt>) {
        self.0.send_modify(|state| {
            state.end = Some(rest.map(|EncodedPrompt { ids, encoded }| {
                if state.ids.is_empty() {
                    state.ids = ids;
                } else {
                    state.ids.extend_from_slice(&ids);
                }
                encoded
            }));
        });
    }
}

impl Listener for PromptWriter {
    fn extend(&self, ids: &[TokenId]) {
        self.0.send_modify(|state| state.ids.extend_from_slice(ids));
    }

    fn is_gone(&self) -> bool {
        self.0.is_closed()
    }
}

impl PromptIds {
    /// Waits until there is something to send.
    ///
    /// # Errors
    /// What was wrong with the prompt, as far as that is known by then.
    pub(crate) async fn begun(&mut self) -> Result<()> {
        self.wait(|state| state.ids.len() > CHUNK_TOKENS).await?;
        self.failure().map_or(Ok(()), Err)
    }

    /// Waits for the whole prompt.
    ///
    /// # Errors
    /// What was wrong with it.
    pub(crate) async fn whole(mut self) -> Result<EncodedPrompt> {
        self.wait(|_| false).await?;
        let state = self.0.borrow();
        match &state.end {
            Some(Ok(encoded)) => Ok(EncodedPrompt { ids: state.ids.clone(), encoded: encoded.clone() }),
            Some(Err(error)) => Err(error.clone()),
            None => Err(lost()),
        }
    }

    /// What was found wrong with the prompt after its beginning.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.0.borrow().end.as_ref().and_then(|end| end.as_ref().err().cloned())
    }

    /// Ids made so far.
    pub(crate) fn len(&self) -> usize {
        self.0.borrow().ids.len()
    }

    /// The ids in chunks as they come, each with whether it is the last. Of a prompt that fails there is no last one.
    pub(crate) fn chunks(self) -> impl Stream<Item = (Vec<u32>, bool)> + Send + use<> {
        stream::unfold(Some((self, 0)), |reading| async {
            let (mut prompt, start) = reading?;
            // One more than is sent: the last chunk says that it is the last and is never empty.
            prompt.wait(|state| state.ids.len() - start > CHUNK_TOKENS).await.ok()?;
            let (chunk, is_last) = {
                let state = prompt.0.borrow();
                if !matches!(state.end, None | Some(Ok(_))) {
                    return None;
                }
                let chunk = state.ids.iter().skip(start).take(CHUNK_TOKENS).map(|id| id.0);
                (chunk.collect::<Vec<_>>(), state.end.is_some() && state.ids.len() - start <= CHUNK_TOKENS)
            };
            let next = start + chunk.len();
            Some(((chunk, is_last), (!is_last).then_some((prompt, next))))
        })
    }

    /// Until the prompt has ended, or earlier.
    async fn wait(&mut self, is_enough: impl Fn(&State) -> bool) -> Result<()> {
        let waited = self.0.wait_for(|state| state.end.is_some() || is_enough(state)).await;
        waited.map(|_| ()).map_err(|_| lost())
    }
}

/// Whoever makes a prompt says how it ended, unless it panics.
fn lost() -> Error {
    #[derive(Debug, thiserror::Error)]
    #[error("a prompt's template or encoding panicked")]
    struct Panicked;
    events::encoder_panicked();
    Error::internal(&Panicked)
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    fn ids(range: std::ops::Range<u32>) -> Vec<TokenId> {
        range.map(TokenId).collect()
    }

    #[tokio::test]
    async fn chunks_come_while_the_rest_is_made_and_the_last_is_marked_and_full() {
        let (writer, prompt) = prompt_ids();
        let mut chunks = Box::pin(prompt.clone().chunks());
        writer.extend(&ids(0..512));
        assert!(futures_util::poll!(chunks.next()).is_pending(), "it may be the last");
        writer.extend(&ids(512..600));
        assert_eq!(chunks.next().await, Some(((0..512).collect(), false)));
        assert!(futures_util::poll!(chunks.next()).is_pending());
        writer.end(Ok(EncodedPrompt { ids: Vec::new(), encoded: Encoded::default() }));
        assert_eq!(chunks.next().await, Some(((512..600).collect(), true)));
        assert_eq!(chunks.next().await, None);
        let again: Vec<_> = prompt.clone().chunks().collect().await;
        assert_eq!(again.concat_ids(), (0..600).collect::<Vec<_>>());
        assert_eq!(prompt.whole().await.unwrap().ids, ids(0..600));
    }

    trait ConcatIds {
        fn concat_ids(&self) -> Vec<u32>;
    }

    impl ConcatIds for Vec<(Vec<u32>, bool)> {
        fn concat_ids(&self) -> Vec<u32> {
            self.iter().flat_map(|(ids, _)| ids.clone()).collect()
        }
    }

    #[tokio::test]
    async fn a_prompt_that_fails_late_has_no_last_chunk_and_says_why() {
        let (writer, prompt) = prompt_ids();
        writer.extend(&ids(0..1000));
        prompt.clone().begun().await.unwrap();
        writer.end(Err(Error::invalid("prompt", "too long")));
        assert!(prompt.clone().chunks().collect::<Vec<_>>().await.is_empty());
        assert_eq!(prompt.failure().unwrap().message(), "too long");
        assert_eq!(prompt.whole().await.unwrap_err().message(), "too long");
    }

    #[tokio::test]
    async fn a_writer_that_panics_is_an_internal_error() {
        let (writer, mut prompt) = prompt_ids();
        drop(writer);
        assert_eq!(prompt.begun().await.unwrap_err().code(), fused_status::Code::Internal);
    }
}
