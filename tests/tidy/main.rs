//! Tidy: rules about the repository itself that no compiler checks. Who may import whom, what the pure crates may reach,
//! where unsafe code may stand, which licences come in, whether the documents' links lead anywhere.
//!
//! Each rule says in its message why it exists; to change a rule, change its reason first. The scanners are held to small
//! inputs beside them, so a rule that cannot fail any more is noticed.

mod dependencies;
mod documents;
mod imports;
mod scan;
mod sources;
mod workspace;

/// Fails with all of a rule's violations at once, and with the rule's reason.
fn require(rule: &str, reason: &str, violations: &[String]) {
    assert!(violations.is_empty(), "\n{rule}\nwhy: {reason}\n  - {}\n", violations.join("\n  - "));
}
