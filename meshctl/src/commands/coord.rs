//! Coordination groups: how they stand, recovery, backup and restore.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use vdc_api::{
    BACKUP_BYTES_MAX, BACKUP_HEADER_BYTES_MAX, BackupHeader, CoordBackup, CoordRecover, CoordStatus, GroupHome,
    RestoreQuery, RestoreView, endpoint,
};

use super::Run;
use crate::cli::{CoordVerb, Homes, RecoverArgs, RestoreArgs};
use crate::client::Upload;
use crate::confirm::confirm;
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::progress::ByteBar;
use crate::show::{self, BackupDone, GroupMembers};

/// Bytes of a file that are read at once.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces of an upload that may wait.
const PIECES_MAX: usize = 16;
/// Between two looks at how far an upload is.
const PROGRESS_STEP: Duration = Duration::from_millis(100);

impl Run<'_> {
    pub(super) async fn coord_verb(&mut self, verb: CoordVerb) -> Result<(), Failure> {
        match verb {
            CoordVerb::Status(args) => {
                let status = self.groups(args.homes).await?;
                self.print(&status)?;
                let warnings = show::coord_warnings(&show::harmless(&status)?, self.terminal.err);
                self.terminal.note(&warnings);
                let troubled = status.groups.iter().any(vdc_api::GroupView::is_troubled);
                // Why was just said.
                if args.check && troubled { Err(Failure::silent(Exit::Failed)) } else { Ok(()) }
            }
            CoordVerb::Members(homes) => {
                let groups = self.groups(homes).await?.groups.into_iter();
                let members: Vec<GroupMembers> = groups
                    .map(|group| GroupMembers { home: group.home, leader: group.leader, members: group.members })
                    .collect();
                self.print(&members)
            }
            CoordVerb::Recover(args) => self.coord_recover(args).await,
            CoordVerb::Backup(args) => {
                let home = self.home(args.home.home).await?;
                if args.file == Path::new("-") {
                    return self.backup_to_stdout(home).await;
                }
                self.backup_to_file(home, &args.file).await
            }
            CoordVerb::Restore(args) => self.coord_restore(args).await,
        }
    }

    /// The groups that are meant.
    async fn groups(&self, homes: Homes) -> Result<CoordStatus, Failure> {
        let mut status = self.client.read(endpoint::COORD_STATUS, &[&self.vdc], &()).await?;
        if let Some(home) = homes.home {
            status.groups.retain(|group| group.home == home);
            if status.groups.is_empty() {
                return Err(Failure::new(format!("there is no coordination group of {}", show::home_words(&home)))
                    .hint("list them with `meshctl coord status`"));
            }
        }
        Ok(status)
    }

    /// The group that is meant: the one that was named, or the only one.
    async fn home(&self, named: Option<GroupHome>) -> Result<GroupHome, Failure> {
        if let Some(home) = named {
            return Ok(home);
        }
        let mut homes: Vec<_> = self.groups(Homes { home: None }).await?.groups.into_iter().map(|g| g.home).collect();
        match (homes.pop(), homes.is_empty()) {
            (Some(only), true) => Ok(only),
            (None, _) => Err(Failure::new("there is no coordination group yet")),
            (Some(last), false) => {
                homes.push(last);
                let homes: Vec<String> = homes.iter().map(|h| show::harmless_text(&format!("--home {h}"))).collect();
                Err(Failure::new("it is not said which group is meant").exit(Exit::Usage).hint(homes.join(", or ")))
            }
        }
    }

    async fn coord_recover(&mut self, args: RecoverArgs) -> Result<(), Failure> {
        let home = self.home(args.home.home).await?;
        let request = CoordRecover { home, from: args.from, confirm: false };
        let cost = self.client.ask(endpoint::COORD_RECOVER, &[&self.vdc], &request).await?;
        self.terminal.note(&show::recovery_cost(&show::harmless(&cost)?, self.terminal.err));
        if !args.yes.yes {
            confirm("This cannot be undone.")?;
        }
        // From the node whose copy was judged, whoever has the newest one by now.
        let request = CoordRecover { from: Some(cost.from), confirm: true, ..request };
        let vdc = self.vdc.clone();
        self.change(endpoint::COORD_RECOVER, &[&vdc], &request).await
    }

    // ---- backup

    async fn backup_to_stdout(&mut self, home: GroupHome) -> Result<(), Failure> {
        if self.terminal.out_is_terminal() {
            return Err(Failure::new("a backup is nothing for a terminal")
                .exit(Exit::Usage)
                .hint("name a file, or lead the output into a pipe"));
        }
        let done = self.backup(home, &mut io::stdout().lock(), None, Interrupt::catch()).await?;
        self.terminal.note(&show::harmless(&done).map(|done| show::Show::show(&done, self.terminal.err))?);
        Ok(())
    }

    async fn backup_to_file(&mut self, home: GroupHome, file: &Path) -> Result<(), Failure> {
        let cannot = |error: io::Error| Failure::new(format!("cannot write {}", file.display())).caused_by(&error);
        if file.is_dir() {
            return Err(cannot(io::ErrorKind::IsADirectory.into()).exit(Exit::Usage));
        }
        // Before there is something that must not be left behind.
        let interrupt = Interrupt::catch();
        let mut partial = Partial::begin(file).map_err(cannot)?;
        let done = self.backup(home, &mut partial.file, Some(file), interrupt).await?;
        partial.finish(file).map_err(cannot)?;
        self.print(&done)
    }

    /// Writes a backup to its end. Ctrl-C ends it early.
    async fn backup(
        &mut self,
        home: GroupHome,
        to: &mut dyn Write,
        file: Option<&Path>,
        mut interrupt: Interrupt,
    ) -> Result<BackupDone, Failure> {
        let mut bar = ByteBar::new("writing the backup", self.terminal.err, self.terminal.err_is_terminal());
        let work = async {
            let request = CoordBackup { home: home.clone() };
            let mut pieces = self.client.download(endpoint::COORD_BACKUP, &[&self.vdc], &request).await?;
            let (mut begin, mut header, mut size_bytes): (_, Option<(BackupHeader, u64)>, _) =
                (Vec::new(), None, 0_u64);
            while let Some(piece) = pieces.next().await? {
                size_bytes += u64::try_from(piece.len()).unwrap_or(u64::MAX);
                if size_bytes > BACKUP_BYTES_MAX {
                    return Err(Failure::new(format!("the backup is larger than {BACKUP_BYTES_MAX} bytes")));
                }
                to.write_all(&piece).map_err(|error| Failure::new("cannot write the backup").caused_by(&error))?;
                if header.is_none() {
                    begin.extend_from_slice(&piece);
                    let read = BackupHeader::read(&begin).map_err(|error| not_understood().caused_by(&error))?;
                    header = read.map(|(header, length)| (header, u64::try_from(length).unwrap_or(u64::MAX)));
                }
                // The first line is none of the rows.
                let (about, first) = header.as_ref().map_or((0, 0), |(header, length)| (header.about_bytes, *length));
                self.terminal.note(&bar.text(size_bytes, about.saturating_add(first)));
            }
            let (header, _) = header.filter(|(header, _)| header.home == home).ok_or_else(not_understood)?;
            to.flush().map_err(|error| Failure::new("cannot write the backup").caused_by(&error))?;
            Ok(BackupDone { file: file.map(|file| file.display().to_string()), size_bytes, header })
        };
        let done = tokio::select! {
            // cancel-safe: nothing is read after the other arm wins.
            done = work => done,
            // cancel-safe: see there.
            () = interrupt.pressed() => Err(Failure::new("interrupted; no backup was written").exit(Exit::Interrupted)),
        };
        self.terminal.note(bar.end());
        done
    }

    // ---- restore

    async fn coord_restore(&mut self, args: RestoreArgs) -> Result<(), Failure> {
        let mut source = Source::open(&args.file)?;
        let header = source.header.clone();
        if let Some(home) = args.home.filter(|home| *home != header.home) {
            let (is, not) = (show::home_words(&header.home), show::home_words(&home));
            return Err(Failure::new(format!("this is a backup of {is}, not of {not}")).exit(Exit::Usage));
        }
        let status = self.client.read(endpoint::COORD_STATUS, &[&self.vdc], &()).await?;
        let status: CoordStatus = show::harmless(&status)?;
        let group = status.groups.iter().find(|group| group.home == header.home);
        self.terminal.note(&show::restore_cost(&show::harmless(&header)?, group, self.terminal.err));
        if !args.yes.yes {
            confirm("All that the group holds is replaced.")?;
        }
        let query = RestoreQuery { home: header.home, force: args.force || !args.yes.yes };
        let view = self.upload(&query, &mut source).await?;
        match &view.refused {
            None => self.print(&view),
            Some(why) => Err(Failure::new(format!("nothing was restored: {}", show::harmless_text(why)))
                .exit(Exit::Refused)
                .hint("with --force it is restored all the same")),
        }
    }

    /// Sends a backup. Until all of it is there Ctrl-C gives it up; from then on the first one only says that the answer is
    /// awaited.
    async fn upload(&mut self, query: &RestoreQuery, source: &mut Source) -> Result<RestoreView, Failure> {
        let mut interrupt = Interrupt::catch();
        let mut bar = ByteBar::new("sending the backup", self.terminal.err, self.terminal.err_is_terminal());
        let (pieces, total_bytes) = (source.pieces(), source.size_bytes);
        let (body, uploaded) = Upload::new(pieces);
        let client = self.client.clone();
        let vdc = self.vdc.clone();
        let parts = [vdc.as_str()];
        let answer = client.upload(endpoint::COORD_RESTORE, &parts, query, body);
        tokio::pin!(answer);
        let mut ticks = tokio::time::interval(PROGRESS_STEP);
        let mut told = false;
        let ended = loop {
            tokio::select! {
                biased;
                // cancel-safe: polled on in the next round.
                answer = &mut answer => break answer,
                // cancel-safe: a Ctrl-C that comes while nobody waits is kept.
                () = interrupt.pressed() => {
                    if !uploaded.is_whole() {
                        break Err(Failure::new("interrupted; nothing was restored").exit(Exit::Interrupted));
                    }
                    if told {
                        let failure = Failure::new("interrupted; the backup may still be restored");
                        break Err(failure.exit(Exit::Interrupted).hint("look at `meshctl coord status`"));
                    }
                    told = true;
                    self.terminal.note(bar.end());
                    self.terminal.note("waiting for meshd to finish the change; press Ctrl-C again to stop waiting\n");
                }
                // cancel-safe: a tick that is missed is a step that is not shown.
                _ = ticks.tick(), if !told => self.terminal.note(&bar.text(uploaded.bytes(), total_bytes)),
            }
        };
        self.terminal.note(bar.end());
        match uploaded.failure() {
            Some(error) => Err(Failure::new("cannot read the backup").caused_by(error)),
            None => ended,
        }
    }
}

fn not_understood() -> Failure {
    Failure::new("what meshd sent is no backup of this group")
        .hint("meshctl and meshd should be of the same release: compare them with `meshctl version`")
}

/// A file that takes its name when it is whole, and leaves nothing behind otherwise.
#[derive(Debug)]
struct Partial {
    file: File,
    /// None once it has its name.
    path: Option<PathBuf>,
}

impl Partial {
    fn begin(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let path = target.with_file_name(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id()));
        // What is in it may be secret; a link of that name is not followed.
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = match open() {
            // By one of this number that was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(&path)?;
                open()?
            }
            opened => opened?,
        };
        Ok(Self { file, path: Some(path) })
    }

    fn finish(mut self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(path) = &self.path {
            std::fs::rename(path, target)?;
            self.path = None;
        }
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Whoever removed it first has done the same.
            let _removed = std::fs::remove_file(path);
        }
    }
}

/// A backup to be restored, read up to behind its first line.
struct Source {
    from: Option<Box<dyn Read + Send>>,
    /// What was read already.
    begin: Vec<u8>,
    header: BackupHeader,
    /// As far as is known.
    size_bytes: u64,
}

impl Source {
    fn open(path: &Path) -> Result<Self, Failure> {
        let cannot = |error: io::Error| Failure::new(format!("cannot read {}", path.display())).caused_by(&error);
        if path != Path::new("-") {
            let file = File::open(path).map_err(cannot)?;
            let size_bytes = file.metadata().map_err(cannot)?.len();
            return Self::read(path, Box::new(file), Some(size_bytes));
        }
        if io::stdin().is_terminal() {
            return Err(Failure::new("a terminal is no backup").exit(Exit::Usage).hint("name a file"));
        }
        Self::read(path, Box::new(io::stdin()), None)
    }

    fn read(path: &Path, mut from: Box<dyn Read + Send>, size_bytes: Option<u64>) -> Result<Self, Failure> {
        let cannot = |error: io::Error| Failure::new(format!("cannot read {}", path.display())).caused_by(&error);
        let no_backup = || {
            Failure::new(format!("{} is no backup of a coordination group", path.display()))
                .hint("restore what `meshctl coord backup` wrote")
        };
        let mut begin = Vec::with_capacity(BACKUP_HEADER_BYTES_MAX);
        loop {
            if let Some((header, length)) = BackupHeader::read(&begin).map_err(|error| no_backup().caused_by(&error))? {
                let about = header.about_bytes.saturating_add(u64::try_from(length).unwrap_or(0));
                return Ok(Self { from: Some(from), begin, header, size_bytes: size_bytes.unwrap_or(about) });
            }
            let mut piece = [0; 512];
            let count = from.read(&mut piece).map_err(cannot)?;
            if count == 0 {
                return Err(no_backup().because("it ends within its first line"));
            }
            begin.extend_from_slice(&piece[..count]);
        }
    }

    /// Everything from its first byte on. Read on a thread of its own: such a read cannot be given up.
    fn pieces(&mut self) -> mpsc::Receiver<io::Result<Bytes>> {
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let (begin, from) = (std::mem::take(&mut self.begin), self.from.take());
        let mut from = io::Cursor::new(begin).chain(from.unwrap_or_else(|| Box::new(io::empty())));
        let read = move || {
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let piece = match from.read(&mut piece) {
                    Ok(0) => return,
                    Ok(count) => {
                        piece.truncate(count);
                        Ok(Bytes::from(piece))
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let failed = piece.is_err();
                if sender.blocking_send(piece).is_err() || failed {
                    return;
                }
            }
        };
        drop(tokio::task::spawn_blocking(read));
        receiver
    }
}
