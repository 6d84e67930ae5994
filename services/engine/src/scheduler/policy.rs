use super::SchedulerConfig;
use crate::{PolicyName, PrefillOrder};

/// What a step may hold. A policy is a list of these: the first that comes to anything is the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepKind {
    /// Running decodes, one token each.
    pub(super) has_decodes: bool,
    pub(super) prefills: Prefills,
    /// Who may leave the queue.
    pub(super) admits: Admits,
}

/// How prompts are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefills {
    None,
    /// In chunks of what the token budget leaves, which shorter prompts share with the first in order.
    Shared,
    /// In chunks, one prompt after the other.
    Chunks,
    /// Each in one step, however long.
    Whole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admits {
    Always,
    /// While nothing can run of what has a slot.
    WhenIdle,
    Never,
}

const DECODES: StepKind = StepKind { has_decodes: true, prefills: Prefills::None, admits: Admits::Never };

/// The steps that a policy makes, in order of preference.
///
/// - `sarathi`: stall-free batching (Sarathi-Serve, OSDI'24): all decodes, and chunks of several prompts beside them.
/// - `vllm`: prompts first, whole and among themselves, so that decodes wait for them (vLLM 0.2, as sarathi-lean has it).
/// - `orca`: iteration-level batching (Orca, OSDI'22): whole prompts beside the decodes.
/// - `fastertransformer`: request-level batching: nobody joins a batch before all of it has ended.
/// - `simple-chunking`: chunks of prompts, but first and among themselves.
pub(super) fn steps(config: &SchedulerConfig) -> &'static [StepKind] {
    use Admits::{Always, WhenIdle};
    use Prefills::{Chunks, Shared, Whole};
    const fn kind(has_decodes: bool, prefills: Prefills, admits: Admits) -> StepKind {
        StepKind { has_decodes, prefills, admits }
    }
    match config.policy {
        PolicyName::Sarathi if config.prefill_order == PrefillOrder::Shortest => {
            const { &[kind(true, Shared, Always)] }
        }
        PolicyName::Sarathi => const { &[kind(true, Chunks, Always)] },
        PolicyName::Vllm => const { &[kind(false, Whole, Always), DECODES] },
        PolicyName::Orca => const { &[kind(true, Whole, Always)] },
        PolicyName::FasterTransformer => const { &[kind(true, Whole, WhenIdle)] },
        PolicyName::SimpleChunking => const { &[kind(false, Chunks, Always), DECODES] },
    }
}
