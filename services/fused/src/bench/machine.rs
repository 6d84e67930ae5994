use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use fused_engine::simulation::{CostModel, Machine, ModelShape};
use serde::{Deserialize, Serialize};

/// The largest count that makes sense of anything in a model.
const MAX_COUNT: usize = 1 << 24;
/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A model and a device as a file says them. What is left out is as of Llama-8B on an H200.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MachineFile {
    model: Model,
    machine: Device,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Model {
    name: String,
    num_layer_parameters: f64,
    num_head_parameters: f64,
    num_layers: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    bytes_per_element: usize,
    vocab_size: usize,
    max_model_len: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Device {
    name: String,
    memory_bytes: u64,
    bytes_per_s: f64,
    flops_per_s: f64,
    step_overhead_us: f64,
}

/// Reads what steps cost.
///
/// # Errors
/// The file, or the field in it, that is at fault.
pub(super) fn cost_model(path: Option<&Path>) -> anyhow::Result<CostModel> {
    let Some(path) = path else { return Ok(CostModel::llama_8b_on_h200()) };
    let read = || -> anyhow::Result<CostModel> {
        let len = std::fs::metadata(path)?.len();
        ensure!(len <= MAX_FILE_BYTES, "it is larger than {MAX_FILE_BYTES} bytes");
        let file: MachineFile = serde_json::from_slice(&std::fs::read(path)?)?;
        file.into_cost_model()
    };
    read().with_context(|| format!("--machine {}", path.display()))
}

impl MachineFile {
    /// How a cost model would be written.
    pub(super) fn of(cost: &CostModel) -> Self {
        let CostModel { model, machine } = cost;
        Self {
            model: Model {
                name: model.name.clone(),
                num_layer_parameters: model.num_layer_parameters,
                num_head_parameters: model.num_head_parameters,
                num_layers: model.num_layers,
                num_heads: model.num_heads,
                num_kv_heads: model.num_kv_heads,
                head_dim: model.head_dim,
                bytes_per_element: model.bytes_per_element,
                vocab_size: model.vocab_size,
                max_model_len: model.max_model_len,
            },
            machine: Device {
                name: machine.name.clone(),
                memory_bytes: machine.memory_bytes,
                bytes_per_s: machine.bytes_per_s,
                flops_per_s: machine.flops_per_s,
                step_overhead_us: machine.step_overhead.as_secs_f64() * 1e6,
            },
        }
    }

    fn into_cost_model(self) -> anyhow::Result<CostModel> {
        let Self { model, machine } = self;
        for (name, count) in [
            ("num_layers", model.num_layers),
            ("num_heads", model.num_heads),
            ("num_kv_heads", model.num_kv_heads),
            ("head_dim", model.head_dim),
            ("bytes_per_element", model.bytes_per_element),
            ("vocab_size", model.vocab_size),
            ("max_model_len", model.max_model_len),
        ] {
            ensure!(
                (1..=MAX_COUNT).contains(&count),
                "model.{name} is {count}, and must be from 1 to {MAX_COUNT}"
            );
        }
        for (name, number) in [
            ("model.num_layer_parameters", model.num_layer_parameters),
            ("model.num_head_parameters", model.num_head_parameters),
            ("machine.bytes_per_s", machine.bytes_per_s),
            ("machine.flops_per_s", machine.flops_per_s),
        ] {
            ensure!(
                number.is_finite() && number >= 1.0,
                "{name} is {number}, and must be a number from 1 on"
            );
        }
        // Each count has a sensible size; together they may still be beyond counting.
        let token_bytes = [model.num_layers, 2, model.num_kv_heads, model.head_dim, model.bytes_per_element];
        let token_bytes = token_bytes.iter().try_fold(1usize, |bytes, count| bytes.checked_mul(*count));
        ensure!(
            token_bytes.is_some_and(|bytes| bytes <= 1 << 40),
            "model: a token's keys and values are too large to count"
        );
        let step_overhead = Duration::try_from_secs_f64(machine.step_overhead_us * 1e-6).ok();
        let step_overhead = step_overhead
            .filter(|overhead| *overhead < Duration::from_secs(3600))
            .with_context(|| format!("machine.step_overhead_us is {}", machine.step_overhead_us))?;
        Ok(CostModel {
            model: ModelShape {
                name: model.name,
                num_layer_parameters: model.num_layer_parameters,
                num_head_parameters: model.num_head_parameters,
                num_layers: model.num_layers,
                num_heads: model.num_heads,
                num_kv_heads: model.num_kv_heads,
                head_dim: model.head_dim,
                bytes_per_element: model.bytes_per_element,
                vocab_size: model.vocab_size,
                max_model_len: model.max_model_len,
            },
            machine: Machine {
                name: machine.name,
                memory_bytes: machine.memory_bytes,
                bytes_per_s: machine.bytes_per_s,
                flops_per_s: machine.flops_per_s,
                step_overhead,
            },
        })
    }
}

impl Default for Model {
    fn default() -> Self {
        MachineFile::of(&CostModel::llama_8b_on_h200()).model
    }
}

impl Default for Device {
    fn default() -> Self {
        MachineFile::of(&CostModel::llama_8b_on_h200()).machine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<CostModel> {
        serde_json::from_str::<MachineFile>(text)?.into_cost_model()
    }

    #[test]
    fn what_is_printed_can_be_read() {
        let cost = CostModel::llama_8b_on_h200();
        assert_eq!(parse(&serde_json::to_string(&MachineFile::of(&cost)).unwrap()).unwrap(), cost);
        assert_eq!(parse("{}").unwrap(), cost);
        assert_eq!(parse(r#"{"model": {"num_layers": 16}}"#).unwrap().model.num_layers, 16);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, message) in [
            (r#"{"model": {"layers": 16}}"#, "unknown field `layers`"),
            (r#"{"model": {"head_dim": 0}}"#, "model.head_dim is 0"),
            (r#"{"machine": {"bytes_per_s": -1}}"#, "machine.bytes_per_s is -1"),
            (r#"{"machine": {"step_overhead_us": -1}}"#, "machine.step_overhead_us is -1"),
            (r#"{"model": {"num_layers": 9999999, "head_dim": 9999999}}"#, "too large to count"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
    }
}
