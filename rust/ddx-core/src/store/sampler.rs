//! Which rows a batch holds: those of one aspect bucket, in an order that is computed and not stored.

use super::order::Permutation;

/// Rows in one or several buckets, to be cut into batches of one bucket each.
///
/// Every bucket is an endless stream of its rows, epoch after epoch in another order, cut into batches; a batch may run on
/// over the end of an epoch. An epoch `e` holds those batches of a bucket of `n` rows that are whole after `e + 1` times
/// `n` rows and were not after `e` times: every row comes as often as any other, none is dropped, and where a batch lies
/// follows from its number alone. Within an epoch the buckets are shuffled.
#[derive(Debug)]
pub(super) struct Sampler {
    seed: u64,
    batch_size: u64,
    /// Rows of each bucket.
    buckets: Vec<u64>,
}

/// What one batch holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    /// Number of the bucket.
    pub bucket: usize,
    /// Places among the bucket's rows, one a sample.
    pub places: Vec<u64>,
}

impl Sampler {
    /// Bucket `i` holds `buckets[i]` rows; not all may be empty.
    pub fn new(buckets: Vec<u64>, batch_size: u64, seed: u64) -> Self {
        Self { seed, batch_size, buckets }
    }

    /// What is in the batch at a position, counted from the start of training.
    pub fn batch(&self, position: u64) -> Chosen {
        let epoch = self.epoch_of(position);
        let mut place = position - self.batches_before(epoch);
        if self.buckets.len() > 1 {
            let in_epoch = self.batches_before(epoch + 1) - self.batches_before(epoch);
            place = Permutation::new(in_epoch, self.seed ^ BUCKETS, epoch).at(place);
        }
        for (bucket, &length) in self.buckets.iter().enumerate() {
            let (first, end) = (self.whole(length, epoch), self.whole(length, epoch + 1));
            if place < end - first {
                return Chosen { bucket, places: self.places(length, first + place) };
            }
            place -= end - first;
        }
        unreachable!("the buckets' batches are all the batches of an epoch")
    }

    /// The places in a batch of a bucket of so many rows, its batches counted from the start of training.
    fn places(&self, length: u64, batch: u64) -> Vec<u64> {
        let (mut sample, end) = (batch * self.batch_size, (batch + 1) * self.batch_size);
        let mut places = Vec::with_capacity(self.batch_size as usize);
        while sample < end {
            let epoch = sample / length;
            let order = Permutation::new(length, self.seed, epoch);
            let until = end.min((epoch + 1) * length);
            places.extend((sample..until).map(|sample| order.at(sample % length)));
            sample = until;
        }
        places
    }

    /// Batches of a bucket of so many rows that are whole after so many epochs.
    fn whole(&self, length: u64, epochs: u64) -> u64 {
        (u128::from(epochs) * u128::from(length) / u128::from(self.batch_size)) as u64
    }

    fn batches_before(&self, epoch: u64) -> u64 {
        self.buckets.iter().map(|&length| self.whole(length, epoch)).sum()
    }

    /// The epoch that a batch is in: the last that does not begin after it.
    fn epoch_of(&self, position: u64) -> u64 {
        // Up to here there are more batches than `position`: no bucket holds back more than one.
        let num_rows: u128 = self.buckets.iter().map(|&length| u128::from(length)).sum();
        let samples = (u128::from(position) + self.buckets.len() as u128 + 1) * u128::from(self.batch_size);
        let (mut low, mut high) = (0, (samples / num_rows + 1) as u64);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.batches_before(middle) <= position { low = middle } else { high = middle }
        }
        low
    }
}

// What the order of the buckets is drawn for, beside that of the rows.
const BUCKETS: u64 = 0x6275_636b_6574_7321;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn one_bucket_runs_on_over_the_end_of_an_epoch() {
        let sampler = Sampler::new(vec![10], 4, 7);
        let mut seen = Vec::new();
        for position in 0..5 {
            seen.extend(sampler.batch(position).places);
        }
        for epoch in seen.chunks(10) {
            let mut rows = epoch.to_vec();
            rows.sort_unstable();
            assert_eq!(rows, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(seen[..10], seen[10..]);
    }

    #[test]
    fn a_batch_is_of_one_bucket_and_every_row_comes_as_often() {
        // One bucket is smaller than a batch, and one is empty.
        let buckets = vec![37, 0, 3, 16];
        let sampler = Sampler::new(buckets.clone(), 8, 3);
        let (mut counts, mut order) = (BTreeMap::<(usize, u64), u64>::new(), Vec::new());
        for position in 0..7 * 8 {
            // 56 rows: seven batches an epoch
            let chosen = sampler.batch(position);
            assert!(chosen.places.iter().all(|&place| place < buckets[chosen.bucket]), "{chosen:?}");
            assert_eq!(chosen, sampler.batch(position));
            chosen.places.iter().for_each(|&place| *counts.entry((chosen.bucket, place)).or_default() += 1);
            order.push(chosen.bucket);
        }
        assert_eq!(counts.len(), 56);
        assert!(counts.values().all(|&count| count == 8), "after eight epochs of 56 rows: {counts:?}");
        assert!(order.windows(2).any(|pair| pair[0] > pair[1]) && order.windows(2).any(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_late_position_is_found_at_once() {
        let sampler = Sampler::new(vec![1000, 1], 64, 1);
        for position in [0, 1, 15, 16, 1 << 40] {
            let epoch = sampler.epoch_of(position);
            assert!(sampler.batches_before(epoch) <= position && position < sampler.batches_before(epoch + 1));
        }
    }
}
