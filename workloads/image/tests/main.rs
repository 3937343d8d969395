//! Images from foreign bytes to directories, through the public interface. Needs root, as owners, devices and overlay's
//! marks do.

mod archive;
mod build;
mod conformance;
mod debian_registry;
mod elsewhere;
mod hostile;
mod model;
mod registry;
mod rogue;
mod store;
mod tree;
