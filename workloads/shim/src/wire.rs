//! What the shim and the daemon say to each other: the configuration file, commands, events, the exit record.
//!
//! Each message is one version byte and one CBOR value. Unknown fields are skipped, so a version adds fields only.

use minicbor::{Decode, Encode};

/// The version of all messages in this module.
const VERSION: u8 = 1;

/// Bytes of one message on the control socket.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a configuration: a filter of 4,096 instructions and much else.
pub(crate) const CONFIG_BYTES_MAX: usize = 256 * 1024;

/// `shim.cbor`: all that the shim must know, written by the daemon before the shim starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Config {
    /// 32 hexadecimal digits.
    #[n(0)]
    pub(crate) id: String,
    /// Of the workload's spec.
    #[n(1)]
    pub(crate) generation: u64,
    /// The network namespace to be in, by path.
    #[n(2)]
    pub(crate) netns: Option<String>,
    /// The seccomp filter: instructions in the machine's byte order. Empty: none.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub(crate) filter: Vec<u8>,
    /// The program gets a terminal.
    #[n(4)]
    pub(crate) tty: bool,
    /// The program's input stays open for attached clients.
    #[n(5)]
    pub(crate) stdin: bool,
    /// The program waits for a client, for 5 s at most, so that it misses nothing.
    #[n(6)]
    pub(crate) hold_for_attach: bool,
    /// The container's control group: the absolute path of `config.json`.
    #[n(7)]
    pub(crate) cgroup: String,
    /// The shim's own control group; absent: it stays where it started.
    #[n(8)]
    pub(crate) shim_cgroup: Option<String>,
    /// Where the log's segments are; absent: output goes to clients only.
    #[n(9)]
    pub(crate) log_directory: Option<String>,
    /// Bytes of one segment.
    #[n(10)]
    pub(crate) log_segment_bytes: u64,
    /// Segments that are kept.
    #[n(11)]
    pub(crate) log_segments: u32,
    /// Where the exit record goes.
    #[n(12)]
    pub(crate) exit_file: String,
    /// Whether the exit record must survive a power cut.
    #[n(13)]
    pub(crate) durable: bool,
    /// Host ports to hold for the container's life.
    #[n(14)]
    pub(crate) held: Vec<Held>,
    /// How to check the program's health.
    #[n(15)]
    pub(crate) health: Option<HealthCheck>,
}

/// A host port that is bound and never served, so that nobody else takes it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Held {
    /// An IP address as text; absent: all addresses of both families.
    #[n(0)]
    pub(crate) address: Option<String>,
    #[n(1)]
    pub(crate) port: u16,
    #[n(2)]
    pub(crate) udp: bool,
}

/// A program to run in the container by a schedule, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct HealthCheck {
    #[n(0)]
    pub(crate) args: Vec<minicbor::bytes::ByteVec>,
    #[n(1)]
    pub(crate) interval_ms: u64,
    #[n(2)]
    pub(crate) timeout_ms: u64,
    #[n(3)]
    pub(crate) retries: u32,
    #[n(4)]
    pub(crate) start_period_ms: u64,
}

/// What the daemon asks for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Command {
    /// Answered by [`Event::State`].
    #[n(0)]
    State,
    /// Lets the created program run: [`Event::Started`].
    #[n(1)]
    Start,
    /// A signal, and after `grace_ms` the end. Repeated: the shorter grace counts.
    #[n(2)]
    Stop {
        #[n(0)]
        signal: u8,
        #[n(1)]
        grace_ms: u64,
    },
    /// A signal to the container's first process.
    #[n(3)]
    Signal {
        #[n(0)]
        signal: u8,
    },
    /// Runs one more program: [`Event::ExecStarted`].
    #[n(4)]
    Exec(#[n(0)] Exec),
    /// A token for the streams of the container's own program: [`Event::Attached`].
    #[n(5)]
    Attach,
    /// The terminal's size.
    #[n(6)]
    Resize {
        #[n(0)]
        rows: u16,
        #[n(1)]
        columns: u16,
    },
    /// The exit has been noted: the shim may go.
    #[n(7)]
    Reap,
}

/// A program to run in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Exec {
    #[n(0)]
    pub(crate) args: Vec<minicbor::bytes::ByteVec>,
    #[n(1)]
    pub(crate) env: Vec<(String, String)>,
    #[n(2)]
    pub(crate) workdir: Option<String>,
    /// User, group, further groups, as numbers inside of the container.
    #[n(3)]
    pub(crate) user: Option<(u32, u32, Vec<u32>)>,
    /// Rows and columns.
    #[n(4)]
    pub(crate) tty: Option<(u16, u16)>,
    #[n(5)]
    pub(crate) stdin: bool,
}

/// What the shim says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Event {
    /// The container exists and its program waits.
    #[n(0)]
    Created {
        #[n(0)]
        pid: u32,
    },
    /// The program runs.
    #[n(1)]
    Started,
    /// It never will.
    #[n(2)]
    Failed {
        #[n(0)]
        step: String,
        #[n(1)]
        message: String,
        /// 125, 126 or 127.
        #[n(2)]
        code: i32,
    },
    #[n(3)]
    State {
        #[n(0)]
        phase: Phase,
        #[n(1)]
        pid: Option<u32>,
        #[n(2)]
        generation: u64,
        /// Unix time in milliseconds.
        #[n(3)]
        started_ms: Option<u64>,
        #[n(4)]
        health: Option<HealthState>,
        #[n(5)]
        exit: Option<Exit>,
    },
    /// The program runs; its streams are behind the token.
    #[n(4)]
    ExecStarted {
        #[n(0)]
        pid: u32,
        #[cbor(n(1), with = "minicbor::bytes")]
        token: [u8; 16],
    },
    /// The streams are behind the token.
    #[n(5)]
    Attached {
        #[cbor(n(0), with = "minicbor::bytes")]
        token: [u8; 16],
    },
    #[n(6)]
    Exited(#[n(0)] Exit),
    #[n(7)]
    Health {
        #[n(0)]
        state: HealthState,
        /// The end of the last check's output, 4 KiB at most.
        #[cbor(n(1), with = "minicbor::bytes")]
        output: Vec<u8>,
    },
    /// The command came at the wrong time.
    #[n(8)]
    Refused {
        #[n(0)]
        why: String,
    },
}

/// Where in its life the container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub(crate) enum Phase {
    #[n(0)]
    Creating,
    #[n(1)]
    Created,
    #[n(2)]
    Running,
    #[n(3)]
    Exited,
}

/// What the checks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub(crate) enum HealthState {
    #[n(0)]
    Starting,
    #[n(1)]
    Healthy,
    #[n(2)]
    Unhealthy,
}

/// How the container ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Exit {
    /// 128 + n for signal n.
    #[n(0)]
    pub(crate) code: i32,
    #[n(1)]
    pub(crate) signal: Option<u8>,
    /// The kernel killed in the container for want of memory.
    #[n(2)]
    pub(crate) oom_killed: bool,
    /// Unix time in milliseconds.
    #[n(3)]
    pub(crate) at_ms: u64,
    /// The program never ran.
    #[n(4)]
    pub(crate) start_failed: bool,
}

/// What came is no message of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadMessage;

/// One message.
pub(crate) fn encode<T: Encode<()>>(message: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    minicbor::encode(message, &mut bytes).expect("a vector takes every byte");
    bytes
}

/// Reads one message. The bytes are as long as the caller let them be.
///
/// # Errors
/// Another version, or bytes that are no such message.
pub(crate) fn decode<'a, T: Decode<'a, ()>>(bytes: &'a [u8]) -> Result<T, BadMessage> {
    let (version, body) = bytes.split_first().ok_or(BadMessage)?;
    if *version != VERSION {
        return Err(BadMessage);
    }
    minicbor::decode(body).map_err(|_| BadMessage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way() {
        let exec = Exec { args: vec![b"sh".to_vec().into()], user: Some((1, 2, vec![3])), ..Exec::default() };
        for command in [Command::Start, Command::Stop { signal: 15, grace_ms: 10_000 }, Command::Exec(exec)] {
            assert_eq!(decode::<Command>(&encode(&command)), Ok(command));
        }
        let exit = Exit { code: 137, signal: Some(9), oom_killed: true, at_ms: 1, start_failed: false };
        for event in [Event::Created { pid: 1 }, Event::Attached { token: [7; 16] }, Event::Exited(exit)] {
            assert_eq!(decode::<Event>(&encode(&event)), Ok(event));
        }
    }

    #[test]
    fn other_versions_and_garbage_are_refused() {
        let mut bytes = encode(&Command::Start);
        bytes[0] = VERSION + 1;
        assert_eq!(decode::<Command>(&bytes), Err(BadMessage));
        for garbage in [&[][..], &[VERSION], &[VERSION, 0xff, 0x00], &[VERSION, 0x9b, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]] {
            assert_eq!(decode::<Command>(garbage), Err(BadMessage), "{garbage:?}");
        }
    }
}
