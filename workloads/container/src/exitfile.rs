//! How a container ended, in one small file that appears whole or not at all.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::error::{AtStep, StepError};
use crate::request::{Exit, ExitCause};
use crate::{shim, wire};

/// Name in a container's run directory.
pub(crate) const NAME: &str = "exit";
/// Version of the form, first in the file.
const VERSION: &str = "1";
/// Longer is none of ours.
const BYTES_MAX: u64 = 256;

/// Writes the file in `directory`, durably where `sync`.
///
/// # Errors
/// As the filesystem says.
pub(crate) fn write(directory: &Path, exit: &Exit, sync: bool) -> Result<(), StepError> {
    let step = "record how a container ended";
    let new = directory.join("exit.new");
    let mut file = fs::File::create(&new).at(step)?;
    file.write_all(encode(exit).as_bytes()).at(step)?;
    if sync {
        file.sync_all().at(step)?;
    }
    fs::rename(&new, directory.join(NAME)).at(step)?;
    if sync {
        fs::File::open(directory).and_then(|directory| directory.sync_all()).at(step)?;
    }
    Ok(())
}

/// Reads it, or a shim's record at the same place; no file, or one that is damaged, is none.
pub(crate) fn read(directory: &Path) -> Option<Exit> {
    let mut bytes = Vec::new();
    let file = fs::File::open(directory.join(NAME)).ok()?;
    let read: io::Result<usize> = file.take(BYTES_MAX).read_to_end(&mut bytes);
    read.ok()?;
    match std::str::from_utf8(&bytes).ok().and_then(decode) {
        Some(exit) => Some(exit),
        None => wire::decode::<wire::Exit>(&bytes).ok().map(|exit| shim::exit_of(&exit)),
    }
}

fn encode(exit: &Exit) -> String {
    let millis = exit.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let cause = match exit.cause {
        ExitCause::Process => "process",
        ExitCause::ShimLost => "lost",
        ExitCause::StartFailed => "failed",
    };
    let (signal, oom) = (exit.signal.unwrap_or(0), u8::from(exit.oom_killed));
    format!("{VERSION} {} {signal} {oom} {millis} {cause}\n", exit.code)
}

fn decode(text: &str) -> Option<Exit> {
    let fields: Vec<&str> = text.strip_suffix('\n')?.split(' ').collect();
    let [VERSION, code, signal, oom, millis, cause] = fields[..] else { return None };
    let signal: u8 = signal.parse().ok()?;
    Some(Exit {
        code: code.parse().ok()?,
        signal: (signal != 0).then_some(signal),
        oom_killed: match oom {
            "0" => false,
            "1" => true,
            _ => return None,
        },
        at: UNIX_EPOCH.checked_add(Duration::from_millis(millis.parse().ok()?))?,
        cause: match cause {
            "process" => ExitCause::Process,
            "lost" => ExitCause::ShimLost,
            "failed" => ExitCause::StartFailed,
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit() -> Exit {
        let at = UNIX_EPOCH + Duration::from_millis(1_800_000_000_123);
        Exit { code: 137, signal: Some(9), oom_killed: true, at, cause: ExitCause::Process }
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()), None);
        write(directory.path(), &exit(), true).unwrap();
        assert_eq!(read(directory.path()), Some(exit()));
        let lost = Exit { signal: None, oom_killed: false, cause: ExitCause::ShimLost, ..exit() };
        write(directory.path(), &lost, false).unwrap();
        assert_eq!(read(directory.path()), Some(lost));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_form_is_fixed() {
        assert_eq!(encode(&exit()), "1 137 9 1 1800000000123 process\n");
    }

    #[test]
    fn a_shims_record_is_read_as_well() {
        let directory = tempfile::tempdir().unwrap();
        let record = wire::Exit { code: 3, signal: None, oom_killed: false, at_ms: 5, start_failed: false };
        fs::write(directory.path().join(NAME), wire::encode(&record)).unwrap();
        let exit = read(directory.path()).unwrap();
        assert_eq!((exit.code, exit.cause, exit.at), (3, ExitCause::Process, UNIX_EPOCH + Duration::from_millis(5)));
        fs::write(directory.path().join(NAME), [1, 0xff]).unwrap();
        assert_eq!(read(directory.path()), None);
    }

    #[test]
    fn damage_is_no_exit() {
        for bad in [
            "",
            "1 137 9 1 1800000000123 process",
            "2 137 9 1 1800000000123 process\n",
            "1 137 9 1 1800000000123\n",
            "1 137 900 1 1800000000123 process\n",
            "1 137 9 2 1800000000123 process\n",
            "1 137 9 1 99999999999999999999999 process\n",
            "1 137 9 1 18446744073709551615 nobody\n",
            "1 137 9 1 1800000000123 process\n\n",
        ] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }
}
