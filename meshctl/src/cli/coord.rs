//! The grammar of coordination groups.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use vdc_api::GroupHome;

use super::parse_some;

#[derive(Debug, Subcommand)]
pub(crate) enum CoordVerb {
    /// What each group does, and what may fail.
    #[command(after_help = "\
Examples:
  meshctl coord status
  meshctl coord status --home site:berlin
  meshctl coord status --check              # exit code 1 if somebody should act: for monitoring

Warnings go to stderr. One box alone has no redundancy and is no warning; three boxes of which one is down are.")]
    Status(CoordStatusArgs),
    /// The nodes of each group: who votes, who answers, who is behind.
    #[command(after_help = "\
Examples:
  meshctl coord members
  meshctl coord members --home vdc")]
    Members(Homes),
    /// Found a group anew from what one node holds, after more voters were lost than it survives.
    #[command(after_help = "\
Examples:
  meshctl coord recover --home site:berlin
  meshctl coord recover --home vdc --from paris1.paris
  meshctl coord recover --home site:berlin --yes

It says what may be lost and asks first. Do this only if the lost boxes never come back: as soon as a majority of the voters
answers, the group goes on by itself and loses nothing. Needs an admin; for a site's group its registrar will do.")]
    Recover(RecoverArgs),
    /// Write all that a group holds to a file.
    #[command(after_help = "\
Examples:
  meshctl coord backup --home site:berlin berlin.coord
  meshctl coord backup --home vdc - | gpg -e -r office > acme.coord.gpg

The file appears when it is whole, and replaces one of that name. What stands in it is not encrypted.")]
    Backup(BackupArgs),
    /// Replace all that a group holds by a backup.
    #[command(after_help = "\
Examples:
  meshctl coord restore berlin.coord
  meshctl coord restore berlin.coord --yes --force

It says what may be lost and asks first. The group must serve: where it does not, `meshctl coord recover` comes first. Needs an
admin; for a site's group its registrar will do.")]
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
pub(crate) struct Homes {
    /// Only this group: `vdc`, or `site:` and the name of a site.
    #[arg(long, value_name = "vdc|site:SITE")]
    pub(crate) home: Option<GroupHome>,
}

#[derive(Debug, Args)]
pub(crate) struct CoordStatusArgs {
    #[command(flatten)]
    pub(crate) homes: Homes,
    /// End with exit code 1 if a group does not serve, or survives less than its boxes would allow.
    #[arg(long)]
    pub(crate) check: bool,
}

/// Which group is meant, and whether that was thought over.
#[derive(Debug, Args)]
pub(crate) struct Home {
    /// The group: `vdc`, or `site:` and the name of a site. Not needed where there is only one.
    #[arg(long, value_name = "vdc|site:SITE")]
    pub(crate) home: Option<GroupHome>,
}

#[derive(Debug, Args)]
pub(crate) struct Yes {
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    #[command(flatten)]
    pub(crate) home: Home,
    /// The node whose copy counts; the newest of those that answer by default.
    #[arg(long, value_name = "NODE", value_parser = parse_some)]
    pub(crate) from: Option<String>,
    #[command(flatten)]
    pub(crate) yes: Yes,
}

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    pub(crate) home: Home,
    /// Where it goes, or `-` for stdout.
    #[arg(value_name = "FILE|-")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The group: `vdc`, or `site:` and the name of a site; by default the one that the backup is of.
    #[arg(long, value_name = "vdc|site:SITE")]
    pub(crate) home: Option<GroupHome>,
    /// Also where the group has changes that the backup does not have. A yes on the terminal means this too.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) yes: Yes,
    /// What `meshctl coord backup` wrote, or `-` for stdin.
    #[arg(value_name = "FILE|-")]
    pub(crate) file: PathBuf,
}
