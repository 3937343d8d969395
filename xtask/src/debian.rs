//! Debian packages: one list in the repository, installed (or unpacked) only when something of it is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::stage::Run;

/// One package a line, with `unpack` behind those that are not installed and `soak` behind those that nothing else needs;
/// after `#` who needs it.
const LIST: &str = include_str!("../debian-packages.txt");
/// Names what was unpacked, in the directory that it was unpacked into; written last.
const UNPACKED: &str = "unpacked";

/// One line of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package<'a> {
    name: &'a str,
    kind: Kind,
}

/// What is done with a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Installed,
    /// Installed for `cargo xtask soak` only.
    OfSoak,
    /// Unpacked into [`unpacked_dir`] instead of installed.
    Unpacked,
}

/// Installs what is missing of [`LIST`], but for what is to be unpacked.
///
/// # Errors
/// If something is missing and this is not Debian (or alike), not root, or apt-get fails.
pub(crate) fn ensure_packages(run: &mut Run) -> Result<()> {
    ensure_installed(run, &names(LIST, Kind::Installed))
}

/// Installs what [`LIST`] says that only `cargo xtask soak` needs.
///
/// # Errors
/// Those of [`ensure_packages`].
pub(crate) fn ensure_packages_of_soak(run: &mut Run) -> Result<()> {
    ensure_installed(run, &names(LIST, Kind::OfSoak))
}

fn ensure_installed(run: &mut Run, wanted: &[&str]) -> Result<()> {
    let missing = missing(wanted).context("cannot ask dpkg-query: these routines need Debian or a relative")?;
    if missing.is_empty() {
        eprintln!("all {} packages of xtask/debian-packages.txt are installed", wanted.len());
        return Ok(());
    }
    eprintln!("missing: {}", missing.join(" "));
    if !is_root()? {
        bail!("not root, so cannot install them; run: apt-get install --no-install-recommends {}", missing.join(" "));
    }
    update(run)?;
    let mut install = run.command("apt-get", &["install", "-q", "--yes", "--no-install-recommends"]);
    install.args(&missing).env("DEBIAN_FRONTEND", "noninteractive");
    run.finish(install)
}

/// Where end-to-end tests find the programs that are unpacked, laid out as in the file system's root.
pub(crate) fn unpacked_dir(run: &Run) -> PathBuf {
    run.target_dir().join("debian")
}

/// Unpacks the packages of [`LIST`] that say so, all together: they belong to each other in exactly these versions.
///
/// # Errors
/// If apt-get or dpkg fails, or files cannot be written.
pub(crate) fn ensure_unpacked(run: &mut Run) -> Result<()> {
    let (wanted, dir) = (names(LIST, Kind::Unpacked), unpacked_dir(run));
    let text = wanted.join("\n") + "\n";
    if fs::read_to_string(dir.join(UNPACKED)).is_ok_and(|unpacked| unpacked == text) {
        return Ok(());
    }
    // The package lists of this machine may be missing, or older than what the archive still has.
    if is_root()? {
        update(run)?;
    }
    let archives = dir.with_extension("archives");
    for old in [&dir, &archives] {
        remove_dir(old)?;
        fs::create_dir_all(old).with_context(|| format!("cannot make {}", old.display()))?;
    }
    let mut download = run.command("apt-get", &["download", "-q"]);
    download.args(&wanted).current_dir(&archives);
    run.finish(download)?;
    for archive in fs::read_dir(&archives).with_context(|| format!("cannot read {}", archives.display()))? {
        let unpack = run.command("dpkg", &["-x".as_ref(), archive?.path().as_os_str(), dir.as_os_str()]);
        run.finish(unpack)?;
    }
    remove_dir(&archives)?;
    fs::write(dir.join(UNPACKED), text).with_context(|| format!("cannot write in {}", dir.display()))
}

fn update(run: &mut Run) -> Result<()> {
    let mut update = run.command("apt-get", &["update", "-q"]);
    update.env("DEBIAN_FRONTEND", "noninteractive");
    run.finish(update)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
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
    Ok(fs::metadata("/proc/self").context("cannot read /proc/self")?.uid() == 0)
}

fn packages(list: &str) -> impl Iterator<Item = Package<'_>> {
    list.lines().filter_map(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let name = words.next()?;
        let kind = match words.next() {
            Some("unpack") => Kind::Unpacked,
            Some("soak") => Kind::OfSoak,
            _ => Kind::Installed,
        };
        Some(Package { name, kind })
    })
}

fn names(list: &str, kind: Kind) -> Vec<&str> {
    packages(list).filter(|package| package.kind == kind).map(|package| package.name).collect()
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
        let list = "# head\n\ncurl  # demo\ngcc\npodman soak # images\nsystemd-resolved unpack # e2e\n";
        assert_eq!(names(list, Kind::Installed), ["curl", "gcc"]);
        assert_eq!(names(list, Kind::OfSoak), ["podman"]);
        assert_eq!(names(list, Kind::Unpacked), ["systemd-resolved"]);
    }

    #[test]
    fn each_package_says_who_needs_it_and_nothing_unknown() {
        for line in LIST.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let (name, who) = line.split_once('#').unwrap_or((line, ""));
            assert!(!who.trim().is_empty(), "{name}: nobody is named");
            let rest: Vec<&str> = name.split_whitespace().skip(1).collect();
            assert!(rest.is_empty() || rest == ["unpack"] || rest == ["soak"], "{name}: {rest:?}");
        }
    }

    #[test]
    fn list_is_sorted() {
        assert!(packages(LIST).is_sorted());
    }
}
