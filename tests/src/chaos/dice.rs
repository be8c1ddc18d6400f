/// Choices that one seed decides: SplitMix64, which any start gives good numbers.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Dice of a seed. `of` tells apart those that share it.
    #[must_use]
    pub(crate) fn new(seed: u64, of: &str) -> Self {
        // FNV-1a, which is the same everywhere and for ever.
        let start = of.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(start)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to, and without, `end`.
    ///
    /// # Panics
    /// Where `end` is 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number to choose one of any few with, modulo how many there are.
    pub(crate) fn index(&mut self) -> usize {
        (self.next() >> 40) as usize
    }

    /// A number of a range, whose ends are both in it.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// A number up to `most`, of which as many are below 10 as between 10 and 100 and so on.
    pub(crate) fn magnitude(&mut self, most: u64) -> u64 {
        let bits = u64::from(most.ilog2()) + 1;
        let ceiling = (1 << self.between(1, bits)) - 1;
        self.between(1, most.min(ceiling))
    }

    /// True in so many of a hundred cases.
    pub(crate) fn percent(&mut self, of_a_hundred: u64) -> bool {
        self.below(100) < of_a_hundred
    }

    /// One of these, each as often as its weight says.
    ///
    /// # Panics
    /// Where there is none.
    pub(crate) fn weighted<T: Copy>(&mut self, choices: &[(u64, T)]) -> T {
        let mut left = self.below(choices.iter().map(|(weight, _)| weight).sum());
        for (weight, choice) in choices {
            match left.checked_sub(*weight) {
                Some(less) => left = less,
                None => return *choice,
            }
        }
        unreachable!("what is left is below the sum of all weights")
    }
}
