//! What every answer and every chunk of it is wrapped in.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use serde::Serialize;

use super::usage::Usage;
use crate::admission::Share;
use crate::backend::Model;
use crate::edge::Held;
use crate::identity::RequestContext;

/// A whole answer that holds its memory until it is out: what it was made of is gone, its JSON is left.
pub(super) fn hold_until_sent(answer: Response, mut share: Share) -> Response {
    let num_bytes = answer.body().size_hint().lower();
    share.shrink_to(usize::try_from(num_bytes).unwrap_or(usize::MAX));
    answer.map(|body| Body::new(Held::new(body, share)))
}

/// Which answer it is, when it was made, by which model: the same on every chunk.
#[derive(Clone, Debug)]
pub(super) struct Envelope {
    id: String,
    object: &'static str,
    created: u64,
    model: Arc<Model>,
}

/// The names of one kind of answer.
pub(super) struct Names {
    pub(super) id_prefix: &'static str,
    pub(super) object: &'static str,
}

/// An answer or one chunk of it.
#[derive(Serialize)]
pub(super) struct Enveloped<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [C],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

impl Envelope {
    /// The envelope of the answer to this request, made now.
    pub(super) fn new(names: &Names, context: &RequestContext, model: Arc<Model>) -> Self {
        Self {
            id: format!("{}-{}", names.id_prefix, context.unique_id),
            object: names.object,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
            model,
        }
    }

    /// Puts choices into it; a chunk's usage may be absent, null or there.
    pub(super) fn hold<'a, C>(&'a self, choices: &'a [C], usage: Option<Option<Usage>>) -> Enveloped<'a, C> {
        Enveloped {
            id: &self.id,
            object: self.object,
            created: self.created,
            model: &self.model.id,
            system_fingerprint: &self.model.system_fingerprint,
            choices,
            usage,
            prompt_token_ids: None,
        }
    }
}

impl<'a, C> Enveloped<'a, C> {
    /// Tells the prompt's token ids, as chat answers do when asked.
    pub(super) fn with_prompt_token_ids(self, ids: Option<&'a [u32]>) -> Self {
        Self { prompt_token_ids: ids, ..self }
    }
}
