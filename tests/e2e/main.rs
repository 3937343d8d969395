//! End-to-end tests: the built binaries in network-namespace labs, one lab per test.

#[cfg(test)]
mod faults;
#[cfg(test)]
mod story;
