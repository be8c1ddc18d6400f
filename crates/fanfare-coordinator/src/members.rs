//! Which coordinators there are, and which shards each of them consumes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fanfare_protocol::{Presence, RunId, fnv1a};
use tokio::time::Instant;

/// From one word about this coordinator to the next.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// After which a coordinator that was not heard of is gone.
const GONE_AFTER: Duration = Duration::from_secs(10);
/// Coordinators that are known at a time. Others are taken for absent, which does no harm but to the balance.
const MOST: usize = 1_000;

/// The coordinators that share the shards of a prefix, as this one sees them.
///
/// They need not agree: a shard that two consume has one active consumer, and the other stands by; one that nobody consumes is
/// consumed when whoever should is heard of, or gone.
#[derive(Debug)]
pub(crate) struct Members {
    own: RunId,
    shards: u32,
    others: BTreeMap<RunId, Other>,
    /// Those that are of no accepted user, the first [`MOST`] of them.
    distrusted: BTreeSet<RunId>,
}

/// What another has told of itself.
#[derive(Debug)]
struct Other {
    heard: Instant,
    shards: u32,
}

impl Members {
    pub(crate) const fn new(own: RunId, shards: u32) -> Self {
        Self { own, shards, others: BTreeMap::new(), distrusted: BTreeSet::new() }
    }

    /// What the others are told of this one.
    pub(crate) const fn presence(&self, leaving: bool) -> Presence {
        Presence { coordinator: self.own, shards: self.shards, leaving }
    }

    /// A coordinator has told of itself. Returns whether it is new here.
    pub(crate) fn heard(&mut self, presence: Presence, now: Instant) -> bool {
        let Presence { coordinator, shards, leaving } = presence;
        if coordinator == self.own {
            return false;
        }
        if leaving {
            self.others.remove(&coordinator);
            return false;
        }
        if self.others.len() >= MOST && !self.others.contains_key(&coordinator) {
            return false;
        }
        let before = self.others.insert(coordinator, Other { heard: now, shards });
        if self.differs(shards, before.as_ref()) {
            tracing::error!(
                %coordinator,
                "another coordinator of this prefix knows of {shards} shards, and this one of {}: give all of them, and all \
                 publishers, the same number",
                self.shards
            );
        }
        before.is_none()
    }

    /// Whether another has another number of shards, and did not say so before.
    fn differs(&self, shards: u32, before: Option<&Other>) -> bool {
        shards != self.shards && before.is_none_or(|before| before.shards != shards)
    }

    /// A coordinator of no accepted user has told of itself. Returns whether it is new here.
    pub(crate) fn distrust(&mut self, coordinator: RunId) -> bool {
        self.distrusted.len() < MOST && self.distrusted.insert(coordinator)
    }

    /// Forgets those who were not heard of for long.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.others.retain(|_, other| now.saturating_duration_since(other.heard) < GONE_AFTER);
    }

    /// The shards that are this one's. Each is given to whom it suits best of those that have not got their share yet: so all
    /// have the same number, give or take one, and few shards move when a coordinator comes or goes.
    pub(crate) fn own_shards(&self) -> BTreeSet<u32> {
        let members: Vec<RunId> = self.others.keys().copied().chain([self.own]).collect();
        let share = (self.shards as usize).div_ceil(members.len());
        let mut given: BTreeMap<RunId, usize> = BTreeMap::new();
        let mut own = BTreeSet::new();
        for shard in 0..self.shards {
            let has_room = |member: &&RunId| given.get(*member).is_none_or(|shards| *shards < share);
            let best = members.iter().filter(has_room).max_by_key(|member| suits(**member, shard));
            let best = *best.expect("the shares of all are as many as the shards");
            *given.entry(best).or_default() += 1;
            if best == self.own {
                own.insert(shard);
            }
        }
        own
    }
}

/// How well a shard suits a coordinator: FNV-1a over both. All coordinators come to the same number.
fn suits(coordinator: RunId, shard: u32) -> u64 {
    fnv1a(format!("{shard}/{coordinator}").into_bytes())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const SHARDS: u32 = 16;

    fn id(n: u128) -> RunId {
        RunId::from(Uuid::from_u128(n.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)))
    }

    /// The shards of each coordinator, as it sees them itself.
    fn shared_by(coordinators: std::ops::Range<u128>) -> BTreeMap<u128, BTreeSet<u32>> {
        let now = Instant::now();
        let of = |own| {
            let mut members = Members::new(id(own), SHARDS);
            for other in coordinators.clone() {
                members.heard(Presence { coordinator: id(other), shards: SHARDS, leaving: false }, now);
            }
            (own, members.own_shards())
        };
        coordinators.clone().map(of).collect()
    }

    #[test]
    fn each_shard_is_one_coordinators_and_all_have_a_fair_share() {
        for coordinators in 1..=20 {
            let shares = shared_by(0..coordinators);
            let all: Vec<u32> = shares.values().flatten().copied().collect();
            assert_eq!(all.len(), SHARDS as usize);
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), SHARDS as usize);
            let most = (SHARDS as usize).div_ceil(usize::try_from(coordinators).unwrap());
            assert!(shares.values().all(|shards| shards.len() <= most), "{shares:?}");
        }
    }

    #[test]
    fn most_shards_stay_where_they_are_when_one_more_comes() {
        let (before, after) = (shared_by(0..4), shared_by(0..5));
        let kept: usize = before.iter().map(|(one, shards)| shards.intersection(&after[one]).count()).sum();
        assert!(kept >= SHARDS as usize / 2, "{kept} of {SHARDS}: {before:?}, {after:?}");
    }

    #[test]
    fn another_number_of_shards_is_told_once_and_again_where_it_changes() {
        let members = Members::new(id(0), SHARDS);
        let before = |shards| Other { heard: Instant::now(), shards };
        assert!(members.differs(SHARDS - 1, None));
        assert!(!members.differs(SHARDS - 1, Some(&before(SHARDS - 1))));
        assert!(members.differs(SHARDS - 2, Some(&before(SHARDS - 1))));
        assert!(!members.differs(SHARDS, Some(&before(SHARDS - 1))) && !members.differs(SHARDS, None));
    }

    #[test]
    fn who_is_not_trusted_is_new_once_and_given_nothing() {
        let mut members = Members::new(id(0), SHARDS);
        assert!(members.distrust(id(1)) && members.distrust(id(2)) && !members.distrust(id(1)));
        assert_eq!(members.own_shards().len(), SHARDS as usize);
    }

    #[test]
    fn who_leaves_or_is_not_heard_of_is_given_nothing() {
        let now = Instant::now();
        let mut members = Members::new(id(0), SHARDS);
        let presence = |n, leaving| Presence { coordinator: id(n), shards: SHARDS, leaving };
        assert!(members.heard(presence(1, false), now) && members.heard(presence(2, false), now));
        assert!(!members.heard(presence(1, false), now), "it is known by now");
        assert!(members.own_shards().len() < SHARDS as usize / 2);
        members.heard(presence(1, true), now);
        members.expire(now + GONE_AFTER);
        assert_eq!(members.own_shards().len(), SHARDS as usize);
    }
}
