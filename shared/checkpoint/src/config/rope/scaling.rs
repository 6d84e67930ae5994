use super::super::NUM_POSITIONS;
use super::super::keys::{Keys, Problem};

/// A change of the rotary frequencies; each as transformers' `modeling_rope_utils` has it.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// At least one.
        factor: f64,
    },
    /// NTK-aware scaling: theta grows with the context beyond the first training's.
    Dynamic {
        /// At least one.
        factor: f64,
        /// Positions of the first training.
        original_max_position_embeddings: usize,
    },
    /// YaRN (arXiv 2309.00071): long wavelengths divided by `factor`, short ones kept, a ramp between them.
    Yarn {
        /// At least one.
        factor: f64,
        /// What sines and cosines are multiplied by.
        attention_factor: f64,
        /// Waves that fit into the first training's context more often than so are kept.
        beta_fast: f64,
        /// Those that fit more seldom are divided by `factor`.
        beta_slow: f64,
        /// Whether the ramp begins and ends at whole pairs.
        truncate: bool,
        /// Positions of the first training.
        original_max_position_embeddings: usize,
    },
    /// LongRoPE (arXiv 2402.13753; `longrope`, once `su`): a divisor for each frequency.
    LongRope {
        /// For contexts of the first training's length; as many as pairs that turn.
        short_factor: Vec<f64>,
        /// For longer ones.
        long_factor: Vec<f64>,
        /// What sines and cosines are multiplied by.
        attention_factor: f64,
        /// Positions of the first training.
        original_max_position_embeddings: usize,
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

/// What a scaling is read from.
pub(super) struct Source<'a> {
    pub(super) parameters: &'a Keys<'a>,
    pub(super) config: &'a Keys<'a>,
    pub(super) max_position_embeddings: usize,
    pub(super) rotary_dim: usize,
}

const ORIGINAL: &str = "original_max_position_embeddings";

impl RopeScaling {
    pub(super) fn parse(source: &Source<'_>) -> Result<Self, Problem> {
        let parameters = source.parameters;
        let (key, name) = match parameters.text("rope_type")? {
            Some(name) => ("rope_type", name),
            None => ("type", parameters.text("type")?.unwrap_or("default")),
        };
        let factor = || parameters.required_real("factor", FACTOR);
        match name {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: factor()? }),
            "dynamic" => Ok(Self::Dynamic {
                factor: factor()?,
                original_max_position_embeddings: source.max_position_embeddings,
            }),
            "yarn" => source.yarn(),
            "longrope" | "su" => source.long_rope(),
            "llama3" => source.llama3(factor()?),
            other => {
                let known = "default, linear, dynamic, yarn, longrope, llama3";
                Err(Problem::unsupported(&parameters.full(key), other, known))
            }
        }
    }

    /// The longest context, for a configuration that speaks of so many positions: by vLLM's rule, which takes
    /// `max_position_embeddings` for the first training's where it is not certain to be the extended one.
    pub(super) fn max_positions(&self, max_position_embeddings: usize) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and beyond the range of positions saturated"
        )]
        let times = |positions: usize, factor: f64| (positions as f64 * factor) as usize;
        match *self {
            Self::None | Self::LongRope { .. } | Self::Llama3 { .. } => max_position_embeddings,
            Self::Linear { factor } | Self::Dynamic { factor, .. } => times(max_position_embeddings, factor),
            Self::Yarn { factor, original_max_position_embeddings, .. } => {
                times(original_max_position_embeddings, factor)
            }
        }
    }
}

const FACTOR: std::ops::RangeInclusive<f64> = 1.0..=1e6;
const POSITIVE: std::ops::RangeInclusive<f64> = 1e-6..=1e6;

impl Source<'_> {
    fn yarn(&self) -> Result<RopeScaling, Problem> {
        let parameters = self.parameters;
        let original = self.original()?;
        let factor = self.factor_or_ratio(original)?;
        // 0 counts as left out, as in Python's `or`.
        let or = |key, default| {
            let given = parameters.real(key, 0.0..=1e6)?.filter(|given| *given > 0.0);
            Ok::<_, Problem>(given.unwrap_or(default))
        };
        let mscale = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let (one, all) = (or("mscale", 0.0)?, or("mscale_all_dim", 0.0)?);
        let by_factor = if one > 0.0 && all > 0.0 { mscale(one) / mscale(all) } else { mscale(1.0) };
        Ok(RopeScaling::Yarn {
            factor,
            attention_factor: parameters.real("attention_factor", POSITIVE)?.unwrap_or(by_factor),
            beta_fast: or("beta_fast", 32.0)?,
            beta_slow: or("beta_slow", 1.0)?,
            truncate: parameters.flag("truncate")?.unwrap_or(true),
            original_max_position_embeddings: original,
        })
    }

    fn long_rope(&self) -> Result<RopeScaling, Problem> {
        let parameters = self.parameters;
        let original = self.original()?;
        if original < 2 {
            return Err(Problem::new(
                ORIGINAL,
                format!("is {original}, and must be at least 2 for longrope"),
            ));
        }
        let factor = self.factor_or_ratio(original)?;
        let by_factor = (1.0 + factor.ln() / (original as f64).ln()).sqrt();
        let divisors = |key| {
            let divisors = parameters.required_reals(key, POSITIVE)?;
            if divisors.len() == self.rotary_dim / 2 {
                return Ok(divisors);
            }
            let problem = format!(
                "has {} numbers; one for each of {} pairs that turn is needed",
                divisors.len(),
                self.rotary_dim / 2
            );
            Err(Problem::new(parameters.full(key), problem))
        };
        Ok(RopeScaling::LongRope {
            short_factor: divisors("short_factor")?,
            long_factor: divisors("long_factor")?,
            attention_factor: parameters.real("attention_factor", POSITIVE)?.unwrap_or(by_factor),
            original_max_position_embeddings: original,
        })
    }

    fn llama3(&self, factor: f64) -> Result<RopeScaling, Problem> {
        let band = |key| self.parameters.required_real(key, POSITIVE);
        let (low_freq_factor, high_freq_factor) = (band("low_freq_factor")?, band("high_freq_factor")?);
        if high_freq_factor <= low_freq_factor {
            let key = self.parameters.full("high_freq_factor");
            return Err(Problem::new(key, "must be over low_freq_factor"));
        }
        let original_max_position_embeddings = self.original()?;
        Ok(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        })
    }

    /// The factor that is left out is the context's ratio to the first training's.
    fn factor_or_ratio(&self, original: usize) -> Result<f64, Problem> {
        let ratio = self.max_position_embeddings as f64 / original as f64;
        Ok(self.parameters.real("factor", FACTOR)?.unwrap_or(ratio.max(1.0)))
    }

    /// Positions of the first training.
    fn original(&self) -> Result<usize, Problem> {
        match self.config.count(ORIGINAL, NUM_POSITIONS)? {
            Some(count) => Ok(count),
            None => {
                let own = self.parameters.count(ORIGINAL, NUM_POSITIONS)?;
                Ok(own.unwrap_or(self.max_position_embeddings))
            }
        }
    }
}
