//! Images from foreign bytes to directories, through the public interface. Needs root, as owners, devices and overlay's
//! marks do.

mod build;
mod hostile;
mod store;
