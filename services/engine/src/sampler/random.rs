/// A number that depends on nothing but its key: a generator with a counter instead of a state, so that preemption,
/// batching and the order of requests cannot change a draw.
pub(super) fn random(seed: u64, sequence_idx: u32, position: u64) -> u64 {
    mix(mix(mix(seed) ^ u64::from(sequence_idx)) ^ position)
}

/// The output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) after its increment.
fn mix(key: u64) -> u64 {
    let mut z = key.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_evenly_spread() {
        let num = 20_000;
        let mut counts = [0; 10];
        for position in 0..num {
            counts[((u128::from(random(7, 0, position)) * 10) >> 64) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (count - 2_000_i32).abs() < 200), "{counts:?}");
    }
}
