//! The groups of one node: what arrives for them, and what is sent to those of other nodes.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use vdc::{Hash, Key};

use crate::env::{Class, Env, Transport as _, TransportError};
use crate::group::Group;
use crate::types::encode;
use vdc_coord::wire::{Ask, FRAME_BYTES_MAX, Frame, Reply, Trouble, decode_frame, decode_reply};

/// The groups that a node serves. Cheap to clone.
pub struct Node<E: Env>(Arc<Inner<E>>);

struct Inner<E: Env> {
    env: E,
    key: Key,
    groups: RwLock<BTreeMap<Hash, Group<E>>>,
}

impl<E: Env> Clone for Node<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E: Env> Debug for Node<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({})", self.0.key.short())
    }
}

/// Why a question was not answered, and whether what it asked for may have been done.
pub(crate) enum Unanswered {
    Trouble(Trouble),
    Transport(TransportError),
}

impl<E: Env> Node<E> {
    #[must_use]
    pub fn new(env: E, key: Key) -> Self {
        Self(Arc::new(Inner { env, key, groups: RwLock::default() }))
    }

    #[must_use]
    pub fn key(&self) -> Key {
        self.0.key
    }

    pub(crate) fn env(&self) -> &E {
        &self.0.env
    }

    /// Serves a group from now on.
    pub fn add(&self, group: Group<E>) {
        self.0.groups.write().insert(group.id(), group);
    }

    /// Serves a group no more; it is given back, to be closed.
    #[must_use]
    pub fn remove(&self, id: &Hash) -> Option<Group<E>> {
        self.0.groups.write().remove(id)
    }

    #[must_use]
    pub fn group(&self, id: &Hash) -> Option<Group<E>> {
        self.0.groups.read().get(id).cloned()
    }

    #[must_use]
    pub fn groups(&self) -> Vec<Group<E>> {
        self.0.groups.read().values().cloned().collect()
    }

    /// Answers a frame that a member of the VDC sent.
    pub async fn answer(&self, from: Key, frame: &[u8]) -> Bytes {
        match decode_frame(frame) {
            Ok(frame) => self.answer_frame(from, frame).await,
            Err(error) => encode(&Reply::Trouble(Trouble::Malformed { why: error.to_string() })),
        }
    }

    /// Answers what a member of the VDC asked.
    pub async fn answer_frame(&self, from: Key, Frame { group, ask }: Frame) -> Bytes {
        let reply = match self.group(&group) {
            Some(group) => group.answer(from, ask).await,
            None => Reply::Trouble(Trouble::UnknownGroup { group }),
        };
        let bytes = encode(&reply);
        if bytes.len() > FRAME_BYTES_MAX {
            return encode(&Reply::Trouble(Trouble::Unavailable { why: "the answer is too long".into() }));
        }
        bytes
    }

    /// Asks a group at some node, this one included.
    pub(crate) async fn ask(&self, to: Key, group: Hash, ask: Ask, limit: Duration) -> Result<Reply, Unanswered> {
        let reply = if to == self.0.key {
            match self.group(&group) {
                Some(group) => group.answer(to, ask).await,
                None => Reply::Trouble(Trouble::UnknownGroup { group }),
            }
        } else {
            let frame = encode(&Frame { group, ask });
            let answer = self.0.env.transport().ask(to, Class::Client, frame, limit).await;
            let bytes = answer.map_err(Unanswered::Transport)?;
            let broken = |why: String| Unanswered::Transport(TransportError::Broken { node: to, why });
            decode_reply(&bytes).map_err(|error| broken(error.to_string()))?
        };
        match reply {
            Reply::Trouble(trouble) => Err(Unanswered::Trouble(trouble)),
            reply => Ok(reply),
        }
    }
}
