use std::time::Duration;

use super::matrix_products;
use crate::kv::KvLayout;

/// A model by what its steps cost.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    /// What reports call it.
    pub name: String,
    /// Weights of all layers, without embedding and output head.
    pub num_layer_parameters: f64,
    /// Weights of the output head; the embedding, of which a step reads next to nothing, has as many.
    pub num_head_parameters: f64,
    /// Layers.
    pub num_layers: usize,
    /// Query heads of one layer.
    pub num_heads: usize,
    /// Key and value heads of one layer.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Of a weight, and of an element of the KV cache.
    pub bytes_per_element: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Prompt and output tokens of the longest sequence it was made for.
    pub max_model_len: usize,
}

/// A device by what it sustains, not by its data sheet.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// What reports call it.
    pub name: String,
    /// Bytes a second that a kernel reads.
    pub bytes_per_s: f64,
    /// All of its memory, in bytes.
    pub memory_bytes: u64,
    /// Operations a second of matrix products and prefill attention.
    pub flops_per_s: f64,
    /// What a step takes beside matrix products and attention: norms, sampling, launches, the host.
    pub step_overhead: Duration,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Tokens whose keys and values are there already.
    pub context_len: usize,
    /// New tokens.
    pub num_tokens: usize,
    /// Whether a token is drawn behind them, which takes a row of the output head.
    pub is_sampled: bool,
}

/// How long a step takes, from the shape of its batch alone: no model, no device.
///
/// Matrix products by a measured table, attention by the bytes it reads or the operations it does, whichever takes
/// longer, and a constant. `tests` holds it against what a peer was measured to take on the same machine.
#[derive(Clone, Debug, PartialEq)]
pub struct CostModel {
    /// What runs.
    pub model: ModelShape,
    /// Where it runs.
    pub machine: Machine,
}

impl ModelShape {
    /// Llama-3.1-8B in bfloat16.
    #[must_use]
    pub fn llama_8b() -> Self {
        Self {
            name: "Llama-8B".to_owned(),
            num_layer_parameters: 32.0 * 4096.0 * f64::from(6144 + 4096 + 28_672 + 14_336),
            num_head_parameters: 128_256.0 * 4096.0,
            num_layers: 32,
            num_heads: 32,
            num_kv_heads: 8,
            head_dim: 128,
            bytes_per_element: 2,
            vocab_size: 128_256,
            max_model_len: 131_072,
        }
    }

    /// Tokens of context at which attention does as much as everything else in a layer.
    pub(super) fn attention_parity(&self) -> usize {
        let attention = (self.num_layers * self.num_heads * self.head_dim) as f64;
        (self.num_layer_parameters / (2.0 * attention).max(1.0)) as usize
    }

    /// What a token's keys and values look like in memory.
    #[must_use]
    pub fn layout(&self) -> KvLayout {
        KvLayout {
            num_layers: self.num_layers,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            bytes_per_element: self.bytes_per_element,
        }
    }
}

impl Machine {
    /// One NVIDIA H200 as measured: decode attention reads 4.2 TB/s, matrix products and FlashAttention-3 sustain about
    /// 650 TFLOP/s. A decode step of one request takes the best known server 4.96 ms, 3.97 ms of it matrix products: the
    /// rest is the overhead.
    #[must_use]
    pub fn h200() -> Self {
        Self {
            name: "H200".to_owned(),
            bytes_per_s: 4.2e12,
            memory_bytes: 141_000_000_000,
            flops_per_s: 650e12,
            step_overhead: Duration::from_micros(990),
        }
    }
}

impl CostModel {
    /// The pair that everything was measured on.
    #[must_use]
    pub fn llama_8b_on_h200() -> Self {
        Self { model: ModelShape::llama_8b(), machine: Machine::h200() }
    }

    /// What is left for keys and values: nine tenths of the device's memory, less the weights.
    #[must_use]
    pub fn kv_cache_bytes(&self) -> u64 {
        let parameters = self.model.num_layer_parameters + 2.0 * self.model.num_head_parameters;
        let weights_bytes = parameters * self.model.bytes_per_element as f64;
        (self.machine.memory_bytes as f64 * 0.9 - weights_bytes).max(0.0) as u64
    }

    /// What the device takes for one step. `parts` has one entry for each sequence of the batch.
    #[must_use]
    pub fn step_time(&self, parts: impl IntoIterator<Item = Part>) -> Duration {
        let (mut num_rows, mut num_head_rows, mut attention_s) = (0, 0, 0.0);
        for part in parts {
            num_rows += part.num_tokens;
            num_head_rows += usize::from(part.is_sampled);
            attention_s += self.attention_s(part);
        }
        let products_s =
            matrix_products::layers_s(self, num_rows) + matrix_products::head_s(self, num_head_rows);
        // Beyond what a clock can say is for ever.
        Duration::try_from_secs_f64(products_s + attention_s)
            .unwrap_or(Duration::MAX)
            .saturating_add(self.machine.step_overhead)
    }

    /// What it takes to copy so many bytes, each of which is read and written.
    #[must_use]
    pub fn copy_time(&self, num_bytes: usize) -> Duration {
        Duration::try_from_secs_f64(2.0 * num_bytes as f64 / self.machine.bytes_per_s)
            .unwrap_or(Duration::MAX)
    }

    /// A decode reads its context and does little with it; a prefill chunk does much with what it reads.
    fn attention_s(&self, part: Part) -> f64 {
        let ModelShape { num_layers, num_heads, head_dim, .. } = self.model;
        let (context_len, num_tokens) = (part.context_len as f64, part.num_tokens as f64);
        let bytes = (context_len + num_tokens) * self.model.layout().token_bytes() as f64;
        let causal_pairs = num_tokens * (context_len + num_tokens / 2.0);
        let flops = 4.0 * (num_layers * num_heads * head_dim) as f64 * causal_pairs;
        (bytes / self.machine.bytes_per_s).max(flops / self.machine.flops_per_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(context_len: usize) -> Part {
        Part { context_len, num_tokens: 1, is_sampled: true }
    }

    /// Seconds for `num_requests` prompts prefilled in steps of at most 8192 tokens, then decoded together.
    fn run(num_requests: usize, num_prompt: usize, num_output: usize) -> f64 {
        let cost = CostModel::llama_8b_on_h200();
        let mut total = Duration::ZERO;
        let per_step = (8192 / num_prompt).max(1);
        for first in (0..num_requests).step_by(per_step) {
            for context_len in (0..num_prompt).step_by(8192) {
                let num_tokens = (num_prompt - context_len).min(8192);
                let part =
                    Part { context_len, num_tokens, is_sampled: context_len + num_tokens == num_prompt };
                total += cost.step_time((first..num_requests.min(first + per_step)).map(|_| part));
            }
        }
        for idx in 1..num_output {
            total += cost.step_time((0..num_requests).map(|_| decode(num_prompt + idx - 1)));
        }
        total.as_secs_f64()
    }

    #[test]
    fn the_best_known_server_takes_as_long_within_a_tenth() {
        // Seconds that vLLM 0.26 was measured to take for Llama-8B on an H200: requests, prompt, output.
        for (num_requests, num_prompt, num_output, measured_s) in [
            (1, 128, 256, 1.270),
            (8, 1024, 256, 1.531),
            (64, 1024, 256, 3.500),
            (256, 1024, 256, 10.858),
            (1, 8192, 1, 0.212),
            (1, 32_768, 1, 1.205),
            (32, 8192, 128, 8.553),
        ] {
            let ratio = run(num_requests, num_prompt, num_output) / measured_s;
            assert!((0.9..1.1).contains(&ratio), "{num_requests} × {num_prompt} × {num_output}: {ratio:.3}");
        }
    }

    #[test]
    fn a_step_is_the_sum_of_what_it_does() {
        let cost = CostModel::llama_8b_on_h200();
        // 3.97 ms of products, 0.99 ms overhead, 8193 tokens of 128 KiB read at 4.2 TB/s.
        let expected_s = 3.97e-3 + 0.99e-3 + 8193.0 * 131_072.0 / 4.2e12;
        assert!((cost.step_time([decode(8192)]).as_secs_f64() - expected_s).abs() < 1e-6);
        let longer = cost.step_time([decode(8192), Part { is_sampled: false, ..decode(8192) }]);
        assert!(longer > cost.step_time([decode(8192)]));
        assert_eq!(cost.step_time([]), cost.machine.step_overhead);
    }

    #[test]
    fn nothing_overflows() {
        let cost = CostModel::llama_8b_on_h200();
        let huge = Part { context_len: usize::MAX / 2, num_tokens: usize::MAX / 2, is_sampled: true };
        assert!(cost.step_time([huge]) > Duration::from_secs(1));
        let stopped = Machine { bytes_per_s: 0.0, ..Machine::h200() };
        assert_eq!(CostModel { machine: stopped, ..cost }.step_time([decode(1)]), Duration::MAX);
    }
}
