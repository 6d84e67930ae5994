use std::ops::RangeInclusive;

use fused_checkpoint::ModelFiles;
use fused_proto::common::v1::{SamplingParams, StoppingParams};
use serde::Deserialize;

use crate::Error;

const FILE: &str = "generation_config.json";

/// What a model's authors recommend for requests that do not say: the keys of `generation_config.json` that vLLM takes too.
/// `do_sample` is none of them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct GenerationDefaults {
    temperature: Option<f32>,
    top_p: Option<f32>,
    /// 0 or below: off.
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    max_new_tokens: Option<u32>,
}

impl GenerationDefaults {
    /// Reads `generation_config.json`; none where the model has none.
    ///
    /// # Errors
    /// The file is no JSON object, or a value is beyond what a request may ask for.
    pub(crate) fn load(files: &ModelFiles) -> Result<Self, Error> {
        let Some(bytes) = files.read(FILE)? else { return Ok(Self::default()) };
        let defaults: Self = serde_json::from_slice(&bytes).map_err(Error::GenerationConfig)?;
        defaults.check()?;
        Ok(defaults)
    }

    fn check(&self) -> Result<(), Error> {
        const POSITIVE: f32 = f32::MIN_POSITIVE;
        let in_range = |key, value: Option<f32>, range: RangeInclusive<f32>| match value {
            Some(value) if !range.contains(&value) => {
                Err(Error::GenerationDefault { key, value: value.to_string() })
            }
            _ => Ok(()),
        };
        in_range("temperature", self.temperature, 0.0..=2.0)?;
        in_range("top_p", self.top_p, POSITIVE..=1.0)?;
        in_range("min_p", self.min_p, 0.0..=1.0)?;
        in_range("repetition_penalty", self.repetition_penalty, POSITIVE..=f32::MAX)?;
        match self.top_k {
            Some(top_k) if u32::try_from(top_k.max(0)).is_err() => {
                Err(Error::GenerationDefault { key: "top_k", value: top_k.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// Fills in what a request leaves open.
    pub(crate) fn fill(&self, sampling: &mut SamplingParams, stopping: &mut StoppingParams) {
        sampling.temperature = sampling.temperature.or(self.temperature);
        sampling.top_p = sampling.top_p.or(self.top_p);
        sampling.top_k = sampling.top_k.or(self.top_k.and_then(|top_k| u32::try_from(top_k.max(0)).ok()));
        sampling.min_p = sampling.min_p.or(self.min_p);
        sampling.repetition_penalty = sampling.repetition_penalty.or(self.repetition_penalty);
        stopping.default_max_tokens = stopping.default_max_tokens.or(self.max_new_tokens);
    }

    /// For the log: `temperature 0.6, top_k 20`; empty where there are none.
    pub(crate) fn describe(&self) -> String {
        let shown = [
            ("temperature", self.temperature.map(|value| value.to_string())),
            ("top_p", self.top_p.map(|value| value.to_string())),
            ("top_k", self.top_k.map(|value| value.to_string())),
            ("min_p", self.min_p.map(|value| value.to_string())),
            ("repetition_penalty", self.repetition_penalty.map(|value| value.to_string())),
            ("max_new_tokens", self.max_new_tokens.map(|value| value.to_string())),
        ];
        let shown = shown.into_iter().filter_map(|(key, value)| Some(format!("{key} {}", value?)));
        shown.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(json: &str) -> Result<GenerationDefaults, Error> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), json).unwrap();
        GenerationDefaults::load(&ModelFiles::open(dir.path())?)
    }

    #[test]
    fn a_request_goes_before_the_file() {
        let file = r#"{"temperature": 0.6, "top_k": -1, "top_p": null, "min_p": 0, "repetition_penalty": 1.05,
            "max_new_tokens": 7, "do_sample": false, "pad_token_id": 3}"#;
        let defaults = load(file).unwrap();
        assert_eq!(
            defaults.describe(),
            "temperature 0.6, top_k -1, min_p 0, repetition_penalty 1.05, max_new_tokens 7"
        );
        let (mut sampling, mut stopping) = Default::default();
        defaults.fill(&mut sampling, &mut stopping);
        let filled = SamplingParams {
            temperature: Some(0.6),
            top_k: Some(0),
            min_p: Some(0.0),
            repetition_penalty: Some(1.05),
            ..SamplingParams::default()
        };
        assert_eq!((&sampling, stopping.default_max_tokens), (&filled, Some(7)));
        let own = SamplingParams { temperature: Some(1.5), top_k: Some(4), ..filled };
        let mut sampling = own.clone();
        defaults.fill(&mut sampling, &mut stopping);
        assert_eq!(sampling, own);
    }

    #[test]
    fn what_cannot_be_taken_is_named() {
        assert_eq!(load("{}").unwrap().describe(), "");
        for (file, key) in [
            (r#"{"temperature": 3}"#, "temperature"),
            (r#"{"top_p": 0}"#, "top_p"),
            (r#"{"min_p": -0.5}"#, "min_p"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"top_k": 99999999999}"#, "top_k"),
        ] {
            let error = load(file).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(FILE), "{error}");
        }
        assert!(load("[").unwrap_err().to_string().contains(FILE));
    }
}
