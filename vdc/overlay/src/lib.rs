//! The overlay of one VDC on one node, as a state machine without IO: peers, lazy tunnels, paths, and what is dropped.
//!
//! [`Overlay`] is the truth about who may talk, which tunnels are up and over which path. The packet threads of a real
//! node work from a picture that is taken from it ([`Overlay::tunnels`]) and hand it what needs a decision; in simulations
//! every packet goes through it. Cryptography stands behind [`Noise`]: boringtun on a node, [`sim::SimNoise`] in virtual
//! time.
//!
//! Not here: sockets, clocks, randomness, names, policy (the kernel's table judges flows), and how endpoints are found
//! (the control plane is asked through [`Event::EndpointsWanted`]).
#![forbid(unsafe_code)]

pub mod demux;
pub mod noise;
mod overlay;
pub mod packet;
pub mod path;
pub mod sim;

#[cfg(test)]
mod tests;

pub use noise::{Identified, Noise, NoiseFactory, NoiseStatus, Opened, Sealed, Tick, TunnelIndex};
pub use overlay::{
    DropReason, Drops, Event, Member, Overlay, OverlayConfig, Transmit, TunnelRef, TunnelState, TunnelView,
};
pub use path::{Candidate, PathAddress, Source, Tier};
