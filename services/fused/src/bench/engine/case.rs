use std::fmt;
use std::str::FromStr;

use anyhow::ensure;

use crate::bench::workload::Random;

/// Requests of one case: as many as a gRPC connection has streams.
pub(crate) const MAX_REQUESTS: usize = 4096;
/// Tokens of a mixed request's prompt and output, both ends included.
const MIXED_PROMPT: (usize, usize) = (128, 1024);
const MIXED_OUTPUT: (usize, usize) = (64, 512);

/// Requests that are sent at once, in groups that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    groups: Vec<Group>,
}

/// So many requests alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    num_requests: usize,
    num_prompt: usize,
    num_output: usize,
}

impl Case {
    /// One request, some, as many as run at once by default; and a long prompt alone.
    pub(super) fn defaults() -> [Self; 4] {
        [(1, 128, 256), (8, 128, 256), (64, 128, 256), (1, 1024, 1)].map(
            |(num_requests, num_prompt, num_output)| Self {
                groups: vec![Group { num_requests, num_prompt, num_output }],
            },
        )
    }

    /// Shortened where a sequence may not be as long.
    pub(super) fn within(&self, max_model_len: usize) -> Self {
        Self { groups: self.groups.iter().map(|group| group.within(max_model_len)).collect() }
    }
}

impl Group {
    fn within(&self, max_model_len: usize) -> Self {
        if self.num_prompt + self.num_output <= max_model_len {
            return *self;
        }
        let num_output = self.num_output.min(max_model_len / 2).max(1);
        let num_prompt = self.num_prompt.min(max_model_len.saturating_sub(num_output)).max(1);
        Self { num_prompt, num_output, ..*self }
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let groups = text.split('+').map(|group| {
            group.parse().map_err(|error: String| match group == text {
                true => error,
                false => format!("`{text}`: {error}"),
            })
        });
        let groups = groups.collect::<Result<Vec<Group>, String>>()?;
        let num_requests = groups.iter().fold(0_usize, |sum, group| sum.saturating_add(group.num_requests));
        if num_requests > MAX_REQUESTS {
            return Err(format!(
                "`{text}` has {num_requests} requests; at most {MAX_REQUESTS} are sent at once"
            ));
        }
        Ok(Self { groups })
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<usize>> = text.split('x').map(|number| number.parse().ok()).collect();
        let Some([num_requests, num_prompt, num_output]) = numbers.as_deref() else {
            return Err(format!("`{text}` is not requests x prompt x output, such as 8x1024x256"));
        };
        if [num_requests, num_prompt, num_output].contains(&&0) {
            return Err(format!("`{text}` has a 0: each number is at least 1"));
        }
        Ok(Self { num_requests: *num_requests, num_prompt: *num_prompt, num_output: *num_output })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, Group { num_requests, num_prompt, num_output }) in self.groups.iter().enumerate() {
            let plus = if nth > 0 { "+" } else { "" };
            write!(f, "{plus}{num_requests}x{num_prompt}x{num_output}")?;
        }
        Ok(())
    }
}

/// Requests that are sent at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// How it is called in the report.
    pub(super) name: String,
    /// How it is typed, for errors.
    pub(super) flag: String,
    /// Prompt and output tokens of each request.
    pub(super) lengths: Vec<(usize, usize)>,
}

impl Batch {
    pub(super) fn of(case: &Case) -> Self {
        Self {
            name: case.to_string(),
            flag: format!("--case {case}"),
            lengths: case
                .groups
                .iter()
                .flat_map(|group| vec![(group.num_prompt, group.num_output); group.num_requests])
                .collect(),
        }
    }

    /// Each length as likely as any other, prompt and output apart.
    pub(super) fn mixed(num_requests: usize, seed: u64) -> Self {
        let mut random = Random::new(seed, 0);
        let mut draw = |(least, most): (usize, usize)| {
            // Below 1 and so at most the last of the span.
            least + (random.uniform() * (most - least + 1) as f64) as usize
        };
        Self {
            name: format!("{num_requests} mixed"),
            flag: format!("--mixed {num_requests}"),
            lengths: (0..num_requests).map(|_| (draw(MIXED_PROMPT), draw(MIXED_OUTPUT))).collect(),
        }
    }

    /// # Errors
    /// It has a request that is longer than a sequence may be.
    pub(super) fn check(&self, max_model_len: usize) -> anyhow::Result<()> {
        let longest =
            self.lengths.iter().map(|(num_prompt, num_output)| num_prompt.saturating_add(*num_output));
        let longest = longest.max().unwrap_or(0);
        ensure!(
            longest <= max_model_len,
            "{}: prompt and output have {longest} tokens, and max_model_len is {max_model_len}",
            self.flag
        );
        Ok(())
    }

    pub(super) fn num_prompt(&self) -> usize {
        self.lengths.iter().map(|(num_prompt, _)| num_prompt).sum()
    }

    pub(super) fn num_output(&self) -> usize {
        self.lengths.iter().map(|(_, num_output)| num_output).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cases_are_read_as_they_are_written() {
        let case: Case = "8x1024x256".parse().unwrap();
        assert_eq!(Batch::of(&case).lengths, [(1024, 256); 8]);
        assert_eq!(case.to_string(), "8x1024x256");
        let unequal: Case = "2x128x256+1x100000x64".parse().unwrap();
        assert_eq!(Batch::of(&unequal).lengths, [(128, 256), (128, 256), (100_000, 64)]);
        assert_eq!(unequal.to_string(), "2x128x256+1x100000x64");
        assert_eq!(unequal.within(1024).to_string(), "2x128x256+1x960x64");
        for (text, message) in [
            ("8x1024", "`8x1024` is not requests x prompt x output"),
            ("8x1024x256x1", "is not requests"),
            ("8x-1x256", "is not requests"),
            ("8xax256", "is not requests"),
            ("", "`` is not requests"),
            ("8x0x1", "`8x0x1` has a 0"),
            ("4097x1x1", "at most 4096"),
            ("4000x1x1+97x1x1", "has 4097 requests; at most 4096"),
            ("1x1x1+", "`1x1x1+`: `` is not requests"),
            ("1x1x1+2x0x3", "`2x0x3` has a 0"),
            ("1x99999999999999999999x1", "is not requests"),
        ] {
            let error = text.parse::<Case>().unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn a_case_that_does_not_fit_is_named() {
        let batch = Batch::of(&"2x1000x25".parse().unwrap());
        assert!(batch.check(1025).is_ok());
        let error = batch.check(1024).unwrap_err().to_string();
        assert_eq!(error, "--case 2x1000x25: prompt and output have 1025 tokens, and max_model_len is 1024");
        assert!(Batch::mixed(512, 1).check(1024).unwrap_err().to_string().starts_with("--mixed 512: "));
        let endless = Batch::of(&format!("1x{}x1", usize::MAX).parse().unwrap());
        assert!(endless.check(1024).is_err());
    }

    #[test]
    fn mixed_lengths_are_within_their_bounds_and_repeat_with_the_seed() {
        let batch = Batch::mixed(4096, 7);
        let (prompts, outputs): (Vec<_>, Vec<_>) = batch.lengths.iter().copied().unzip();
        for (lengths, (least, most)) in [(prompts, MIXED_PROMPT), (outputs, MIXED_OUTPUT)] {
            assert!(lengths.iter().all(|length| (least..=most).contains(length)));
            let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
            let middle = (least + most) as f64 / 2.0;
            assert!((mean / middle - 1.0).abs() < 0.05, "{mean}");
        }
        assert_eq!(batch, Batch::mixed(4096, 7));
        assert_ne!(batch, Batch::mixed(4096, 8));
    }

    proptest! {
        #[test]
        fn default_cases_fit_every_model(max_model_len in 2..5000usize) {
            for case in Case::defaults() {
                prop_assert!(Batch::of(&case.within(max_model_len)).check(max_model_len).is_ok());
            }
        }
    }
}
