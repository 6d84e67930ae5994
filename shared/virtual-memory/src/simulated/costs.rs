//! What the driver's calls take.

use std::time::Duration;

/// How long each call of a driver takes. What a call over several handles does to each of them is charged for each.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each is the call of its name")]
pub struct DriverCosts {
    pub reserve: Duration,
    pub create: CostBySize,
    pub map: Duration,
    /// For every handle in the span.
    pub set_access: CostBySize,
    /// For every handle in the span.
    pub unmap: CostBySize,
    pub release: CostBySize,
    pub free: Duration,
}

/// A duration that depends on a handle's bytes: measured points, the smallest first, a straight line between two, and
/// level before the first and behind the last. Without points it is zero.
#[derive(Clone, Copy, Debug)]
pub struct CostBySize(pub &'static [(usize, Duration)]);

const MIB: usize = 1 << 20;

const fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

impl DriverCosts {
    const H200: Self = Self {
        reserve: micros(5),
        create: CostBySize(&[(128 * MIB, micros(9)), (256 * MIB, micros(18))]),
        map: Duration::from_nanos(800),
        set_access: CostBySize(&[(128 * MIB, micros(22)), (256 * MIB, micros(35)), (1024 * MIB, micros(52))]),
        unmap: CostBySize(&[(128 * MIB, micros(15)), (1024 * MIB, micros(26))]),
        release: CostBySize(&[(2 * MIB, micros(10)), (128 * MIB, micros(49)), (1024 * MIB, micros(299))]),
        free: micros(5),
    };

    const FREE: Self = Self {
        reserve: Duration::ZERO,
        create: CostBySize(&[]),
        map: Duration::ZERO,
        set_access: CostBySize(&[]),
        unmap: CostBySize(&[]),
        release: CostBySize(&[]),
        free: Duration::ZERO,
    };

    /// An H200 under driver 580 (CUDA 13.0), measured. `free` was not measured and is taken to cost what `reserve` does.
    #[must_use]
    pub const fn h200() -> Self {
        Self::H200
    }

    /// Calls that take no time.
    #[must_use]
    pub const fn free() -> Self {
        Self::FREE
    }
}

impl CostBySize {
    /// The cost of one handle of so many bytes.
    #[must_use]
    pub fn of(&self, bytes: usize) -> Duration {
        let behind = self.0.partition_point(|(size, _)| *size <= bytes);
        let before = behind.checked_sub(1).and_then(|idx| self.0.get(idx));
        match (before, self.0.get(behind)) {
            (Some(&(low, from)), Some(&(high, to))) => {
                let share = (bytes - low) as f64 / (high - low) as f64;
                Duration::from_secs_f64(from.as_secs_f64() * (1.0 - share) + to.as_secs_f64() * share)
            }
            (Some((_, level)), None) | (None, Some((_, level))) => *level,
            (None, None) => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_level_at_the_ends_and_straight_between() {
        let release = DriverCosts::h200().release;
        for (mib, expected) in [(1, 10.0), (2, 10.0), (65, 29.5), (128, 49.0), (576, 174.0), (4096, 299.0)] {
            let cost = release.of(mib * MIB).as_secs_f64() * 1e6;
            assert!((cost - expected).abs() < 0.01, "{mib} MiB: {cost}");
        }
        assert_eq!(DriverCosts::h200().create.of(128 * MIB), micros(9));
        assert_eq!(DriverCosts::h200().set_access.of(256 * MIB), micros(35));
        assert_eq!(DriverCosts::free().release.of(MIB), Duration::ZERO);
    }
}
