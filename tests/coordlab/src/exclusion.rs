//! Whether two held one thing at a time.

use std::collections::BTreeMap;

use vdc_coord::LeaseId;

/// A time for which somebody counted on holding something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// What was held, usually a key.
    pub thing: Vec<u8>,
    pub holder: u64,
    pub generation: LeaseId,
    /// From here up to before `to_ns`, as the holder counts, told in the one time of the simulation.
    pub from_ns: u64,
    pub to_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExclusionError {
    #[error("two held it at a time: {first:?} and {second:?}")]
    Both { first: Box<Tenure>, second: Box<Tenure> },
    #[error("an older generation came after a newer one: {first:?}, then {second:?}")]
    Older { first: Box<Tenure>, second: Box<Tenure> },
    #[error("it ends before it begins: {0:?}")]
    Backwards(Box<Tenure>),
}

/// Checks that each thing had one holder at a time, and that the generations under which it was held grew. A holder may
/// prolong: the same holder with the same generation may overlap itself.
///
/// # Errors
/// [`ExclusionError`] with the two that contradict each other.
pub fn check_exclusion(tenures: &[Tenure]) -> Result<(), ExclusionError> {
    let mut things: BTreeMap<&[u8], Vec<&Tenure>> = BTreeMap::new();
    for tenure in tenures {
        if tenure.to_ns < tenure.from_ns {
            return Err(ExclusionError::Backwards(Box::new(tenure.clone())));
        }
        things.entry(&tenure.thing).or_default().push(tenure);
    }
    for held in things.values_mut() {
        held.sort_by_key(|tenure| (tenure.from_ns, tenure.to_ns));
        // If two that differ overlap, then one of them overlaps the one that lasts longest so far.
        let mut longest: Option<&Tenure> = None;
        for tenure in held.iter().copied() {
            let Some(before) = longest else {
                longest = Some(tenure);
                continue;
            };
            let pair = || (Box::new(before.clone()), Box::new(tenure.clone()));
            let same = before.holder == tenure.holder && before.generation == tenure.generation;
            if !same && tenure.from_ns < before.to_ns {
                let (first, second) = pair();
                return Err(ExclusionError::Both { first, second });
            }
            if tenure.generation < before.generation {
                let (first, second) = pair();
                return Err(ExclusionError::Older { first, second });
            }
            if tenure.to_ns >= before.to_ns {
                longest = Some(tenure);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenure(holder: u64, generation: u64, from_ns: u64, to_ns: u64) -> Tenure {
        Tenure { thing: b"lock".to_vec(), holder, generation: LeaseId(generation), from_ns, to_ns }
    }

    #[test]
    fn holders_one_after_the_other_are_fine() {
        let held = [tenure(2, 9, 20, 30), tenure(1, 4, 0, 10), tenure(1, 4, 5, 20), tenure(1, 12, 30, 31)];
        assert_eq!(check_exclusion(&held), Ok(()));
        assert_eq!(check_exclusion(&[]), Ok(()));
    }

    #[test]
    fn other_things_do_not_matter() {
        let other = Tenure { thing: b"other".to_vec(), ..tenure(2, 3, 0, 10) };
        assert_eq!(check_exclusion(&[tenure(1, 4, 0, 10), other]), Ok(()));
    }

    #[test]
    fn two_holders_are_caught() {
        for held in [
            vec![tenure(1, 4, 0, 10), tenure(2, 9, 9, 20)],
            vec![tenure(1, 4, 0, 10), tenure(2, 9, 3, 4)],
            vec![tenure(1, 4, 0, 10), tenure(1, 4, 1, 2), tenure(2, 9, 5, 6)],
            // The same node under two generations: one of them is fenced off.
            vec![tenure(1, 4, 0, 10), tenure(1, 9, 5, 6)],
        ] {
            let caught = check_exclusion(&held);
            assert!(matches!(caught, Err(ExclusionError::Both { .. })), "{held:?}: {caught:?}");
        }
    }

    #[test]
    fn generations_that_shrink_are_caught() {
        let caught = check_exclusion(&[tenure(1, 9, 0, 10), tenure(2, 4, 10, 20)]);
        assert!(matches!(caught, Err(ExclusionError::Older { .. })), "{caught:?}");
    }

    #[test]
    fn tenure_that_ends_before_it_begins_is_caught() {
        assert!(matches!(check_exclusion(&[tenure(1, 9, 10, 0)]), Err(ExclusionError::Backwards(_))));
    }
}
