//! The recovery key on its way in: from a file, from stdin, or typed without echo.

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use vdc_api::OwnerKey;

use crate::failure::{Exit, Failure};

/// A recovery key is 62 characters; one that was written in groups is somewhat longer.
const KEY_BYTES_MAX: usize = 1024;
/// What the terminal sends for Ctrl-C, Ctrl-D, and the two backspaces.
const END_OF_TEXT: u8 = 3;
const END_OF_TRANSMISSION: u8 = 4;
const BACKSPACE: u8 = 8;
const DELETE: u8 = 127;

/// Reads the key from a file, or from stdin if that is `-`.
pub(crate) fn read_key(path: &Path) -> Result<OwnerKey, Failure> {
    let cannot = |error: io::Error| {
        Failure::new(format!("cannot read the recovery key from {}", path.display())).caused_by(&error)
    };
    let text = if path == Path::new("-") {
        read_bounded(&mut io::stdin().lock())
    } else {
        std::fs::File::open(path).and_then(|mut file| read_bounded(&mut file))
    };
    let key = text.map_err(cannot)?;
    if key.secret().trim().is_empty() {
        return Err(Failure::new(format!("there is no recovery key in {}", path.display())).exit(Exit::Usage));
    }
    Ok(key)
}

fn read_bounded(from: &mut dyn Read) -> io::Result<OwnerKey> {
    // Room for all of it at once: a text that grows leaves copies behind.
    let mut text = String::with_capacity(2 * KEY_BYTES_MAX);
    let read = from.take(KEY_BYTES_MAX as u64 + 1).read_to_string(&mut text);
    let (length, key) = (text.len(), OwnerKey::new(text));
    read?;
    if length > KEY_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long for a key"));
    }
    Ok(key)
}

/// Whether somebody can be asked.
pub(crate) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for the key on the terminal. Nothing of what is typed is shown.
pub(crate) fn ask_key(why: &str) -> Result<OwnerKey, Failure> {
    let cannot = |error: io::Error| Failure::new("cannot ask for the recovery key on this terminal").caused_by(&error);
    let mut stderr = io::stderr().lock();
    write!(stderr, "{why}\nrecovery key (not shown): ").and_then(|()| stderr.flush()).map_err(cannot)?;
    let typed = Quiet::begin().and_then(|_quiet| read_line(&mut io::stdin().lock()));
    let _ended = writeln!(stderr); // a closed stderr has nobody to tell
    match typed.map_err(cannot)? {
        Some(key) if !key.secret().trim().is_empty() => Ok(key),
        Some(_) => Err(Failure::new("no recovery key was given").exit(Exit::Usage)),
        None => Err(Failure::new("interrupted").exit(Exit::Interrupted)),
    }
}

/// Reads until the end of the line; none after Ctrl-C.
fn read_line(from: &mut dyn Read) -> io::Result<Option<OwnerKey>> {
    let mut line = String::with_capacity(KEY_BYTES_MAX);
    let mut byte = [0];
    loop {
        let ended = from.read(&mut byte)? == 0;
        match byte[0] {
            _ if ended => break,
            b'\n' | b'\r' | END_OF_TRANSMISSION => break,
            END_OF_TEXT => {
                drop(OwnerKey::new(line)); // wipes it
                return Ok(None);
            }
            BACKSPACE | DELETE => drop(line.pop()),
            other if line.len() < KEY_BYTES_MAX => line.push(char::from(other)),
            _ => {}
        }
    }
    Ok(Some(OwnerKey::new(line)))
}

/// The terminal without echo and without signals, until dropped: Ctrl-C must not leave it mute.
struct Quiet(Termios);

impl Quiet {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _restored = tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &self.0); // a terminal that is gone needs nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_line_ends_where_it_should() {
        for (typed, expected) in [
            ("recovery1.AB\nrest", Some("recovery1.AB")),
            ("recovery1.AX\u{7f}B\r", Some("recovery1.AB")),
            ("\u{8}abc", Some("abc")),
            ("abc\u{4}d", Some("abc")),
            ("abc\u{3}\n", None),
        ] {
            let line = read_line(&mut typed.as_bytes()).expect("memory is readable");
            assert_eq!(line.as_ref().map(OwnerKey::secret), expected, "{typed:?}");
        }
    }

    #[test]
    fn key_file_is_bounded() {
        assert!(read_bounded(&mut [b'A'; KEY_BYTES_MAX + 1].as_slice()).is_err());
        assert_eq!(read_bounded(&mut b"key\n".as_slice()).expect("short").secret(), "key\n");
    }
}
