//! Two or three nodes on loopback, with real sockets: links, doors, and what strangers throw at both.
#![cfg(test)]

mod doors;
mod garbage;
mod harness;
mod links;
