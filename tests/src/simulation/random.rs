use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

/// The only source of chance in a simulation: SplitMix64, which any seed suits and which is the same everywhere.
#[derive(Debug)]
pub(super) struct Random(Mutex<u64>);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    /// Another generator, so that what is drawn from one does not shift what is drawn from the other.
    pub(super) fn fork(&self) -> Self {
        Self::new(self.next())
    }

    pub(super) fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number of a range. The bias of the modulus does not matter here.
    pub(super) fn of(&self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }

    /// From 0 up to 1.
    pub(super) fn fraction(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "both numbers fit into 53 bits")]
        let fraction = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        fraction
    }

    /// Whether something of this probability happens.
    pub(super) fn chance(&self, probability: f64) -> bool {
        probability > 0.0 && self.fraction() < probability
    }

    /// One of several.
    ///
    /// # Panics
    /// Where there are none.
    pub(super) fn pick<'a, T>(&self, of: &'a [T]) -> &'a T {
        let last = u64::try_from(of.len() - 1).expect("a length fits");
        &of[usize::try_from(self.of(0..=last)).expect("a place fits")]
    }
}
