use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::Error;

/// Who gets how much of a step. `sarathi` is what to serve with; the others are what it is compared with. The names are
/// sarathi-lean's (its `SchedulerType`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyName {
    /// Running decodes first, then prefill chunks of several requests up to the token budget (Sarathi-Serve, OSDI'24).
    #[default]
    Sarathi,
    /// Whole prompts first, decodes only in steps without a prefill (vLLM before chunked prefill).
    Vllm,
    /// Whole prompts and decodes together, admitted step by step (Orca, OSDI'22).
    Orca,
    /// A batch of requests runs until the last of them has ended (request-level batching).
    FasterTransformer,
    /// Prefill chunks first and among themselves, decodes only in steps without one.
    SimpleChunking,
}

impl PolicyName {
    /// All of them, the default first.
    pub const ALL: [Self; 5] =
        [Self::Sarathi, Self::Vllm, Self::Orca, Self::FasterTransformer, Self::SimpleChunking];

    /// The name in settings, tables and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sarathi => "sarathi",
            Self::Vllm => "vllm",
            Self::Orca => "orca",
            Self::FasterTransformer => "fastertransformer",
            Self::SimpleChunking => "simple-chunking",
        }
    }

    /// Whether a prompt is computed in one step, however long it is.
    #[must_use]
    pub fn computes_whole_prompts(self) -> bool {
        matches!(self, Self::Vllm | Self::Orca | Self::FasterTransformer)
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for PolicyName {
    type Err = Error;

    /// Reads a name, sarathi-lean's spelling included.
    ///
    /// # Errors
    /// No policy has this name; says which there are.
    fn from_str(name: &str) -> Result<Self, Error> {
        let canonical = match name {
            "faster_transformer" => "fastertransformer",
            "simple_chunking" => "simple-chunking",
            name => name,
        };
        Self::ALL.into_iter().find(|policy| policy.name() == canonical).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::setting("scheduling_policy", format!("`{name}` is not known; there are {names}"))
        })
    }
}

/// Which of two waiting requests is earlier, under every policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The one that came first.
    #[default]
    Fcfs,
    /// The one of lower priority number, of equal ones the one that came first.
    Priority {
        /// Waiting this long is worth one step of priority, so that nobody waits for ever. Over zero.
        ageing: Duration,
    },
}

/// Which prompts share what a step's decodes leave of the token budget, under `sarathi`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefillOrder {
    /// The first in order has at least a quarter of it, shorter ones share the rest, the shortest first: nobody waits for a
    /// long prompt, and nobody starves.
    #[default]
    Shortest,
    /// One after the other, in order.
    Arrival,
}

impl PrefillOrder {
    /// All of them, the default first.
    pub const ALL: [Self; 2] = [Self::Shortest, Self::Arrival];

    /// The name in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shortest => "shortest",
            Self::Arrival => "arrival",
        }
    }
}

impl FromStr for PrefillOrder {
    type Err = Error;

    /// Reads a name.
    ///
    /// # Errors
    /// No order has this name; says which there are.
    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|order| order.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::setting("prefill_order", format!("`{name}` is not known; there are {names}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_and_sarathi_leans_spelling_is_read() {
        for policy in PolicyName::ALL {
            assert_eq!(policy.to_string().parse::<PolicyName>().unwrap(), policy);
        }
        assert_eq!("faster_transformer".parse::<PolicyName>().unwrap(), PolicyName::FasterTransformer);
        assert_eq!("simple_chunking".parse::<PolicyName>().unwrap(), PolicyName::SimpleChunking);
        assert_eq!(PolicyName::ALL[0], PolicyName::default());
    }

    #[test]
    fn an_unknown_name_is_told_all_the_others() {
        for wrong in ["", "Sarathi", "sarathi ", "fcfs"] {
            let error = wrong.parse::<PolicyName>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("scheduling_policy `{wrong}` is not known")), "{error}");
            assert!(PolicyName::ALL.iter().all(|policy| error.contains(policy.name())), "{error}");
        }
    }
}
