//! How much may be asked for. Every refusal names the thing, its size and the limit.

use crate::{Command, Condition, Op, Refusal, Transaction};

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Longest value in bytes.
pub const VALUE_BYTES_MAX: usize = 256 << 10;
/// Comparisons and changes of one transaction.
pub const STEPS_MAX: usize = 512;
/// Bytes of the keys and values of one transaction.
pub const TRANSACTION_BYTES_MAX: usize = 1 << 20;
/// Rows that one transaction may delete.
pub const DELETE_MAX: usize = 10_000;
/// Bytes of keys and rows that one revision may take away or put something else in place of. Its changes carry them, and all
/// changes of a revision travel together.
pub const DISPLACED_BYTES_MAX: usize = 2 << 20;
/// Rows of one page of a range.
pub const PAGE_ROWS_MAX: usize = 1_000;
/// Bytes of one page of a range; its first row is returned however long it is.
pub const PAGE_BYTES_MAX: usize = 1 << 20;
/// Shortest and longest time to live of a lease, in milliseconds of the group's time.
pub const LEASE_MS_MIN: u64 = 1_000;
pub const LEASE_MS_MAX: u64 = 86_400_000;
/// Leases at a time.
pub const LEASES_MAX: u64 = 100_000;
/// Answers that are kept for each client; so many requests of a client may be under way.
pub const WINDOW: u64 = 64;
/// Clients that are remembered; the one idle for longest makes way.
pub const CLIENTS_MAX: u64 = 10_000;
/// Bytes of the answers that are kept for all clients; one client's [`WINDOW`] of the longest fits twice.
pub const ANSWER_BYTES_MAX: u64 = 160 << 20;
/// Changes that are kept for watches and for reading what was, in number and in bytes.
pub const EVENTS_MAX: u64 = 100_000;
pub const EVENT_BYTES_MAX: u64 = 64 << 20;
/// Bytes of the requests of one entry; one request alone may be somewhat longer than its transaction.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Longest encoded request in bytes: a transaction and what frames it.
pub const REQUEST_BYTES_MAX: usize = TRANSACTION_BYTES_MAX + STEPS_MAX * 64 + 256;

/// Checks a key.
///
/// # Errors
/// [`Refusal::EmptyKey`] and [`Refusal::KeyTooLong`].
pub fn check_key(key: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(Refusal::KeyTooLong { bytes: key.len() as u64, bytes_max: KEY_BYTES_MAX as u64 });
    }
    Ok(())
}

pub(crate) fn check_value(value: &[u8]) -> Result<(), Refusal> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(Refusal::ValueTooLong { bytes: value.len() as u64, bytes_max: VALUE_BYTES_MAX as u64 });
    }
    Ok(())
}

/// Checks a range: `from` is below `to`, where an empty `to` means the end of all keys.
///
/// # Errors
/// [`Refusal::BadRange`] and [`Refusal::KeyTooLong`].
pub fn check_range(from: &[u8], to: &[u8]) -> Result<(), Refusal> {
    for end in [from, to] {
        // An end may be one byte longer than a key: what follows a longest key.
        if end.len() > KEY_BYTES_MAX + 1 {
            return Err(Refusal::KeyTooLong { bytes: end.len() as u64, bytes_max: KEY_BYTES_MAX as u64 });
        }
    }
    if to.is_empty() || from < to { Ok(()) } else { Err(Refusal::BadRange) }
}

/// Checks a command before it is proposed, and again when it is applied.
///
/// # Errors
/// The [`Refusal`] of its first part that is out of bounds.
pub fn check(command: &Command) -> Result<(), Refusal> {
    match command {
        Command::Transact(transaction) => check_transaction(transaction),
        Command::GrantLease { ttl_ms } => {
            if (LEASE_MS_MIN..=LEASE_MS_MAX).contains(ttl_ms) {
                Ok(())
            } else {
                Err(Refusal::BadTtl { ttl_ms: *ttl_ms, ttl_ms_min: LEASE_MS_MIN, ttl_ms_max: LEASE_MS_MAX })
            }
        }
        Command::Open | Command::KeepAlive { .. } | Command::Revoke { .. } | Command::Compact { .. } => Ok(()),
    }
}

fn check_transaction(transaction: &Transaction) -> Result<(), Refusal> {
    let steps = transaction.compares.len() + transaction.success.len() + transaction.failure.len();
    if steps > STEPS_MAX {
        return Err(Refusal::TooManySteps { steps: steps as u64, steps_max: STEPS_MAX as u64 });
    }
    let mut bytes = 0_usize;
    for compare in &transaction.compares {
        // Which key does not matter where a lease is asked about, but its length does.
        if !matches!(compare.condition, Condition::LeaseHeld(_)) || !compare.key.is_empty() {
            check_key(&compare.key)?;
        }
        bytes += compare.key.len();
        if let Condition::Value(value) = &compare.condition {
            check_value(value)?;
            bytes += value.len();
        }
    }
    for op in transaction.success.iter().chain(&transaction.failure) {
        match op {
            Op::Put { key, value, .. } => {
                check_key(key)?;
                check_value(value)?;
                bytes += key.len() + value.len();
            }
            Op::Delete { key } | Op::Read { key } => {
                check_key(key)?;
                bytes += key.len();
            }
            Op::DeleteRange { from, to } => {
                check_range(from, to)?;
                bytes += from.len() + to.len();
            }
        }
    }
    if bytes > TRANSACTION_BYTES_MAX {
        return Err(Refusal::TransactionTooLong { bytes: bytes as u64, bytes_max: TRANSACTION_BYTES_MAX as u64 });
    }
    Ok(())
}
