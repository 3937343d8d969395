//! Whether changes follow from each other, and whether a watcher was told all of them.

use std::collections::BTreeMap;

use vdc_coord::{Event, Revision, Row};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventsError {
    #[error("changes are out of order: {first:?}, then {second:?}")]
    Order { first: Box<Event>, second: Box<Event> },
    #[error("{event:?} says what was before, but that was {before:?}")]
    Before { event: Box<Event>, before: Option<Box<Row>> },
    #[error("the row after a change does not follow from that before it: {0:?}")]
    After(Box<Event>),
    #[error("a watcher was told {told:?}, but {missed:?} comes before it")]
    Gap { missed: Box<Event>, told: Box<Event> },
    #[error("a watcher was told twice: {0:?}")]
    Repeat(Box<Event>),
    #[error("a watcher was told what never was, or not there: {told:?} in place of {expected:?}")]
    Foreign { told: Box<Event>, expected: Option<Box<Event>> },
    #[error("a watcher was told {told} of {changes} changes, the next is {next:?}")]
    Short { told: usize, changes: usize, next: Box<Event> },
}

/// What somebody watched: the keys from `first` up to before `end` (empty: the end of all keys), from a revision on, and up
/// to the last that they had time to be told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    pub first: Vec<u8>,
    pub end: Vec<u8>,
    pub from: Revision,
    pub upto: Revision,
}

/// Checks the changes of a store, as the group tells them from its first kept revision on: in the order of revisions, and of
/// keys within one; each says rightly what stood there before, and its row follows from that.
///
/// # Errors
/// [`EventsError::Order`], [`EventsError::Before`] and [`EventsError::After`].
pub fn check_log(events: &[Event]) -> Result<(), EventsError> {
    for pair in events.windows(2) {
        let [first, second] = pair else { continue };
        if (first.revision, &first.key[..]) >= (second.revision, &second.key[..]) {
            return Err(EventsError::Order { first: Box::new(first.clone()), second: Box::new(second.clone()) });
        }
    }
    // From the very first change on, what is not here was never there.
    let whole = events.first().is_some_and(|event| event.revision == Revision(1));
    let mut rows: BTreeMap<&[u8], &Option<Row>> = BTreeMap::new();
    for event in events {
        let known = rows.insert(&event.key, &event.after);
        if let Some(before) = known.or(whole.then_some(&None))
            && *before != event.before
        {
            let before = before.clone().map(Box::new);
            return Err(EventsError::Before { event: Box::new(event.clone()), before });
        }
        if !follows(event) {
            return Err(EventsError::After(Box::new(event.clone())));
        }
    }
    Ok(())
}

/// Whether the row after a change follows from the row before it.
fn follows(event: &Event) -> bool {
    let Event { revision, before, after, .. } = event;
    match (before, after) {
        (None, None) => false,
        (Some(before), None) => before.modified < *revision,
        (None, Some(after)) => after.created == *revision && after.modified == *revision && after.version >= 1,
        (Some(before), Some(after)) => {
            let goes_on = after.created == before.created && after.version > before.version;
            // Deleted and put again within one transaction.
            let anew = after.created == *revision;
            before.modified < *revision && after.modified == *revision && (goes_on || anew)
        }
    }
}

/// Checks what a watcher was told against all changes of the store, both in order: each change of what it watched, once.
///
/// # Errors
/// [`EventsError::Gap`], [`EventsError::Repeat`], [`EventsError::Foreign`] and [`EventsError::Short`].
pub fn check_watch(events: &[Event], told: &[Event], watched: &Watched) -> Result<(), EventsError> {
    let Watched { first, end, from, upto } = watched;
    let within = |event: &&Event| {
        let key = event.key.as_slice();
        event.revision >= *from && key >= first.as_slice() && (end.is_empty() || key < end.as_slice())
    };
    let expected: Vec<&Event> = events.iter().filter(within).collect();
    for (index, told_now) in told.iter().enumerate() {
        let next = expected.get(index).copied();
        if next == Some(told_now) {
            continue;
        }
        let boxed = Box::new(told_now.clone());
        if told[..index].contains(told_now) {
            return Err(EventsError::Repeat(boxed));
        }
        return Err(match next {
            Some(missed) if expected[index..].contains(&told_now) => {
                EventsError::Gap { missed: Box::new(missed.clone()), told: boxed }
            }
            _ => EventsError::Foreign { told: boxed, expected: next.cloned().map(Box::new) },
        });
    }
    match expected.get(told.len()) {
        Some(next) if next.revision <= *upto => {
            let changes = expected.iter().filter(|event| event.revision <= *upto).count();
            Err(EventsError::Short { told: told.len(), changes, next: Box::new((*next).clone()) })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: &str, created: u64, modified: u64, version: u64) -> Row {
        let (created, modified) = (Revision(created), Revision(modified));
        Row { value: value.as_bytes().to_vec().into(), created, modified, version, lease: None }
    }

    fn event(revision: u64, key: &str, before: Option<Row>, after: Option<Row>) -> Event {
        Event { revision: Revision(revision), key: key.as_bytes().to_vec().into(), before, after }
    }

    fn right() -> Vec<Event> {
        let (one, two, again) = (row("1", 1, 1, 1), row("2", 1, 3, 2), row("3", 6, 6, 1));
        vec![
            event(1, "a", None, Some(one.clone())),
            event(1, "b", None, Some(one.clone())),
            event(3, "a", Some(one.clone()), Some(two.clone())),
            event(4, "b", Some(one), None),
            event(6, "a", Some(two), Some(again)),
        ]
    }

    fn all() -> Watched {
        Watched { first: vec![], end: vec![], from: Revision(1), upto: Revision(6) }
    }

    #[test]
    fn right_changes_are_fine() {
        assert_eq!(check_log(&right()), Ok(()));
        assert_eq!(check_log(&right()[2..]), Ok(()), "what came before is not kept");
        assert_eq!(check_watch(&right(), &right(), &all()), Ok(()));
        let only_b = Watched { first: b"b".to_vec(), end: b"c".to_vec(), from: Revision(2), upto: Revision(6) };
        assert_eq!(check_watch(&right(), &right()[3..4], &only_b), Ok(()));
        let early = Watched { upto: Revision(3), ..all() };
        assert_eq!(check_watch(&right(), &right()[..3], &early), Ok(()), "there was no time for the others");
    }

    #[test]
    fn wrong_changes_are_caught() {
        let mut swapped = right();
        swapped.swap(0, 1);
        assert!(matches!(check_log(&swapped), Err(EventsError::Order { .. })));
        let mut lost = right();
        lost.remove(2);
        assert!(matches!(check_log(&lost), Err(EventsError::Before { .. })));
        let mut rootless = right();
        rootless.remove(1);
        assert!(matches!(check_log(&rootless), Err(EventsError::Before { .. })));
        let mut version = right();
        version[2].after = Some(row("2", 1, 3, 1));
        assert!(matches!(check_log(&version), Err(EventsError::After(_))));
        let mut nothing = right();
        nothing.push(event(7, "z", None, None));
        assert!(matches!(check_log(&nothing), Err(EventsError::After(_))));
    }

    #[test]
    fn gap_is_caught() {
        let mut told = right();
        told.remove(2);
        let caught = check_watch(&right(), &told, &all());
        assert!(matches!(caught, Err(EventsError::Gap { missed, .. }) if missed.revision == Revision(3)));
    }

    #[test]
    fn repeat_is_caught() {
        let mut told = right();
        told.insert(3, told[2].clone());
        assert!(matches!(check_watch(&right(), &told, &all()), Err(EventsError::Repeat(_))));
        let mut told = right();
        told.push(told[4].clone());
        assert!(matches!(check_watch(&right(), &told, &all()), Err(EventsError::Repeat(_))));
    }

    #[test]
    fn what_never_was_is_caught() {
        let mut told = right();
        told[2].after = Some(row("9", 1, 3, 2));
        assert!(matches!(check_watch(&right(), &told, &all()), Err(EventsError::Foreign { .. })));
        let other = Watched { first: b"b".to_vec(), ..all() };
        assert!(matches!(check_watch(&right(), &right(), &other), Err(EventsError::Foreign { .. })));
    }

    #[test]
    fn watcher_that_falls_silent_is_caught() {
        let caught = check_watch(&right(), &right()[..4], &all());
        assert!(matches!(caught, Err(EventsError::Short { told: 4, changes: 5, .. })), "{caught:?}");
    }
}
