//! The overlay of one VDC on one node, as a state machine without IO: peers, lazy tunnels, paths, and what is dropped.
//!
//! [`Overlay`] is the truth about who may talk, which tunnels are up and over which path. The packet threads of a real
//! node work from a picture that is taken from it ([`Overlay::tunnels`]) and hand it what needs a decision; in simulations
//! every packet goes through it. Cryptography stands behind [`Noise`]: boringtun on a node, [`sim::SimNoise`] in virtual
//! time.
//!
//! What holds, whatever comes in:
//! - a packet is delivered only if its source is the sending peer's own and its destination is ours;
//! - whoever is not in the member set any more is cut off before the call returns;
//! - no packet goes to an idle peer, and strangers cannot make us send to anybody but members, or more than a little;
//! - queues are bounded, oldest first out, and every drop is counted with its [`DropReason`];
//! - the same inputs at the same times with the same seed give the same outputs.
//!
//! Not here: sockets, clocks, randomness, names, policy (the kernel's table judges flows), and how endpoints are found
//! (the control plane is asked through [`Event::EndpointsWanted`]).
#![forbid(unsafe_code)]

mod agent;
mod budget;
pub mod demux;
mod drops;
mod members;
pub mod noise;
mod overlay;
pub mod packet;
mod path;
mod random;
pub mod sim;
mod tunnel;

#[cfg(test)]
mod tests;

pub use agent::{CANDIDATES_MAX, FAN_OUT_MAX};
pub use drops::{DropReason, Drops};
pub use members::Member;
pub use noise::{Identified, Noise, NoiseFactory, NoiseStatus, Opened, Sealed, Tick, TunnelIndex};
pub use overlay::{Event, Overlay, OverlayConfig, TUNNELS_MAX, Transmit, TunnelRef, TunnelState, TunnelView};
pub use path::{Candidate, PathAddress, Source, Tier};
pub use tunnel::{QUEUE_BYTES_MAX, QUEUE_PACKETS_MAX};
