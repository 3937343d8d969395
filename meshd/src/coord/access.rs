//! What a member may ask of a group. Whoever may not is told why; what no rule allows is refused.
//!
//! - Who serves a group or may come to (nodes of the site, for a site's) exchange votes, entries and snapshots.
//! - Any member reads and watches.
//! - A short name ([`super::names`]) is taken by the node to which it will belong, where nobody has it, and given up by it. One
//!   whose node is gone may be taken over.
//! - Invites ([`super::invites`]) are for the site's registrars.

use vdc::record::Home;
use vdc::roster::View;
use vdc::{Key, Name};
use vdc_coord::wire::{Ask, Trouble};
use vdc_coord::{Command, Compare, Condition, Op, Transaction};

use super::{invites, names};

/// Whether a node may come to serve a group.
pub(super) fn may_serve(view: &View, home: Home, node: &Key) -> bool {
    let member = view.members.get(node).filter(|member| member.standing.is_reachable() && !member.ephemeral);
    member.is_some_and(|member| match home {
        Home::Vdc => true,
        Home::Site(number) => member.site == number,
    })
}

/// Judges what `from` asks of the group of `home`.
///
/// # Errors
/// [`Trouble::Forbidden`] with the reason.
pub(super) fn judge(view: &View, home: Home, from: &Key, ask: &Ask) -> Result<(), Trouble> {
    let forbidden = |why: String| Trouble::Forbidden { why };
    match ask {
        Ask::Append { .. }
        | Ask::Vote(_)
        | Ask::PreVote(_)
        | Ask::Transfer { .. }
        | Ask::SnapshotBegin { .. }
        | Ask::SnapshotRows { .. }
        | Ask::SnapshotEnd { .. }
        | Ask::ReadIndex => {
            let serves = may_serve(view, home, from);
            if serves { Ok(()) } else { Err(forbidden("only nodes that may serve the group exchange its log".into())) }
        }
        Ask::Get { .. } | Ask::Range { .. } | Ask::Events { .. } | Ask::Status => {
            let known = view.members.get(from).is_some_and(|member| member.standing.is_reachable());
            if known { Ok(()) } else { Err(forbidden("only members may read".into())) }
        }
        Ask::Requests(requests) => {
            requests.iter().try_for_each(|request| command(view, home, from, &request.command).map_err(forbidden))
        }
    }
}

fn command(view: &View, home: Home, from: &Key, command: &Command) -> Result<(), String> {
    match command {
        Command::Open => Ok(()),
        Command::Transact(transaction) => transact(view, home, from, transaction),
        Command::GrantLease { .. } | Command::KeepAlive { .. } | Command::Revoke { .. } | Command::Compact { .. } => {
            if is_in_charge(view, home, from) {
                Ok(())
            } else {
                Err("leases and compaction are for registrars and admins".into())
            }
        }
    }
}

fn is_in_charge(view: &View, home: Home, node: &Key) -> bool {
    let registrar = match home {
        Home::Vdc => false,
        Home::Site(number) => view.registrars_for(number).iter().any(|registrar| registrar.key == *node),
    };
    registrar || view.is_admin(node)
}

fn transact(view: &View, home: Home, from: &Key, transaction: &Transaction) -> Result<(), String> {
    let Transaction { compares, success, failure } = transaction;
    // Only the first branch stands under the compares.
    let first = success.iter().map(|op| (op, compares.as_slice()));
    let second = failure.iter().map(|op| (op, [].as_slice()));
    first.chain(second).try_for_each(|(op, compares)| step(view, home, from, op, compares))
}

fn step(view: &View, home: Home, from: &Key, op: &Op, compares: &[Compare]) -> Result<(), String> {
    let (key, put) = match op {
        Op::Read { .. } => return Ok(()),
        Op::Put { key, value, .. } => (key, Some(value.as_slice())),
        Op::Delete { key } => (key, None),
        Op::DeleteRange { .. } => return Err("ranges are deleted by nobody".into()),
    };
    if key.starts_with(invites::PREFIX) {
        return if is_in_charge(view, home, from) { Ok(()) } else { Err("invites are for the site's registrars".into()) };
    }
    let Some(name) = key.strip_prefix(names::PREFIX).and_then(|name| Name::new(std::str::from_utf8(name).ok()?).ok())
    else {
        return Err(format!("there is nothing for members at {}", key.escape_ascii()));
    };
    if put.is_some_and(|value| value != from.0) {
        return Err(format!("the name {name} can be taken for the node itself only"));
    }
    let condition = compares.iter().find(|compare| compare.key == *key).map(|compare| &compare.condition);
    match condition {
        Some(Condition::Absent) if put.is_some() => Ok(()),
        Some(Condition::Value(value)) => {
            let holder = value.as_slice().try_into().map(Key).ok();
            let is_free = holder.is_none_or(|holder| holder == *from || !names::has(view, home, &holder, &name));
            if is_free { Ok(()) } else { Err(format!("the name {name} belongs to another node")) }
        }
        _ => Err(format!("the name {name} changes hands only from whom it is known to have")),
    }
}
