mod scaling;

use super::NUM_POSITIONS;
use super::keys::{Keys, Problem};

pub use scaling::RopeScaling;

/// Rotary position embedding (RoFormer, arXiv 2104.09864), in the order of halves: of the elements of a head that turn,
/// `i` turns with `i + rotary_dim / 2`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base: frequency `i` is `theta^(-2i / rotary_dim)`, before it is scaled.
    pub theta: f64,
    /// How many elements of a head turn, the first ones; even. The others stay as they are.
    pub rotary_dim: usize,
    /// How frequencies are changed for contexts longer than those of the first training.
    pub scaling: RopeScaling,
    /// Tokens of the longest context that is served. `Dynamic` and `LongRope` choose their frequencies by it, once and for
    /// all: keys of a prefix that requests share, or that is computed in chunks, must not depend on how long a request
    /// becomes.
    pub context_len: usize,
}

const DEFAULT_THETA: f64 = 10_000.0;

impl Rope {
    /// `rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling` (before).
    pub(super) fn parse(keys: &Keys<'_>, head_dim: usize, max_positions: usize) -> Result<Self, Problem> {
        // An old file read and saved by transformers 5 may carry both; it lets the old one win, unless that is empty.
        let parameters = match keys.object("rope_scaling")?.filter(|scaling| !scaling.is_empty()) {
            Some(scaling) => scaling,
            None => keys.object("rope_parameters")?.unwrap_or_default(),
        };
        let parameters = of_all_layers(parameters)?;
        let real = |key, range: std::ops::RangeInclusive<f64>| match parameters.real(key, range.clone())? {
            Some(real) => Ok(Some(real)),
            None => keys.real(key, range),
        };
        let theta = real("rope_theta", 1.0..=1e15)?.unwrap_or(DEFAULT_THETA);
        let part = real("partial_rotary_factor", 0.0..=1.0)?;
        let rotary_dim = rotary_dim(head_dim, part)?;
        let scaling = RopeScaling::parse(&scaling::Source {
            parameters: &parameters,
            config: keys,
            max_position_embeddings: max_positions,
            rotary_dim,
        })?;
        if theta <= 1.0 && matches!(scaling, RopeScaling::Yarn { .. }) {
            return Err(Problem::new("rope_theta", "must be over 1 for yarn"));
        }
        let context_len = scaling.max_positions(max_positions);
        if !NUM_POSITIONS.contains(&context_len) {
            let problem =
                format!("makes a context of {context_len} tokens; {} can be served", NUM_POSITIONS.end());
            return Err(Problem::new(parameters.full("factor"), problem));
        }
        Ok(Self { theta, rotary_dim, scaling, context_len })
    }
}

/// The parameters themselves, or those that all types of layers have in common where each has its own.
fn of_all_layers<'a>(parameters: Keys<'a>) -> Result<Keys<'a>, Problem> {
    const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];
    let mut of_types = Vec::new();
    for layer_type in LAYER_TYPES {
        match parameters.object(layer_type)? {
            Some(of_type) => of_types.push(of_type),
            None if parameters.has(layer_type) => {
                let problem = "is null: layers without positions are not supported";
                return Err(Problem::new(parameters.full(layer_type), problem));
            }
            None => {}
        }
    }
    match (of_types.pop(), of_types.pop()) {
        (None, _) => Ok(parameters),
        (Some(only), None) => Ok(only),
        (Some(one), Some(other)) if one.is_same(&other) => Ok(one),
        _ => Err(Problem::new(
            parameters.full(LAYER_TYPES[1]),
            format!(
                "differs from {}: layers that turn by different frequencies are not supported",
                LAYER_TYPES[0]
            ),
        )),
    }
}

fn rotary_dim(head_dim: usize, part: Option<f64>) -> Result<usize, Problem> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "cut as Python's int() does; a part of head_dim"
    )]
    let dim = part.map_or(head_dim, |part| (head_dim as f64 * part) as usize);
    if dim > 0 && dim.is_multiple_of(2) && head_dim.is_multiple_of(2) {
        return Ok(dim);
    }
    Err(match part {
        Some(part) if head_dim.is_multiple_of(2) => Problem::new(
            "partial_rotary_factor",
            format!(
                "is {part}, which turns {dim} of a head's {head_dim} elements; it must be an even number of them"
            ),
        ),
        _ => Problem::new("head_dim", format!("is {head_dim}; rotary positions need an even one")),
    })
}
