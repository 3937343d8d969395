//! Overlays on a simulated wire under a virtual clock.

mod cases;
mod hostile;
mod laws;
mod paths;
mod recovery;
mod wire;
