use super::family::{Defaults, Family};
use super::keys::{Keys, Problem};
use super::{HEAD_DIM, NUM_HEADS, NUM_POSITIONS};

/// How `hidden_size` is cut into heads.
pub(super) struct Heads {
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
}

impl Heads {
    pub(super) fn parse(keys: &Keys<'_>, family: Family, hidden_size: usize) -> Result<Self, Problem> {
        let key = family.names().num_heads;
        let num_heads = keys.required_count(key, NUM_HEADS)?;
        if family == Family::Gpt2 {
            let head_dim = divide(key, hidden_size, num_heads)?;
            return Ok(Self { num_heads, num_kv_heads: num_heads, head_dim });
        }
        let defaults = Defaults::of(family);
        let num_kv_heads = match keys.count("num_key_value_heads", NUM_HEADS)? {
            Some(count) => count,
            None if keys.has("num_key_value_heads") => num_heads,
            None => defaults.num_kv_heads.unwrap_or(num_heads),
        };
        if !num_heads.is_multiple_of(num_kv_heads) {
            let problem = format!("is {num_kv_heads}, which does not divide {key} {num_heads}");
            return Err(Problem::new("num_key_value_heads", problem));
        }
        let head_dim = match keys.count("head_dim", HEAD_DIM)? {
            Some(dim) => dim,
            None => match defaults.head_dim.filter(|_| !keys.has("head_dim")) {
                Some(dim) => dim,
                None => divide(key, hidden_size, num_heads)?,
            },
        };
        Ok(Self { num_heads, num_kv_heads, head_dim })
    }
}

fn divide(key: &str, hidden_size: usize, num_heads: usize) -> Result<usize, Problem> {
    if hidden_size.is_multiple_of(num_heads) && HEAD_DIM.contains(&(hidden_size / num_heads)) {
        return Ok(hidden_size / num_heads);
    }
    Err(Problem::new(
        key,
        format!("is {num_heads}, which does not divide the hidden size {hidden_size} into heads"),
    ))
}

/// Each layer's window. Mistral has one for all layers; Qwen chooses the layers, if it is switched on at all.
pub(super) fn sliding_window(
    keys: &Keys<'_>,
    family: Family,
    num_layers: usize,
) -> Result<Vec<Option<usize>>, Problem> {
    let window = || match keys.count("sliding_window", NUM_POSITIONS)? {
        Some(window) => Ok(Some(window)),
        None => Ok(Defaults::of(family).sliding_window.filter(|_| !keys.has("sliding_window"))),
    };
    match family {
        Family::Gpt2 | Family::Llama => Ok(vec![None; num_layers]),
        Family::Mistral => Ok(vec![window()?; num_layers]),
        Family::Qwen2 | Family::Qwen3 => {
            let window = if keys.flag("use_sliding_window")?.unwrap_or(false) { window()? } else { None };
            let slides = sliding_layers(keys, num_layers)?;
            Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
        }
    }
}

/// Qwen: which layers have the window; by name, or else all from `max_window_layers` on.
fn sliding_layers(keys: &Keys<'_>, num_layers: usize) -> Result<Vec<bool>, Problem> {
    let key = "layer_types";
    let Some(layer_types) = keys.texts(key)? else {
        let first = keys.count("max_window_layers", 0..=usize::MAX)?.unwrap_or(28);
        return Ok((0..num_layers).map(|layer| layer >= first).collect());
    };
    if layer_types.len() != num_layers {
        let problem = format!("names {} layers of {num_layers}", layer_types.len());
        return Err(Problem::new(key, problem));
    }
    let slides = layer_types.into_iter().map(|layer_type| match layer_type {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(Problem::unsupported(key, other, "full_attention, sliding_attention")),
    });
    slides.collect()
}
