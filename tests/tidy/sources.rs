//! What may stand in a source file.

use std::path::Path;

use crate::scan::{code_only, lines_with, without_tests};

/// What a pure crate's code may not say, and why.
const IMPURE: &[(&str, &str)] = &[
    ("Instant::now", "time is an argument"),
    ("SystemTime", "time is an argument; wall time is UnixTime"),
    ("std::fs", "files are the state crate's"),
    ("std::env", "configuration is an argument"),
    ("std::process", "programs are started by the daemon"),
    ("std::thread", "threads belong to the drivers"),
    ("thread::spawn", "threads belong to the drivers"),
    ("thread_local!", "no globals"),
    ("static mut", "no globals"),
    ("UdpSocket", "sockets belong to the drivers"),
    ("TcpStream", "sockets belong to the drivers"),
    ("TcpListener", "sockets belong to the drivers"),
    ("UnixStream", "sockets belong to the drivers"),
    ("UnixListener", "sockets belong to the drivers"),
    ("ToSocketAddrs", "asking DNS is IO"),
    ("OsRng", "randomness is a seed given at construction"),
    ("getrandom", "randomness is a seed given at construction"),
    ("thread_rng", "randomness is a seed given at construction"),
    ("async fn", "state machines are driven, they do not wait"),
    ("async move", "state machines are driven, they do not wait"),
    (".await", "state machines are driven, they do not wait"),
    ("Mutex", "one owner mutates a state machine: no locks"),
    ("RwLock", "one owner mutates a state machine: no locks"),
    ("mpsc", "outputs are polled: no channels"),
];

/// Files that may hold unsafe code, with how many times the word stands there. A ratchet: raise a number only together
/// with a SAFETY comment that a second reader agreed to, lower it when a block goes.
const UNSAFE: &[(&str, usize)] = &[
    ("meshd/tun/src/sys.rs", 22),
    ("tests/meshlab/src/sys.rs", 8),
    ("workloads/container/src/sys.rs", 8),
    ("workloads/shim/src/sys.rs", 12),
];

/// Lines in one source file. Beyond this a file holds two concepts.
const FILE_LINES_MAX: usize = 1_200;

/// What no text of this repository may say, and why. Written in pieces, so that this file does not say it either.
const FORBIDDEN: &[(&[&str], &str)] = &[
    (&["/wo", "rk/"], "a path of one person's machine"),
    (&["/ro", "ot/"], "a path of one person's machine"),
    (&["crates", ".io"], "a registry's host name: builds must work with any mirror"),
    (&["py", "pi.org"], "a registry's host name: builds must work with any mirror"),
    (&["npm", "js"], "a registry's host name: builds must work with any mirror"),
    (&["deb.deb", "ian.org"], "a registry's host name: builds must work with any mirror"),
    (&["todo", "!"], "unfinished work is an issue, not code"),
    (&["unimple", "mented!"], "unfinished work is an issue, not code"),
    (&["TO", "DO"], "unfinished work is an issue, not a comment"),
    (&["FIX", "ME"], "unfinished work is an issue, not a comment"),
];

/// What no test may carry, and why.
const TEST_ATTRIBUTES: &[(&str, &str)] = &[
    ("#[ignore", "a test that does not run proves nothing"),
    ("#[should_panic", "assert on the error instead: a panic of another cause would pass"),
];

/// Impure words in a pure crate's source, its tests left out.
fn impurities(path: &Path, source: &str) -> Vec<String> {
    let code = without_tests(&code_only(source));
    find(path, &code, IMPURE.iter().map(|(pattern, why)| ((*pattern).to_owned(), *why)))
}

fn find(path: &Path, text: &str, patterns: impl Iterator<Item = (String, &'static str)>) -> Vec<String> {
    let mut violations = Vec::new();
    for (pattern, why) in patterns {
        for line in lines_with(text, &pattern) {
            violations.push(format!("{}:{line}: `{pattern}`: {why}", path.display()));
        }
    }
    violations
}

fn is_test_file(path: &Path) -> bool {
    path.components().any(|part| ["tests", "tests.rs", "examples"].iter().any(|name| part.as_os_str() == *name))
}

/// Whether the number of `unsafe` in a file is what the ratchet says.
fn unsafe_violation(path: &Path, source: &str, listed: &[(&str, usize)]) -> Option<String> {
    let found = lines_with(&code_only(source), "unsafe").len();
    let path = path.display();
    match listed.iter().find(|(listed, _)| path.to_string() == *listed) {
        None if found == 0 => None,
        None => Some(format!("{path}: {found} times unsafe, and it is not a listed file")),
        Some((_, count)) if *count == found => None,
        Some((_, count)) if found < *count => {
            Some(format!("{path}: {found} times unsafe, fewer than {count}: lower the number in UNSAFE"))
        }
        Some((_, count)) => Some(format!("{path}: {found} times unsafe, {count} are listed")),
    }
}

fn has_head(source: &str) -> bool {
    source.starts_with("//! ")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::imports::PURE;
    use crate::require;
    use crate::workspace::Workspace;

    #[test]
    fn pure_crates_say_nothing_impure() {
        let workspace = Workspace::load();
        let mut violations = Vec::new();
        for pure in PURE {
            let dir = &workspace.member(pure).dir;
            for (path, source) in workspace.rust_files(&dir.join("src")) {
                if !is_test_file(path.strip_prefix(dir).expect("inside the crate")) {
                    violations.extend(impurities(&path, &source));
                }
            }
            let build = workspace.root.join(dir).join("build.rs");
            if build.exists() {
                violations.push(format!("{}: pure crates have no build script", build.display()));
            }
        }
        require(
            "pure crates read no clock, randomness, file or socket, and wait for nothing",
            "the same code runs in the daemon, in simulations of a thousand nodes and under the fuzzer",
            &violations,
        );
    }

    #[test]
    fn pure_crates_forbid_unsafe_code() {
        let workspace = Workspace::load();
        let mut violations = Vec::new();
        for pure in PURE {
            let path = workspace.member(pure).dir.join("src/lib.rs");
            let text = std::fs::read_to_string(workspace.root.join(&path)).expect("libraries have lib.rs");
            if lines_with(&code_only(&text), "#![forbid(unsafe_code)]").is_empty() {
                violations.push(format!("{}: no #![forbid(unsafe_code)]", path.display()));
            }
        }
        require("pure crates forbid unsafe code", "nothing in them could need it", &violations);
    }

    #[test]
    fn unsafe_code_stands_where_it_is_listed() {
        let workspace = Workspace::load();
        let files = workspace.rust_files(Path::new(""));
        let mut violations: Vec<_> =
            files.iter().filter_map(|(path, source)| unsafe_violation(path, source, UNSAFE)).collect();
        let gone = UNSAFE.iter().filter(|(path, _)| !files.contains_key(Path::new(path)));
        violations.extend(gone.map(|(path, _)| format!("{path}: listed in UNSAFE and not there")));
        require(
            "unsafe code stands only in the listed files, as often as listed",
            "each block is read by two people",
            &violations,
        );
    }

    #[test]
    fn source_files_stay_readable() {
        let workspace = Workspace::load();
        let files = workspace.rust_files(Path::new(""));
        let long = files.iter().map(|(path, source)| (path, source.lines().count()));
        let violations: Vec<_> = long
            .filter(|(_, lines)| *lines > FILE_LINES_MAX)
            .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
            .collect();
        require("no source file is longer than 1,200 lines", "split it by concept", &violations);
    }

    #[test]
    fn nothing_forbidden_is_said() {
        let workspace = Workspace::load();
        let mut violations = Vec::new();
        for (path, text) in workspace.files(Path::new("")) {
            // Generated; it names the registry of every package.
            if path != Path::new("Cargo.lock") {
                violations.extend(find(&path, &text, FORBIDDEN.iter().map(|(pieces, why)| (pieces.concat(), *why))));
            }
        }
        require("no text says what it must not", "each word has its reason beside it", &violations);
    }

    #[test]
    fn every_test_runs() {
        let workspace = Workspace::load();
        let mut violations = Vec::new();
        for (path, source) in workspace.rust_files(Path::new("")) {
            let patterns = TEST_ATTRIBUTES.iter().map(|(pattern, why)| ((*pattern).to_owned(), *why));
            violations.extend(find(&path, &code_only(&source), patterns));
        }
        require("no test is ignored or expects a panic", "a green run means that everything ran", &violations);
    }

    #[test]
    fn crates_open_with_what_they_are() {
        let workspace = Workspace::load();
        let mut violations = Vec::new();
        for member in &workspace.members {
            let roots = ["src/lib.rs", "src/main.rs"].map(|root| member.dir.join(root));
            for path in roots {
                if let Ok(text) = std::fs::read_to_string(workspace.root.join(&path))
                    && !has_head(&text)
                {
                    violations.push(format!("{}: does not start with `//! `", path.display()));
                }
            }
        }
        require(
            "each crate's root opens with a `//!` head",
            "a newcomer reads what the room is for, and what it is not",
            &violations,
        );
    }

    #[test]
    fn impure_words_are_found_outside_tests_only() {
        let path = PathBuf::from("vdc/src/x.rs");
        let found = |source: &str| impurities(&path, source).len();
        assert_eq!(found("let t = std::time::Instant::now();"), 1);
        assert_eq!(found("use std::fs;\nfn f() { x.await }"), 2);
        assert_eq!(found("// Instant::now\nlet s = \"Instant::now\";"), 0);
        assert_eq!(found("#[cfg(test)]\nmod tests { fn f() { Instant::now(); } }"), 0);
        assert_eq!(found("#[cfg(test)]\nmod tests;\nfn f() { Instant::now(); }"), 1);
        assert!(is_test_file(Path::new("src/roster/tests.rs")));
        assert!(!is_test_file(Path::new("src/contests.rs")));
    }

    #[test]
    fn unsafe_ratchet_moves_one_way() {
        let listed = [("a/sys.rs", 2)];
        let violation = |path: &str, source: &str| unsafe_violation(Path::new(path), source, &listed);
        assert_eq!(violation("a/sys.rs", "unsafe { unsafe { } }"), None);
        assert!(violation("a/sys.rs", "unsafe { }").expect("fewer").contains("lower the number"));
        assert!(violation("a/sys.rs", "unsafe unsafe unsafe").is_some());
        assert!(violation("b.rs", "unsafe { }").is_some());
        assert_eq!(violation("b.rs", "#![forbid(unsafe_code)] // unsafe"), None);
    }

    #[test]
    fn forbidden_words_and_attributes_are_found() {
        let words = || FORBIDDEN.iter().map(|(pieces, why)| (pieces.concat(), *why));
        for (pieces, _) in FORBIDDEN {
            assert_eq!(find(Path::new("x"), &format!("a {} b", pieces.concat()), words()).len(), 1, "{pieces:?}");
        }
        assert!(find(Path::new("x"), "the network/layer and framework/x", words()).is_empty());
        assert!(has_head("//! A crate.\n") && !has_head("// no\n") && !has_head("fn main() {}\n"));
    }
}
