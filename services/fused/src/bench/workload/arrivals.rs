use super::random::Random;

/// When requests come, in units of the mean time between two: a rate turns them into seconds, and another rate into
/// others with the same pattern.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pattern {
    /// Ascending, from 0 on.
    positions: Vec<f64>,
}

impl Pattern {
    /// All at once.
    pub(super) fn at_once(num: usize) -> Self {
        Self { positions: vec![0.0; num] }
    }

    /// Exponential gaps: a Poisson process.
    pub(super) fn poisson(num: usize, random: &mut Random) -> Self {
        Self::from_gaps(num, || random.exponential())
    }

    /// Gamma gaps with this coefficient of variation: 1 is a Poisson process, below it is steadier, above burstier.
    pub(super) fn gamma(num: usize, cv: f64, random: &mut Random) -> Self {
        Self::from_gaps(num, || random.gamma(cv))
    }

    /// As recorded, and the rate they were recorded at; none where they all came at once.
    pub(super) fn recorded(at_s: &[f64]) -> (Self, Option<f64>) {
        let (Some(first), Some(last)) = (at_s.first(), at_s.last()) else {
            return (Self::at_once(0), None);
        };
        if last <= first {
            return (Self::at_once(at_s.len()), None);
        }
        let rate = (at_s.len() - 1) as f64 / (last - first);
        (Self { positions: at_s.iter().map(|at_s| (at_s - first) * rate).collect() }, Some(rate))
    }

    /// Whether no rate changes anything.
    pub(super) fn is_at_once(&self) -> bool {
        self.positions.iter().all(|position| *position == 0.0)
    }

    /// Seconds from the start, at so many requests a second.
    pub(super) fn at_s(&self, rate: f64) -> impl Iterator<Item = f64> {
        self.positions.iter().map(move |position| position / rate)
    }

    fn from_gaps(num: usize, mut gap: impl FnMut() -> f64) -> Self {
        let positions = (0..num).scan(0.0, |at, idx| {
            // The first one comes at the start, so that a short run is not mostly waiting for it.
            *at += if idx == 0 { 0.0 } else { gap() };
            Some(*at)
        });
        Self { positions: positions.collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn requests_come_at_the_rate(seed: u64, rate in 0.01..1000.0f64, cv in 0.2..2.0f64) {
            let patterns = [
                Pattern::poisson(10_000, &mut Random::new(seed, 0)),
                Pattern::gamma(10_000, cv, &mut Random::new(seed, 0)),
            ];
            for pattern in patterns {
                let at_s: Vec<f64> = pattern.at_s(rate).collect();
                prop_assert!(at_s.is_sorted() && at_s[0] == 0.0);
                let own_rate = 9999.0 / at_s[9999];
                prop_assert!((own_rate / rate - 1.0).abs() < 0.1, "{own_rate} for {rate}");
                let (recorded, recorded_rate) = Pattern::recorded(&at_s);
                prop_assert!((recorded_rate.unwrap() / own_rate - 1.0).abs() < 1e-9);
                let again: Vec<f64> = recorded.at_s(own_rate).collect();
                prop_assert!(at_s.iter().zip(&again).all(|(one, other)| (one - other).abs() < 1e-6 * one.max(1.0)));
            }
        }
    }

    #[test]
    fn what_came_at_once_has_no_rate() {
        assert_eq!(Pattern::recorded(&[]).1, None);
        assert_eq!(Pattern::recorded(&[3.0, 3.0]), (Pattern::at_once(2), None));
    }
}
