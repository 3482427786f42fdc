//! The order of an epoch, computed instead of stored.

/// A bijection of `0..length` chosen by a seed and an epoch: any place of any epoch costs the same to look up, so a
/// reader resumes at a position without drawing what came before.
///
/// A balanced Feistel network over the next even number of bits, walked until it lands inside (Black and Rogaway,
/// "Ciphers with arbitrary finite domains", 2002).
#[derive(Debug, Clone)]
pub struct Permutation {
    length: u64,
    half_bits: u32,
    keys: [u64; Self::ROUNDS],
}

impl Permutation {
    const ROUNDS: usize = 6;

    /// The order of `epoch` over `length` entries.
    #[must_use]
    pub fn new(length: u64, seed: u64, epoch: u64) -> Self {
        let bits = (u64::BITS - length.saturating_sub(1).leading_zeros()).max(2);
        let mut state = mix(seed ^ mix(epoch.wrapping_add(0x9e37_79b9_7f4a_7c15)));
        let keys = std::array::from_fn(|_| {
            state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
            state
        });
        Self { length, half_bits: bits.div_ceil(2), keys }
    }

    /// The entry at `index` of the epoch, both in `0..length`.
    #[must_use]
    pub fn at(&self, index: u64) -> u64 {
        debug_assert!(index < self.length);
        let mask = (1u64 << self.half_bits) - 1;
        let mut value = index;
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for key in self.keys {
                (left, right) = (right, left ^ (mix(right ^ key) & mask));
            }
            value = left << self.half_bits | right;
            if value < self.length {
                return value;
            }
        }
    }
}

/// A number that a sample draws for itself, whatever batch and rank it falls to. `purpose` tells its draws apart.
#[must_use]
pub(super) fn draw(seed: u64, sample: u64, purpose: u64) -> u64 {
    mix(mix(seed ^ mix(purpose)).wrapping_add(sample.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The finaliser of `SplitMix64`.
fn mix(mut value: u64) -> u64 {
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(length: u64, seed: u64, epoch: u64) -> Vec<u64> {
        let permutation = Permutation::new(length, seed, epoch);
        (0..length).map(|index| permutation.at(index)).collect()
    }

    #[test]
    fn every_length_is_a_bijection() {
        for length in [1, 2, 3, 5, 16, 17, 100, 1023, 1024, 1025, 4097] {
            let mut seen = order(length, 7, 3);
            seen.sort_unstable();
            assert_eq!(seen, (0..length).collect::<Vec<_>>(), "length {length}");
        }
    }

    #[test]
    fn seed_and_epoch_change_the_order() {
        assert_eq!(order(100, 1, 0), order(100, 1, 0));
        assert_ne!(order(100, 1, 0), order(100, 1, 1));
        assert_ne!(order(100, 1, 0), order(100, 2, 0));
    }

    #[test]
    fn draws_are_even_and_differ_by_seed_sample_and_purpose() {
        let heads = (0..10_000).filter(|&sample| draw(5, sample, 0).is_multiple_of(2)).count();
        assert!((4800..5200).contains(&heads), "{heads}");
        let numbers = [draw(5, 1, 0), draw(6, 1, 0), draw(5, 2, 0), draw(5, 1, 1)];
        assert_eq!(numbers.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
    }

    #[test]
    fn entries_are_spread_evenly() {
        // The mean place of the first ten entries over many epochs, against that of a uniform shuffle.
        let (length, epochs) = (1000, 2000);
        for entry in 0..10 {
            let sum: u64 = (0..epochs).map(|epoch| Permutation::new(length, 11, epoch).at(entry)).sum();
            let mean = sum as f64 / epochs as f64;
            assert!((mean - 499.5).abs() < 4.0 * 288.7 / (epochs as f64).sqrt(), "entry {entry}: {mean}");
        }
    }
}
