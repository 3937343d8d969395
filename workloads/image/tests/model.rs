//! Random layers, unpacked and stacked by overlayfs, against a model that knows nothing of overlayfs: a tree in memory
//! to which layer after layer is applied by the rules of the image specification.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::build::{Blob, Tarball, put, store};
use crate::tree;

/// Entries of a layer.
#[derive(Clone, Debug)]
enum Op {
    File(String, u8),
    Directory(String),
    Symlink(String, String),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

/// A tree by the names in each directory.
#[derive(Clone, Debug, Default)]
struct Directory {
    entries: BTreeMap<String, Node>,
}

#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    /// Whether the layer at hand lists it.
    fresh: bool,
}

#[derive(Clone, Debug)]
enum Kind {
    Directory(Directory),
    File(String),
    Symlink(String),
}

/// What no layer may do.
#[derive(Debug)]
struct Refused;

impl Directory {
    fn at(&self, path: &[String]) -> Option<&Self> {
        path.iter().try_fold(self, |directory, name| match &directory.entries.get(name)?.kind {
            Kind::Directory(inner) => Some(inner),
            _ => None,
        })
    }

    fn at_mut(&mut self, path: &[String]) -> &mut Self {
        path.iter().fold(self, |directory, name| match &mut directory.entries.get_mut(name).expect("resolved").kind {
            Kind::Directory(inner) => inner,
            _ => panic!("resolved"),
        })
    }

    /// Directory and name of a path, links followed inside of the tree; what is missing is made, or `None`.
    fn resolve(&mut self, path: &str, create: bool) -> Result<Option<(Vec<String>, String)>, Refused> {
        let mut ahead: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let name = ahead.remove(0);
        let mut resolved: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(part) = ahead.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    resolved.pop();
                    continue;
                }
                _ => {}
            }
            let here = self.at_mut(&resolved);
            match here.entries.get(&part).map(|node| &node.kind) {
                Some(Kind::Directory(_)) => resolved.push(part),
                Some(Kind::File(_)) => return Err(Refused),
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > 40 {
                        return Err(Refused);
                    }
                    if target.starts_with('/') {
                        resolved.clear();
                    }
                    ahead.extend(target.split('/').rev().map(str::to_owned));
                }
                None if create => {
                    here.entries.insert(part.clone(), Node { kind: Kind::Directory(Self::default()), fresh: false });
                    resolved.push(part);
                }
                None => return Ok(None),
            }
        }
        Ok(Some((resolved, name)))
    }

    fn apply(&mut self, op: &Op) -> Result<(), Refused> {
        match op {
            Op::File(path, content) => self.put(path, Kind::File(content.to_string())),
            Op::Symlink(path, target) => self.put(path, Kind::Symlink(target.clone())),
            Op::Directory(path) => {
                let (directory, name) = self.resolve(path, true)?.expect("made");
                let here = self.at_mut(&directory);
                match here.entries.get_mut(&name) {
                    Some(node) if matches!(node.kind, Kind::Directory(_)) => node.fresh = true,
                    _ => {
                        let kind = Kind::Directory(Self::default());
                        here.entries.insert(name, Node { kind, fresh: true });
                    }
                }
                Ok(())
            }
            Op::HardLink(path, target) => {
                let (directory, name) = self.resolve(path, true)?.expect("made");
                let (from, from_name) = self.resolve(target, false)?.ok_or(Refused)?;
                if (&from, &from_name) == (&directory, &name) {
                    return Err(Refused);
                }
                let kind = match &self.at(&from).expect("resolved").entries.get(&from_name).ok_or(Refused)?.kind {
                    Kind::Directory(_) => return Err(Refused),
                    other => other.clone(),
                };
                // The target may go with a directory that the name replaces: then there is nothing to name.
                let replaced = [&directory[..], std::slice::from_ref(&name)].concat();
                if from.starts_with(&replaced) {
                    return Err(Refused);
                }
                self.at_mut(&directory).entries.insert(name, Node { kind, fresh: true });
                Ok(())
            }
            Op::Whiteout(path) => {
                if let Some((directory, name)) = self.resolve(path, false)? {
                    let here = self.at_mut(&directory);
                    if let Some(node) = here.entries.get_mut(&name)
                        && !node.keep_fresh()
                    {
                        here.entries.remove(&name);
                    }
                }
                Ok(())
            }
            Op::Opaque(path) => {
                let (directory, _) = self.resolve(&format!("{path}/x"), true)?.expect("made");
                self.at_mut(&directory).keep_fresh();
                if let Some((name, above)) = directory.split_last() {
                    self.at_mut(above).entries.get_mut(name).expect("resolved").fresh = true;
                }
                Ok(())
            }
        }
    }

    fn put(&mut self, path: &str, kind: Kind) -> Result<(), Refused> {
        let (directory, name) = self.resolve(path, true)?.expect("made");
        self.at_mut(&directory).entries.insert(name, Node { kind, fresh: true });
        Ok(())
    }

    fn keep_fresh(&mut self) {
        self.entries.retain(|_, node| node.keep_fresh());
    }

    fn settle(&mut self) {
        for node in self.entries.values_mut() {
            node.fresh = false;
            if let Kind::Directory(inner) = &mut node.kind {
                inner.settle();
            }
        }
    }

    fn list(&self, below: &str, found: &mut BTreeMap<String, String>) {
        for (name, node) in &self.entries {
            let path = format!("{below}{name}");
            match &node.kind {
                Kind::Directory(inner) => {
                    inner.list(&format!("{path}/"), found);
                    found.insert(path, "directory".to_owned());
                }
                Kind::File(content) => drop(found.insert(path, format!("file {content}"))),
                Kind::Symlink(target) => drop(found.insert(path, format!("link {target}"))),
            }
        }
    }
}

impl Node {
    /// Removes what the layer at hand does not list; says whether anything is left.
    fn keep_fresh(&mut self) -> bool {
        if let Kind::Directory(inner) = &mut self.kind {
            inner.keep_fresh();
            return self.fresh || !inner.entries.is_empty();
        }
        self.fresh
    }
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned)
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(name(), 1..4).prop_map(|parts| parts.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![path(), path().prop_map(|path| format!("/{path}")), path().prop_map(|path| format!("../{path}"))]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        32 => (path(), any::<u8>()).prop_map(|(path, content)| Op::File(path, content)),
        24 => path().prop_map(Op::Directory),
        16 => (path(), target()).prop_map(|(path, target)| Op::Symlink(path, target)),
        8 => (path(), path()).prop_map(|(path, target)| Op::HardLink(path, target)),
        16 => path().prop_map(Op::Whiteout),
        8 => path().prop_map(Op::Opaque),
        1 => Just(Op::Opaque(String::new())),
    ]
}

fn tar(ops: &[Op]) -> Vec<u8> {
    let whiteout = |path: &str| match path.rsplit_once('/') {
        Some((directory, name)) => format!("{directory}/.wh.{name}"),
        None => format!(".wh.{path}"),
    };
    let tarball = ops.iter().fold(Tarball::new(), |tar, op| match op {
        Op::File(path, content) => tar.file(path, content.to_string().as_bytes()),
        Op::Directory(path) => tar.directory(path),
        Op::Symlink(path, target) => tar.symlink(path, target),
        Op::HardLink(path, target) => tar.hard_link(path, target),
        Op::Whiteout(path) => tar.file(&whiteout(path), b""),
        Op::Opaque(path) => tar.file(&format!("{path}/.wh..wh..opq"), b""),
    });
    tarball.end()
}

/// What the model makes of the layers; `None` if it refuses one.
fn model(layers: &[Vec<Op>]) -> Option<BTreeMap<String, String>> {
    let mut root = Directory::default();
    for layer in layers {
        root.settle();
        // Whiteouts are about the layers below, wherever they stand; what a layer deletes it cannot use.
        for op in layer {
            root.apply(op).ok()?;
        }
    }
    let mut found = BTreeMap::new();
    root.list("", &mut found);
    Some(found)
}

fn stacked(layers: &[Vec<Op>], scratch: &Path) -> Option<BTreeMap<String, String>> {
    let images = store(&scratch.join("images"));
    let blobs: Vec<Blob> = layers.iter().map(|ops| Blob::tar(&tar(ops))).collect();
    let image = put(&images, &blobs, None).ok()?;
    Some(tree::shown(&tree::of_image(&image, scratch)))
}

#[test]
fn stacked_layers_show_what_the_model_shows() {
    let layers = prop::collection::vec(prop::collection::vec(op(), 1..8), 1..4);
    let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let accepted = Cell::new(0);
    let outcome = runner.run(&layers, |layers| {
        let scratch = tempfile::tempdir().expect("a directory");
        let expected = model(&layers);
        accepted.set(accepted.get() + u32::from(expected.is_some()));
        prop_assert_eq!(stacked(&layers, scratch.path()), expected);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(accepted.get() > 150, "only {} were accepted: little was compared", accepted.get());
}
