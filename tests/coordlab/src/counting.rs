//! Whether what was acknowledged was done once.

use std::collections::BTreeMap;

/// What a client knows of something that it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Done,
    /// Certainly not done.
    Failed,
    Unknown,
}

/// One step of a counter, or anything else that is to be done once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Increment {
    /// Differs from that of every other.
    pub token: u64,
    pub by: u64,
    pub fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CountError {
    #[error("two were asked for with the same token {token:#x}")]
    SameToken { token: u64 },
    #[error("{token:#x} was acknowledged and is lost")]
    Lost { token: u64 },
    #[error("{token:#x} was done {times} times")]
    Repeated { token: u64, times: usize },
    #[error("{token:#x} failed, and was done all the same")]
    DoneThoughFailed { token: u64 },
    #[error("{token:#x} was done, and nobody asked for it")]
    Foreign { token: u64 },
    #[error("the counter is at {total}, between {least} and {most} it must be")]
    Total { total: u128, least: u128, most: u128 },
}

/// Checks a counter's end against what was asked for: all that was acknowledged counts, what failed does not, and of what is
/// unknown any part may.
///
/// # Errors
/// [`CountError::Total`]. What was lost may hide behind something unknown: [`check_applied`] is exact.
pub fn check_total(increments: &[Increment], total: u64) -> Result<(), CountError> {
    let sum = |fate| increments.iter().filter(|i| i.fate == fate).map(|i| u128::from(i.by)).sum::<u128>();
    let (least, total) = (sum(Fate::Done), u128::from(total));
    let most = least + sum(Fate::Unknown);
    if (least..=most).contains(&total) { Ok(()) } else { Err(CountError::Total { total, least, most }) }
}

/// Checks what was done, by token, against what was asked for.
///
/// # Errors
/// [`CountError`] for the first token that contradicts.
pub fn check_applied(increments: &[Increment], applied: &[u64]) -> Result<(), CountError> {
    let mut times: BTreeMap<u64, usize> = BTreeMap::new();
    for token in applied {
        *times.entry(*token).or_default() += 1;
    }
    let mut fates: BTreeMap<u64, Fate> = BTreeMap::new();
    for Increment { token, fate, .. } in increments {
        if fates.insert(*token, *fate).is_some() {
            return Err(CountError::SameToken { token: *token });
        }
    }
    for (&token, &fate) in &fates {
        match (fate, times.remove(&token).unwrap_or(0)) {
            (Fate::Done, 0) => return Err(CountError::Lost { token }),
            (Fate::Failed, 1..) => return Err(CountError::DoneThoughFailed { token }),
            (_, times @ 2..) => return Err(CountError::Repeated { token, times }),
            (Fate::Done | Fate::Unknown, 0 | 1) | (Fate::Failed, 0) => {}
        }
    }
    match times.first_key_value() {
        Some((&token, _)) => Err(CountError::Foreign { token }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: [Increment; 4] = [
        Increment { token: 1, by: 1, fate: Fate::Done },
        Increment { token: 2, by: 10, fate: Fate::Done },
        Increment { token: 3, by: 100, fate: Fate::Failed },
        Increment { token: 4, by: 1_000, fate: Fate::Unknown },
    ];

    #[test]
    fn each_once_is_fine() {
        assert_eq!(check_applied(&ASKED, &[2, 1]), Ok(()));
        assert_eq!(check_applied(&ASKED, &[4, 2, 1]), Ok(()));
        assert_eq!(check_total(&ASKED, 11), Ok(()));
        assert_eq!(check_total(&ASKED, 1_011), Ok(()));
    }

    #[test]
    fn wrong_counts_are_caught() {
        for (applied, expected) in [
            (&[1][..], CountError::Lost { token: 2 }),
            (&[1, 2, 1], CountError::Repeated { token: 1, times: 2 }),
            (&[1, 2, 4, 4, 4], CountError::Repeated { token: 4, times: 3 }),
            (&[1, 2, 3], CountError::DoneThoughFailed { token: 3 }),
            (&[1, 2, 9], CountError::Foreign { token: 9 }),
        ] {
            assert_eq!(check_applied(&ASKED, applied), Err(expected), "{applied:?}");
        }
        assert_eq!(check_applied(&[ASKED[0], ASKED[0]], &[1]), Err(CountError::SameToken { token: 1 }));
    }

    #[test]
    fn wrong_totals_are_caught() {
        for total in [0, 10, 1_012] {
            let caught = Err(CountError::Total { total: total.into(), least: 11, most: 1_011 });
            assert_eq!(check_total(&ASKED, total), caught);
        }
    }
}
