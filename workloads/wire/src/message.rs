//! What the shim and the daemon say to each other: the configuration file, commands, events, the exit record.
//!
//! Each message is one version byte and one CBOR value. Unknown fields are skipped, so a version adds fields only.

use minicbor::{Decode, Encode};

/// The version of all messages in this module.
const VERSION: u8 = 1;

/// Bytes of one message on the control socket.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a configuration: a filter of 4,096 instructions and much else.
pub const CONFIG_BYTES_MAX: usize = 256 * 1024;

/// `shim.cbor`: all that the shim must know, written by the daemon before the shim starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Config {
    /// 32 hexadecimal digits.
    #[n(0)]
    pub id: String,
    /// Of the workload's spec.
    #[n(1)]
    pub generation: u64,
    /// The network namespace to be in, by path.
    #[n(2)]
    pub netns: Option<String>,
    /// The seccomp filter: instructions in the machine's byte order. Empty: none.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub filter: Vec<u8>,
    /// The program gets a terminal.
    #[n(4)]
    pub tty: bool,
    /// The program's input stays open for attached clients.
    #[n(5)]
    pub stdin: bool,
    /// The program waits for a client, for 5 s at most, so that it misses nothing.
    #[n(6)]
    pub hold_for_attach: bool,
    /// The container's control group: the absolute path of `config.json`.
    #[n(7)]
    pub cgroup: String,
    /// The shim's own control group; absent: it stays where it started.
    #[n(8)]
    pub shim_cgroup: Option<String>,
    /// Where the log's segments are; absent: output goes to clients only.
    #[n(9)]
    pub log_directory: Option<String>,
    /// Bytes of one segment.
    #[n(10)]
    pub log_segment_bytes: u64,
    /// Segments that are kept.
    #[n(11)]
    pub log_segments: u32,
    /// Where the exit record goes.
    #[n(12)]
    pub exit_file: String,
    /// Whether the exit record must survive a power cut.
    #[n(13)]
    pub durable: bool,
    /// Host ports to hold for the container's life.
    #[n(14)]
    pub held: Vec<Held>,
    /// How to check the program's health.
    #[n(15)]
    pub health: Option<HealthCheck>,
}

/// A host port that is bound and never served, so that nobody else takes it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Held {
    /// An IP address as text; absent: all addresses of both families.
    #[n(0)]
    pub address: Option<String>,
    /// 0 would be any port, and no port at all to hold.
    #[n(1)]
    pub port: u16,
    /// UDP, else TCP.
    #[n(2)]
    pub udp: bool,
}

/// A program to run in the container by a schedule, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HealthCheck {
    /// The program and its arguments.
    #[n(0)]
    pub args: Vec<minicbor::bytes::ByteVec>,
    /// Between the end of one check and the next; 100 at least.
    #[n(1)]
    pub interval_ms: u64,
    /// After which a check has failed; 100 at least.
    #[n(2)]
    pub timeout_ms: u64,
    /// Failures in a row that make the program unhealthy.
    #[n(3)]
    pub retries: u32,
    /// After the start, during which failures do not count.
    #[n(4)]
    pub start_period_ms: u64,
}

/// What the daemon asks for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Command {
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
pub struct Exec {
    /// The program and its arguments.
    #[n(0)]
    pub args: Vec<minicbor::bytes::ByteVec>,
    /// Added to the container's environment, or replacing its entries.
    #[n(1)]
    pub env: Vec<(String, String)>,
    /// The container's own when absent.
    #[n(2)]
    pub workdir: Option<String>,
    /// User, group, further groups, as numbers inside of the container.
    #[n(3)]
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// Rows and columns of a terminal.
    #[n(4)]
    pub tty: Option<(u16, u16)>,
    /// Its input is the client's; otherwise it is empty.
    #[n(5)]
    pub stdin: bool,
}

/// What the shim says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Event {
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
pub enum Phase {
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
pub enum HealthState {
    #[n(0)]
    Starting,
    #[n(1)]
    Healthy,
    #[n(2)]
    Unhealthy,
}

/// How the container ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Exit {
    /// 128 + n for signal n.
    #[n(0)]
    pub code: i32,
    /// The signal that ended it.
    #[n(1)]
    pub signal: Option<u8>,
    /// The kernel killed in the container for want of memory.
    #[n(2)]
    pub oom_killed: bool,
    /// Unix time in milliseconds.
    #[n(3)]
    pub at_ms: u64,
    /// The program never ran.
    #[n(4)]
    pub start_failed: bool,
}

/// What came is no message of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of version {VERSION}")]
pub struct BadMessage;

/// Writes one message.
///
/// # Panics
/// Never: a vector takes every byte.
pub fn encode<T: Encode<()>>(message: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    minicbor::encode(message, &mut bytes).expect("a vector takes every byte");
    bytes
}

/// Reads one message. The bytes are as long as the caller let them be.
///
/// # Errors
/// Another version, or bytes that are no such message.
pub fn decode<'a, T: Decode<'a, ()>>(bytes: &'a [u8]) -> Result<T, BadMessage> {
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

    /// Shims of the last version live on under a daemon of the next: these bytes stay what they are.
    #[test]
    fn messages_have_these_bytes() {
        let exit = Exit { code: 137, signal: Some(9), oom_killed: true, at_ms: 1_000, start_failed: false };
        let stop = Command::Stop { signal: 15, grace_ms: 10_000 };
        let state = Event::State {
            phase: Phase::Running,
            pid: Some(77),
            generation: 7,
            started_ms: None,
            health: Some(HealthState::Healthy),
            exit: None,
        };
        for (bytes, expected) in [
            (encode(&exit), "0185188909f51903e8f4"),
            (encode(&stop), "018202820f192710"),
            (encode(&Command::Start), "01820180"),
            (encode(&Event::Attached { token: [7; 16] }), "018205815007070707070707070707070707070707"),
            (encode(&state), "0182038502184d07f601"),
        ] {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, expected);
        }
    }

    #[test]
    fn other_versions_and_garbage_are_refused() {
        let mut bytes = encode(&Command::Start);
        bytes[0] = VERSION + 1;
        assert_eq!(decode::<Command>(&bytes), Err(BadMessage));
        for garbage in
            [&[][..], &[VERSION], &[VERSION, 0xff, 0x00], &[VERSION, 0x9b, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]]
        {
            assert_eq!(decode::<Command>(garbage), Err(BadMessage), "{garbage:?}");
        }
    }
}
