//! End-to-end tests: the built binaries in network-namespace labs, one lab per test.

#[cfg(test)]
mod authority;
#[cfg(test)]
mod clock;
#[cfg(test)]
mod container_images;
#[cfg(test)]
mod container_life;
#[cfg(test)]
mod container_net;
#[cfg(test)]
mod container_remote;
#[cfg(test)]
mod containers;
#[cfg(test)]
mod coord;
#[cfg(test)]
mod coordination;
#[cfg(test)]
mod daemon;
#[cfg(test)]
mod links;
#[cfg(test)]
mod names;
#[cfg(test)]
mod outages;
#[cfg(test)]
mod packets;
#[cfg(test)]
mod story;
#[cfg(test)]
mod tokens;
