use std::os::unix::fs::PermissionsExt as _;

use vdc::{Hash, InviteId, Name};

use crate::{Changes, KeyKind, StateDir, StateError};

fn alias(text: &str) -> Name {
    Name::new(text).expect("test names are labels")
}

#[test]
fn state_directory_admits_one_daemon() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let first = StateDir::open(temp.path()).expect("first opens");
    assert!(matches!(StateDir::open(temp.path()), Err(StateError::InUse { .. })));
    drop(first);
    StateDir::open(temp.path()).expect("the lock goes with its holder");
}

#[test]
fn half_made_vdc_is_invisible_and_taken_up_again() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = StateDir::open(temp.path()).expect("opens");
    let begun = dir.begin(&alias("acme")).expect("begins");
    begun.write_key(KeyKind::Node, &[7; 32]).expect("writes");
    assert!(!dir.contains(&alias("acme")));
    assert!(dir.vdcs().expect("lists").is_empty());

    let again = dir.begin(&alias("acme")).expect("begins again");
    assert_eq!(again.read_key(KeyKind::Node).expect("kept"), [7; 32]);
    let published = again.publish().expect("publishes");
    assert_eq!(published.alias().as_str(), "acme");
    assert!(matches!(dir.begin(&alias("acme")), Err(StateError::Exists { .. })));
    assert_eq!(dir.vdcs().expect("lists").len(), 1);
    published.remove().expect("removes");
    assert!(dir.vdcs().expect("lists").is_empty());
}

#[test]
fn key_files_are_private_typed_and_versioned() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = StateDir::open(temp.path()).expect("opens");
    let vdc = dir.begin(&alias("acme")).expect("begins").publish().expect("publishes");
    vdc.write_key(KeyKind::Node, &[0xab; 32]).expect("writes");
    assert_eq!(vdc.read_key(KeyKind::Node).expect("reads"), [0xab; 32]);
    let path = temp.path().join("vdcs/acme/node.key");
    // Golden bytes: releases to come must still read this.
    let golden = format!("meshd key 1 node {}\n", "ab".repeat(32));
    assert_eq!(std::fs::read_to_string(&path).expect("text"), golden);
    assert_eq!(std::fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o600);

    for (content, why) in [
        (golden.replace("key 1", "key 2"), "version"),
        (golden.replace("node", "owner"), "kind"),
        (golden.replace("abab", "xxab"), "hexadecimal"),
        (golden.replace("abab", "ab"), "32 bytes"),
        (String::new(), "expected"),
    ] {
        std::fs::write(&path, content).expect("writes");
        let error = vdc.read_key(KeyKind::Node).expect_err("refused").to_string();
        assert!(error.contains(why) && error.contains("node.key"), "{error}");
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
    assert!(matches!(vdc.read_key(KeyKind::Node), Err(StateError::KeyFileMode { mode: 0o640, .. })));
}

#[test]
fn store_keeps_whole_changes_across_reopening() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = StateDir::open(temp.path()).expect("opens");
    let vdc = dir.begin(&alias("acme")).expect("begins");
    let mut store = vdc.open_store().expect("opens");
    assert!(store.records().expect("reads").is_empty());
    assert_eq!(store.meta("next").expect("reads"), None);
    let changes = Changes {
        put_records: vec![(Hash([2; 32]), b"two".to_vec()), (Hash([1; 32]), b"one".to_vec())],
        put_invites: vec![(InviteId([9; 16]), b"invite".to_vec())],
        put_meta: vec![("next", vec![5])],
        ..Changes::default()
    };
    store.commit(&changes).expect("commits");
    drop(store);
    let vdc = vdc.publish().expect("publishes");
    let mut store = vdc.open_store().expect("opens under its new name");
    store.commit(&Changes { remove_records: vec![Hash([2; 32])], ..Changes::default() }).expect("commits");
    drop(store);
    let mut store = vdc.open_store().expect("opens again");
    assert_eq!(store.records().expect("reads"), [b"one".to_vec()]);
    assert_eq!(store.invites().expect("reads"), [(InviteId([9; 16]), b"invite".to_vec())]);
    assert_eq!(store.meta("next").expect("reads"), Some(vec![5]));
}

#[test]
fn damaged_store_is_named_and_not_a_panic() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = StateDir::open(temp.path()).expect("opens");
    let vdc = dir.begin(&alias("acme")).expect("begins").publish().expect("publishes");
    std::fs::write(temp.path().join("vdcs/acme/store"), vec![0x55; 9000]).expect("writes");
    let error = vdc.open_store().expect_err("refused").to_string();
    assert!(error.contains("vdcs/acme/store"), "{error}");
}

#[test]
fn unwritable_directory_says_which_and_why() {
    let error = StateDir::open(std::path::Path::new("/proc/meshd")).expect_err("refused").to_string();
    assert!(error.contains("/proc/meshd"), "{error}");
}
