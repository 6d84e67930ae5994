use fused_proto::common::v1::FinishReason;
use fused_proto::text::v1::FinishInfo;
use fused_proto::text::v1::finish_info::Matched;
use fused_status::{Code, Error};
use serde::Serialize;

use crate::error::Fault;

/// Why a sequence ended, as clients read it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finish {
    pub(super) reason: &'static str,
    /// The stop string or stop token; none for the model's own end, or its length's.
    pub(super) stop_reason: Option<StopReason>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum StopReason {
    Token(u32),
    String(String),
}

impl TryFrom<FinishInfo> for Finish {
    type Error = Error;

    /// A sequence that was aborted is no answer: OpenAI's clients know no such `finish_reason`.
    fn try_from(info: FinishInfo) -> Result<Self, Error> {
        let reason = match info.reason() {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Aborted => return Err(Error::new(Code::Cancelled, "the request was aborted")),
            FinishReason::Unspecified => return Err(Fault::Incomplete("a reason to finish").into()),
        };
        let stop_reason = match info.matched {
            Some(Matched::StopTokenId(id)) => Some(StopReason::Token(id)),
            Some(Matched::StopString(string)) => Some(StopReason::String(string)),
            Some(Matched::EosTokenId(_)) | None => None,
        };
        Ok(Self { reason, stop_reason })
    }
}
