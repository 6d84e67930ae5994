use super::NUM_POSITIONS;
use super::keys::{Keys, Problem};

/// Rotary position embedding (RoFormer, arXiv 2104.09864), in the order of halves: dimension `i` turns with
/// `i + head_dim / 2`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base: frequency `i` is `theta^(-2i / head_dim)`.
    pub theta: f64,
    /// How frequencies are changed for contexts longer than those of the first training.
    pub scaling: RopeScaling,
}

/// A change of the rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// At least one.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, those between blended.
    Llama3 {
        /// At least one.
        factor: f64,
        /// Wavelengths over `original_max_position_embeddings / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths under `original_max_position_embeddings / high_freq_factor` are short; over `low_freq_factor`.
        high_freq_factor: f64,
        /// Positions of the first training.
        original_max_position_embeddings: usize,
    },
}

impl Rope {
    /// `rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling` (before).
    pub(super) fn parse(keys: &Keys<'_>, head_dim: usize, max_positions: usize) -> Result<Self, Problem> {
        if !head_dim.is_multiple_of(2) {
            return Err(Problem::new(
                "head_dim",
                format!("is {head_dim}; rotary positions need an even one"),
            ));
        }
        // An old file read and saved by transformers 5 may carry both; it lets the old one win.
        let parameters = match keys.object("rope_scaling")? {
            Some(scaling) => Some(scaling),
            None => keys.object("rope_parameters")?,
        };
        let theta = |keys: &Keys<'_>| keys.real("rope_theta", 1.0..=1e15);
        let Some(parameters) = parameters else {
            whole_head(keys)?;
            return Ok(Self { theta: theta(keys)?.unwrap_or(DEFAULT_THETA), scaling: RopeScaling::None });
        };
        whole_head(keys)?;
        whole_head(&parameters)?;
        let theta = match theta(&parameters)? {
            Some(theta) => theta,
            None => theta(keys)?.unwrap_or(DEFAULT_THETA),
        };
        Ok(Self { theta, scaling: RopeScaling::parse(&parameters, keys, max_positions)? })
    }
}

const DEFAULT_THETA: f64 = 10_000.0;

impl RopeScaling {
    fn parse(parameters: &Keys<'_>, config: &Keys<'_>, max_positions: usize) -> Result<Self, Problem> {
        let key = if parameters.has("rope_type") { "rope_type" } else { "type" };
        let factor = || parameters.required_real("factor", 1.0..=1e6);
        match parameters.text(key)?.unwrap_or("default") {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: factor()? }),
            "llama3" => {
                let band = |key| parameters.required_real(key, 1e-6..=1e6);
                let (low_freq_factor, high_freq_factor) =
                    (band("low_freq_factor")?, band("high_freq_factor")?);
                if high_freq_factor <= low_freq_factor {
                    let key = parameters.full("high_freq_factor");
                    return Err(Problem::new(key, "must be over low_freq_factor"));
                }
                let original = "original_max_position_embeddings";
                let original_max_position_embeddings = match config.count(original, NUM_POSITIONS)? {
                    Some(count) => count,
                    None => parameters.count(original, NUM_POSITIONS)?.unwrap_or(max_positions),
                };
                Ok(Self::Llama3 {
                    factor: factor()?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings,
                })
            }
            other => Err(Problem::unsupported(&parameters.full(key), other, "default, linear, llama3")),
        }
    }
}

/// Refuses a rotation of only a part of each head.
fn whole_head(keys: &Keys<'_>) -> Result<(), Problem> {
    match keys.real("partial_rotary_factor", 0.0..=1.0)? {
        Some(part) if part < 1.0 => {
            Err(Problem::new(keys.full("partial_rotary_factor"), format!("is {part}; only 1 is supported")))
        }
        _ => Ok(()),
    }
}
