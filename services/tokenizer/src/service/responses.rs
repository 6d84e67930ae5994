//! Our answers as the wire has them.

use fused_proto::common::v1::FinishReason as WireReason;
use fused_proto::text::v1::finish_info::Matched as WireMatched;
use fused_proto::text::v1::generate_response::Message;
use fused_proto::text::v1::{
    FinishInfo, GenerateResponse, PromptInfo, TextIncrement, TextLogprobs, TextToken, Usage as WireUsage,
};
use fused_vocabulary::{TokenId, Vocabulary};

use crate::detokenize::PlacedToken;
use crate::engines::{FinishReason, Matched};
use crate::generate::{Output, Usage};

pub(super) fn generate(output: Output, vocabulary: &Vocabulary) -> GenerateResponse {
    let message = match output {
        Output::Prompt(prompt) => Message::PromptInfo(PromptInfo {
            prompt_tokens: Some(count(prompt.ids.len())),
            text: prompt.text,
            logprobs: logprobs(&prompt.tokens, vocabulary),
            token_ids: prompt.ids.iter().map(|id| id.0).collect(),
        }),
        Output::Text { sequence_idx, piece } => Message::Text(TextIncrement {
            sequence_idx: Some(count(sequence_idx)),
            logprobs: logprobs(&piece.tokens, vocabulary),
            token_ids: piece.tokens.iter().map(|placed| placed.token.id.0).collect(),
            text: Some(piece.text),
        }),
        Output::Finish { sequence_idx, reason, matched, timings } => Message::Finish(FinishInfo {
            sequence_idx: Some(count(sequence_idx)),
            reason: Some(finish_reason(reason).into()),
            matched: matched.map(wire_matched),
            timings,
        }),
        Output::Usage(usage) => Message::Usage(wire_usage(usage)),
    };
    GenerateResponse { message: Some(message) }
}

fn logprobs(tokens: &[PlacedToken], vocabulary: &Vocabulary) -> Vec<TextLogprobs> {
    let position = |placed: &PlacedToken| {
        let logprobs = placed.token.logprobs.as_ref()?;
        Some(TextLogprobs {
            token: Some(token(placed.token.id, logprobs.logprob, vocabulary)),
            top: logprobs.top.iter().map(|(id, logprob)| token(*id, *logprob, vocabulary)).collect(),
            text_offset: Some(count(placed.text_offset)),
        })
    };
    tokens.iter().filter_map(position).collect()
}

fn token(id: TokenId, logprob: Option<f32>, vocabulary: &Vocabulary) -> TextToken {
    let bytes = vocabulary.token_bytes(id);
    TextToken {
        token_id: Some(id.0),
        text: Some(String::from_utf8_lossy(bytes).into_owned()),
        bytes: Some(bytes.to_vec()),
        logprob,
    }
}

fn finish_reason(reason: FinishReason) -> WireReason {
    match reason {
        FinishReason::Stop => WireReason::Stop,
        FinishReason::Length => WireReason::Length,
        FinishReason::Aborted => WireReason::Aborted,
    }
}

fn wire_matched(matched: Matched) -> WireMatched {
    match matched {
        Matched::Eos(id) => WireMatched::EosTokenId(id.0),
        Matched::StopToken(id) => WireMatched::StopTokenId(id.0),
        Matched::StopString(string) => WireMatched::StopString(string),
    }
}

fn wire_usage(usage: Usage) -> WireUsage {
    WireUsage {
        prompt_tokens: Some(count(usage.num_prompt_tokens)),
        completion_tokens: Some(count(usage.num_completion_tokens)),
        cached_prompt_tokens: Some(count(usage.num_cached_prompt_tokens)),
        prompt_base_tokens: Some(count(usage.num_prompt_base_tokens)),
        completion_base_tokens: Some(count(usage.num_completion_base_tokens)),
    }
}

/// Counts on the wire have 32 bits; no request comes near.
fn count(num: usize) -> u32 {
    u32::try_from(num).unwrap_or(u32::MAX)
}
