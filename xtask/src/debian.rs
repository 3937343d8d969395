//! Debian packages: one list in the repository, installed only when something of it is missing.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::stage::Run;

/// One package a line; after `#` who needs it.
const LIST: &str = include_str!("../debian-packages.txt");

/// Installs what is missing of [`LIST`].
///
/// # Errors
/// If something is missing and this is not Debian (or alike), not root, or apt-get fails.
pub(crate) fn ensure_packages(run: &mut Run) -> Result<()> {
    let wanted = packages(LIST);
    let missing = missing(&wanted).context("cannot ask dpkg-query: these routines need Debian or a relative")?;
    if missing.is_empty() {
        eprintln!("all {} packages of xtask/debian-packages.txt are installed", wanted.len());
        return Ok(());
    }
    eprintln!("missing: {}", missing.join(" "));
    if !is_root()? {
        bail!("not root, so cannot install them; run: apt-get install --no-install-recommends {}", missing.join(" "));
    }
    let mut update = run.command("apt-get", &["update", "-q"]);
    update.env("DEBIAN_FRONTEND", "noninteractive");
    run.finish(update)?;
    let mut install = run.command("apt-get", &["install", "-q", "--yes", "--no-install-recommends"]);
    install.args(&missing).env("DEBIAN_FRONTEND", "noninteractive");
    run.finish(install)
}

/// Network namespaces, packet filters and TUN devices are root's.
///
/// # Errors
/// If this is not root.
pub(crate) fn require_root(what: &str) -> Result<()> {
    if !is_root()? {
        bail!("{what} needs root: it makes network namespaces; run it with sudo or in a throw-away machine");
    }
    Ok(())
}

fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(std::fs::metadata("/proc/self").context("cannot read /proc/self")?.uid() == 0)
}

fn packages(list: &str) -> Vec<&str> {
    list.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).filter(|name| !name.is_empty()).collect()
}

fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    // Exits with 1 when it knows nothing of a package, and still prints the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(wanted)
        .output()?;
    let known = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(wanted.iter().copied().filter(|name| !known.lines().any(|l| l == format!("{name} installed"))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_read_without_comments() {
        assert_eq!(packages("# head\n\ncurl  # demo\ngcc\n"), ["curl", "gcc"]);
    }

    #[test]
    fn each_package_says_who_needs_it() {
        for line in LIST.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let (name, who) = line.split_once('#').unwrap_or((line, ""));
            assert!(!who.trim().is_empty(), "{name}: nobody is named");
        }
    }

    #[test]
    fn list_is_sorted() {
        assert!(packages(LIST).is_sorted());
    }
}
