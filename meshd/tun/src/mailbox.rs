//! The one queue into the overlay thread: commands of the control plane, and what the packet threads cannot decide.
//!
//! Two bounded lanes under one lock. Commands go first and have room of their own, so a flood from the network cannot
//! keep the control plane out; a full lane refuses at once, so nobody ever waits for the overlay thread.

use std::collections::VecDeque;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Packets and notices waiting.
const PUNTS_MAX: usize = 1024;
/// Bytes of packets waiting.
const PUNT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Commands waiting.
const COMMANDS_MAX: usize = 256;

#[derive(Debug)]
pub(crate) struct Mailbox<C, P> {
    lanes: Mutex<Lanes<C, P>>,
    filled: Condvar,
}

#[derive(Debug)]
struct Lanes<C, P> {
    commands: VecDeque<C>,
    punts: VecDeque<(usize, P)>,
    punt_bytes: usize,
}

/// What the overlay thread got.
#[derive(Debug)]
pub(crate) enum Mail<C, P> {
    Command(C),
    Punt(P),
}

impl<C, P> Mailbox<C, P> {
    pub(crate) fn new() -> Self {
        let lanes = Lanes { commands: VecDeque::new(), punts: VecDeque::new(), punt_bytes: 0 };
        Self { lanes: Mutex::new(lanes), filled: Condvar::new() }
    }

    /// Whether there was room.
    pub(crate) fn command(&self, command: C) -> bool {
        let mut lanes = self.lanes.lock();
        if lanes.commands.len() >= COMMANDS_MAX {
            return false;
        }
        lanes.commands.push_back(command);
        self.filled.notify_one();
        true
    }

    /// Whether there was room for a notice that holds `bytes` of packets.
    pub(crate) fn punt(&self, bytes: usize, punt: P) -> bool {
        let mut lanes = self.lanes.lock();
        if lanes.punts.len() >= PUNTS_MAX || lanes.punt_bytes + bytes > PUNT_BYTES_MAX {
            return false;
        }
        lanes.punt_bytes += bytes;
        lanes.punts.push_back((bytes, punt));
        self.filled.notify_one();
        true
    }

    /// Waits until there is something, or `deadline` passes.
    pub(crate) fn take(&self, deadline: Option<Instant>) -> Option<Mail<C, P>> {
        let mut lanes = self.lanes.lock();
        loop {
            if let Some(command) = lanes.commands.pop_front() {
                return Some(Mail::Command(command));
            }
            if let Some((bytes, punt)) = lanes.punts.pop_front() {
                lanes.punt_bytes -= bytes;
                return Some(Mail::Punt(punt));
            }
            match deadline {
                None => self.filled.wait(&mut lanes),
                Some(deadline) => {
                    if self.filled.wait_until(&mut lanes, deadline).timed_out()
                        && lanes.commands.is_empty()
                        && lanes.punts.is_empty()
                    {
                        return None;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_bounded_and_commands_go_first() {
        let mailbox = Mailbox::new();
        for index in 0..PUNTS_MAX {
            assert!(mailbox.punt(100, index));
        }
        assert!(!mailbox.punt(0, 0), "a full lane refuses");
        assert!(mailbox.command("now"));
        assert!(matches!(mailbox.take(None), Some(Mail::Command("now"))));
        assert!(matches!(mailbox.take(None), Some(Mail::Punt(0))));
        assert!(mailbox.punt(PUNT_BYTES_MAX - 1023 * 100, 0));
        assert!(matches!(mailbox.take(None), Some(Mail::Punt(1))));
        assert!(!mailbox.punt(101, 0), "bytes are bounded too");
    }

    #[test]
    fn waiting_ends_by_deadline_or_mail() {
        let mailbox: Mailbox<u8, ()> = Mailbox::new();
        assert!(mailbox.take(Some(Instant::now())).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| mailbox.take(None));
            assert!(mailbox.command(1));
            assert!(matches!(waiting.join().expect("no panic"), Some(Mail::Command(1))));
        });
    }
}
