//! Files out of containers and into them, as tar streams.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc as std_mpsc;

use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use vdc_api::frame::{self, BODY_BYTES_MAX, Kind};
use vdc_api::{CopyDirection, CopyRequest, endpoint};

use super::Run;
use crate::cli::Cp;
use crate::client::{Client, Pipe};
use crate::failure::{Exit, Failure};
use crate::session;

/// Pieces of a stream that may wait.
const PIECES_MAX: usize = 16;

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Stream,
    Local(PathBuf),
    Workload { name: String, path: String },
}

impl End {
    /// `NAME:PATH` is a workload's unless a slash comes before the colon.
    fn parse(text: &str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            Some((name, path)) if !name.is_empty() && !name.contains('/') && !name.starts_with('.') => {
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                Self::Workload { name: name.to_owned(), path }
            }
            _ => Self::Local(text.into()),
        }
    }
}

impl Run<'_> {
    pub(super) async fn cp(&mut self, args: Cp) -> Result<(), Failure> {
        let (client, vdc) = self.to(args.on);
        match (End::parse(&args.source), End::parse(&args.destination)) {
            (End::Workload { name, path }, End::Stream) => {
                let pipe = open(&client, &vdc, &name, CopyDirection::Out, &path).await?;
                receive(pipe, |bytes| {
                    let mut stdout = io::stdout().lock();
                    stdout.write_all(bytes).and_then(|()| stdout.flush())
                })
                .await
            }
            (End::Workload { name, path }, End::Local(to)) => {
                let pipe = open(&client, &vdc, &name, CopyDirection::Out, &path).await?;
                unpack(pipe, to).await
            }
            (End::Stream, End::Workload { name, path }) => {
                let pipe = open(&client, &vdc, &name, CopyDirection::In, &path).await?;
                send(pipe, |to| io::copy(&mut io::stdin().lock(), to).map(drop)).await
            }
            (End::Local(from), End::Workload { name, path }) => {
                let own = from.canonicalize().ok().and_then(|path| path.file_name().map(OsString::from));
                let own = own.ok_or_else(|| cannot_read(&from, &io::ErrorKind::NotFound.into()))?;
                let pipe = open(&client, &vdc, &name, CopyDirection::In, &path).await?;
                match pack(pipe, from.clone(), own).await {
                    // It may be what the file is to be called.
                    Err(failure) if failure.code.is_none() && !path.ends_with('/') => {
                        let (parent, last) = path.rsplit_once('/').unwrap_or(("", &path));
                        let parent = if parent.is_empty() { "/" } else { parent };
                        if last.is_empty() || failure.exit != Exit::Failed {
                            return Err(failure);
                        }
                        let pipe = open(&client, &vdc, &name, CopyDirection::In, parent).await?;
                        pack(pipe, from, last.into()).await.map_err(|_| failure)
                    }
                    packed => packed,
                }
            }
            _ => Err(Failure::new("one end is a workload's, the other one is not")
                .exit(Exit::Usage)
                .hint("write `meshctl cp NAME:/PATH .` or `meshctl cp FILE NAME:/PATH`")),
        }
    }
}

async fn open(client: &Client, vdc: &str, name: &str, direction: CopyDirection, path: &str) -> Result<Pipe, Failure> {
    let request = CopyRequest { direction, path: path.to_owned() };
    client.upgrade(endpoint::WORKLOAD_COPY, &[vdc, name], &request).await
}

/// Takes a stream off the pipe until it ends well.
async fn receive(mut pipe: Pipe, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> Result<(), Failure> {
    let (mut received, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let count = pipe.read(&mut piece).await.map_err(|error| broken(&error))?;
        received.extend_from_slice(&piece[..count]);
        let mut at = 0;
        while let Some(frame) = session::decode(&received[at..])? {
            at += frame.length;
            match frame.kind {
                Kind::Stdout => match take(frame.body) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Failure::silent(Exit::Done)),
                    taken => taken.map_err(|error| Failure::new("cannot write the files").caused_by(&error))?,
                },
                Kind::Error => return Err(session::failure(frame.body)),
                Kind::Exit => return Ok(()),
                _ => {}
            }
        }
        received.drain(..at);
        if count == 0 {
            return Err(Failure::new("the copy broke off").exit(Exit::NoDaemon));
        }
    }
}

/// Sends what `make` writes, and waits until it has arrived.
async fn send(pipe: Pipe, make: impl FnOnce(&mut Pieces) -> io::Result<()> + Send + 'static) -> Result<(), Failure> {
    let (mut from, mut to) = tokio::io::split(pipe);
    let (sender, mut pieces) = mpsc::channel(PIECES_MAX);
    let made = tokio::task::spawn_blocking(move || {
        let mut writer = Pieces { sender, buffer: Vec::with_capacity(BODY_BYTES_MAX) };
        make(&mut writer).and_then(|()| writer.flush())
    });
    let sending = async {
        while let Some(bytes) = pieces.recv().await {
            let bytes: Vec<u8> = bytes;
            let mut out = Vec::with_capacity(bytes.len() + 5);
            frame::encode(Kind::Stdin, &bytes, &mut out);
            if to.write_all(&out).await.is_err() {
                break; // why is told by the other direction
            }
        }
        made.await.map_err(|_| Failure::new("cannot read the files"))?.map_err(|error| broken_source(&error))?;
        let mut out = Vec::new();
        frame::encode(Kind::StdinEof, &[], &mut out);
        let _told = to.write_all(&out).await;
        std::future::pending::<Result<(), Failure>>().await
    };
    let hearing = async {
        let (mut received, mut piece) = (Vec::new(), vec![0; 4 << 10]);
        loop {
            let count = from.read(&mut piece).await.map_err(|error| broken(&error))?;
            received.extend_from_slice(&piece[..count]);
            let mut at = 0;
            while let Some(frame) = session::decode(&received[at..])? {
                at += frame.length;
                match frame.kind {
                    Kind::Error => return Err(session::failure(frame.body)),
                    Kind::Exit => return Ok(()),
                    _ => {}
                }
            }
            received.drain(..at);
            if count == 0 {
                return Err(Failure::new("the copy broke off").exit(Exit::NoDaemon));
            }
        }
    };
    tokio::select! {
        // cancel-safe: nothing follows.
        heard = hearing => heard,
        // cancel-safe: see there.
        sent = sending => sent,
    }
}

/// Packs a file or directory under a name.
async fn pack(pipe: Pipe, from: PathBuf, name: OsString) -> Result<(), Failure> {
    send(pipe, move |to| {
        let mut builder = tar::Builder::new(to);
        builder.follow_symlinks(false);
        if from.symlink_metadata()?.is_dir() {
            builder.append_dir_all(&name, &from)?;
        } else {
            builder.append_path_with_name(&from, &name)?;
        }
        builder.finish()
    })
    .await
}

/// Unpacks a stream into a directory, or under another name beside what is there.
async fn unpack(pipe: Pipe, to: PathBuf) -> Result<(), Failure> {
    let (directory, name) = if to.is_dir() {
        (to, None)
    } else {
        let name = to.file_name().map(OsString::from);
        let name = name.ok_or_else(|| Failure::new(format!("{} is no place for files", to.display())))?;
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !parent.is_dir() {
            return Err(Failure::new(format!("there is no directory {}", parent.display())).hint("make it first"));
        }
        (parent.to_owned(), Some(name))
    };
    let (sender, pieces) = std_mpsc::sync_channel::<Vec<u8>>(PIECES_MAX);
    let unpacked = tokio::task::spawn_blocking(move || {
        let mut received = Received { pieces, at: vec![] };
        extract(&mut received, &directory, name.as_ref())?;
        // An archive may be followed by padding.
        io::copy(&mut received, &mut io::sink()).map(drop)
    });
    let mut stopped = false;
    let received = receive(pipe, |bytes| {
        sender.send(bytes.to_vec()).map_err(|_| {
            stopped = true;
            io::ErrorKind::Interrupted.into()
        })
    })
    .await;
    drop(sender);
    let unpacked = unpacked.await.map_err(|_| Failure::new("cannot write the files"))?;
    match (unpacked, received) {
        // A stream that ended early leaves half a file, which is not why.
        (_, Err(failure)) if !stopped => Err(failure),
        (Err(error), _) => Err(Failure::new("cannot write the files").caused_by(&error)),
        (Ok(()), received) => received,
    }
}

/// Writes what a tar stream holds below `directory` and nowhere else; the stream's first name is replaced by `name`.
fn extract(from: impl Read, directory: &Path, name: Option<&OsString>) -> io::Result<()> {
    let mut archive = tar::Archive::new(from);
    archive.set_preserve_permissions(true);
    archive.set_overwrite(true);
    let mut directories = vec![];
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let mut parts = path.components().filter(|part| *part != Component::CurDir);
        let first = parts.next();
        let rest: PathBuf = parts.collect();
        let inside = |part: Component<'_>| matches!(part, Component::Normal(_));
        if !first.is_some_and(inside) || !rest.components().all(inside) {
            return Err(io::Error::other(format!("{} leads out of the directory", path.display())));
        }
        let mut target = match (name, first) {
            (Some(name), _) => PathBuf::from(name),
            (None, Some(first)) => PathBuf::from(first.as_os_str()),
            (None, None) => continue,
        };
        // Joined to nothing, a path ends with a slash and means a directory.
        if !rest.as_os_str().is_empty() {
            target.push(rest);
        }
        check_parents(directory, &target)?;
        let place = directory.join(&target);
        if entry.header().entry_type().is_dir() {
            std::fs::create_dir_all(&place)?;
            // By a descriptor: the name may be another one's by the time its mode is set, which may forbid writing in it.
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
            directories.push((rustix::fs::open(&place, flags, Mode::empty())?, entry.header().mode()?));
        } else if entry.header().entry_type().is_hard_link() {
            let link = entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?.into_owned();
            let mut parts = link.components();
            let first = parts.next().filter(|part| inside(*part));
            let (Some(first), true) = (first, parts.clone().all(inside)) else {
                return Err(io::Error::other(format!("{} leads out of the directory", link.display())));
            };
            let mut source = PathBuf::from(name.map_or(first.as_os_str(), OsString::as_os_str));
            source.extend(parts);
            check_parents(directory, &source)?;
            std::fs::hard_link(directory.join(source), &place)?;
        } else {
            if place.symlink_metadata().is_ok_and(|there| !there.is_dir()) {
                std::fs::remove_file(&place)?;
            }
            entry.unpack(&place)?;
        }
    }
    for (directory, mode) in directories.into_iter().rev() {
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode & 0o7777))?;
    }
    Ok(())
}

/// No directory on the way may be a link: it could lead anywhere.
fn check_parents(directory: &Path, target: &Path) -> io::Result<()> {
    let mut place = directory.to_owned();
    for part in target.parent().into_iter().flat_map(Path::components) {
        place.push(part);
        if place.symlink_metadata().is_ok_and(|there| there.is_symlink()) {
            return Err(io::Error::other(format!("{} is a link, which is not followed", place.display())));
        }
    }
    Ok(())
}

/// The pieces of a stream as one.
struct Received {
    pieces: std_mpsc::Receiver<Vec<u8>>,
    at: Vec<u8>,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at.is_empty() {
            match self.pieces.recv() {
                Ok(piece) => self.at = piece,
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.at.len());
        buffer[..count].copy_from_slice(&self.at[..count]);
        self.at.drain(..count);
        Ok(count)
    }
}

/// A stream in pieces.
struct Pieces {
    sender: mpsc::Sender<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(BODY_BYTES_MAX - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == BODY_BYTES_MAX {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(BODY_BYTES_MAX));
        self.sender.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn broken(error: &io::Error) -> Failure {
    Failure::new("the connection to meshd broke off").caused_by(error).exit(Exit::NoDaemon)
}

fn broken_source(error: &io::Error) -> Failure {
    Failure::new("cannot read the files").caused_by(error)
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot read {}", path.display())).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(if kind.is_dir() { 0o755 } else { 0o640 });
            header.as_gnu_mut().expect("gnu").name[..path.len()].copy_from_slice(path.as_bytes());
            if kind.is_symlink() || kind.is_hard_link() {
                header.set_link_name_literal(content).expect("short");
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, io::empty()).expect("appends");
            } else {
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).expect("appends");
            }
        }
        builder.into_inner().expect("finishes")
    }

    #[test]
    fn ends_are_told_apart() {
        let workload = |name: &str, path: &str| End::Workload { name: name.into(), path: path.into() };
        assert_eq!(End::parse("web:/etc"), workload("web", "/etc"));
        assert_eq!(End::parse("web:etc"), workload("web", "/etc"));
        assert_eq!(End::parse("./web:/etc"), End::Local("./web:/etc".into()));
        assert_eq!(End::parse("/a:b"), End::Local("/a:b".into()));
        assert_eq!(End::parse("-"), End::Stream);
    }

    #[test]
    fn streams_are_written_below_the_directory_and_nowhere_else() {
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        let scene = tempfile::tempdir().expect("a directory");
        let (inside, outside) = (scene.path().join("in"), scene.path().join("out"));
        for path in [&inside, &outside] {
            std::fs::create_dir(path).expect("makes");
        }
        let good = archive(&[("d", Directory, ""), ("d/f", Regular, "text"), ("d/l", Symlink, "/etc/passwd")]);
        extract(&good[..], &inside, Some(&"new".into())).expect("extracts");
        assert_eq!(std::fs::read_to_string(inside.join("new/f")).expect("written"), "text");
        assert!(inside.join("new/l").is_symlink(), "links are written, never followed");
        let out = outside.display().to_string();
        std::fs::write(outside.join("secret"), "s").expect("writes");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&outside, mode).expect("sets");
        for bad in [
            archive(&[("../x", Regular, "1")]),
            archive(&[("/x", Regular, "1")]),
            archive(&[("a/../../x", Regular, "1")]),
            archive(&[("l", Symlink, &out), ("l/x", Regular, "1")]),
            archive(&[("d", Directory, ""), ("d/l", Symlink, &out), ("d/l", Directory, "")]),
            archive(&[("m", Symlink, &out), ("h", Link, "m/secret")]),
            archive(&[("h", Link, "../out/secret")]),
        ] {
            assert!(extract(&bad[..], &inside, None).is_err());
            for name in ["l", "m", "h"] {
                let _absent = std::fs::remove_file(inside.join(name));
            }
        }
        assert_eq!(std::fs::read_dir(&outside).expect("reads").count(), 1, "the secret alone");
        let metadata = std::fs::metadata(&outside).expect("there");
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&metadata) & 0o777, 0o700);
        let secret = std::fs::metadata(outside.join("secret")).expect("there");
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&secret), 1);
        // A link that stands where a file goes is replaced.
        std::os::unix::fs::symlink(outside.join("y"), inside.join("f")).expect("links");
        extract(&archive(&[("f", Regular, "own")])[..], &inside, None).expect("extracts");
        assert!(!outside.join("y").exists() && !inside.join("f").is_symlink());
    }
}
