//! The container's control groups as directories: who is in them, how often the kernel killed for memory, and their removal.
//!
//! The OCI library makes them. What follows needs no library: on v1 one directory per mounted hierarchy, on v2 one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Bytes read of one file of a control group; `cgroup.procs` of 4,096 processes has fewer than 32 KiB.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Rounds of killing what is left in a group whose init is dead, and of removing a directory that is still busy. A group
/// stays busy for milliseconds after its last process: the waits add up to 1.05 s.
const ROUNDS_MAX: u32 = 20;

/// The directories of one container's groups.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    directories: Vec<PathBuf>,
}

impl Groups {
    /// Finds the directories for an absolute cgroup path in every mounted hierarchy of this host.
    ///
    /// # Errors
    /// `/proc/self/mountinfo` cannot be read.
    pub(crate) fn find(path: &Path) -> io::Result<Self> {
        Ok(Self::in_mounts(&fs::read_to_string("/proc/self/mountinfo")?, path))
    }

    fn in_mounts(mountinfo: &str, path: &Path) -> Self {
        let Ok(relative) = path.strip_prefix("/") else { return Self::default() };
        if relative.as_os_str().is_empty() {
            return Self::default();
        }
        let mut directories = Vec::new();
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            if !(filesystem.starts_with("cgroup ") || filesystem.starts_with("cgroup2 ")) {
                continue;
            }
            let Some(point) = mount.split(' ').nth(4) else { continue };
            let directory = Path::new(point).join(relative);
            if directory.is_dir() && !directories.contains(&directory) {
                directories.push(directory);
            }
        }
        Self { directories }
    }

    /// Puts the calling process into all of the groups.
    ///
    /// # Errors
    /// The first group that refuses.
    pub(crate) fn join(&self) -> io::Result<()> {
        self.directories.iter().try_for_each(|directory| fs::write(directory.join("cgroup.procs"), "0"))
    }

    /// How often the kernel killed a process of the container for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let files = self.directories.iter().flat_map(|d| [d.join("memory.events"), d.join("memory.oom_control")]);
        files
            .filter_map(|file| read_bounded(&file).ok())
            .flat_map(|text| {
                text.lines().filter_map(|l| l.strip_prefix("oom_kill ")?.parse().ok()).collect::<Vec<u64>>()
            })
            .max()
            .unwrap_or(0)
    }

    /// The processes in any of the groups.
    fn members(&self) -> Vec<Pid> {
        let mut pids: Vec<i32> = self
            .directories
            .iter()
            .filter_map(|directory| read_bounded(&directory.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids.into_iter().filter_map(Pid::from_raw).filter(|pid| *pid != rustix::process::getpid()).collect()
    }

    /// Kills everything in the groups once: by `cgroup.kill` where the kernel has it, one by one otherwise.
    pub(crate) fn kill(&self) {
        for directory in &self.directories {
            // v1 has no such file and answers EACCES or ENOENT; the loop below is for it.
            let _ = fs::OpenOptions::new().write(true).open(directory.join("cgroup.kill")).and_then(|mut file| {
                use io::Write;
                file.write_all(b"1")
            });
        }
        for pid in self.members() {
            // ESRCH: it ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Kills what is left and removes the directories.
    ///
    /// # Errors
    /// The first directory that stays, after all rounds.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let mut left = self.directories.clone();
        for round in 0..ROUNDS_MAX {
            left.retain(|directory| !remove_tree(directory));
            if left.is_empty() {
                return Ok(());
            }
            Self { directories: left.clone() }.kill();
            sleep(Duration::from_millis(5) * (round + 1));
        }
        left.first().map_or(Ok(()), fs::remove_dir)
    }
}

/// Removes a group and the groups below it that the container made; whether it is gone.
fn remove_tree(directory: &Path) -> bool {
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            remove_tree(&entry.path());
        }
    }
    match fs::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_in_hierarchies_only_and_never_at_their_top() {
        let dir = tempfile::tempdir().expect("a directory");
        let point = dir.path().join("memory");
        fs::create_dir_all(point.join("meshd/w/1")).expect("made");
        let mounts = format!(
            "30 23 0:26 / {} rw,relatime shared:9 - cgroup cgroup rw,memory\n31 23 0:27 / {} rw - tmpfs tmpfs rw\nbroken\n",
            point.display(),
            dir.path().display()
        );
        assert_eq!(Groups::in_mounts(&mounts, Path::new("/meshd/w/1")).directories, [point.join("meshd/w/1")]);
        for nothing in ["/", "", "relative", "/meshd/w/2"] {
            assert!(Groups::in_mounts(&mounts, Path::new(nothing)).directories.is_empty(), "{nothing}");
        }
    }

    #[test]
    fn memory_kills_are_read_from_both_versions() {
        for (file, text, expected) in [
            ("memory.events", "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n", 1),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3),
            ("memory.oom_control", "garbage\noom_kill x\n", 0),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join(file), text).expect("written");
            let groups = Groups { directories: vec![dir.path().to_owned()] };
            assert_eq!(groups.oom_kills(), expected, "{file}");
        }
    }
}
