//! Who is at the other end of the socket, and what that one may do.
//!
//! Accounts are looked up in the files, not through NSS: the daemon is linked statically.

use std::fs;
use std::io;
use std::path::PathBuf;

/// The peer's credentials as the kernel took them when it connected (SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    pub pid: Option<i32>,
}

/// Who may change something.
#[derive(Clone, Debug)]
pub struct Access {
    /// Users that may always.
    pub uids: Vec<u32>,
    /// The group whose members may, and which owns the socket.
    pub group: String,
    /// `/etc/group`, group(5).
    pub group_file: PathBuf,
    /// `/etc/passwd`, passwd(5): names of users.
    pub passwd_file: PathBuf,
}

impl Default for Access {
    /// Root and the members of group `meshd`.
    fn default() -> Self {
        Self {
            uids: vec![0],
            group: "meshd".to_owned(),
            group_file: PathBuf::from("/etc/group"),
            passwd_file: PathBuf::from("/etc/passwd"),
        }
    }
}

impl Access {
    /// Whether the caller may change something. Reads the account files unless its uid settles it, so that a changed group
    /// counts at once; a file that cannot be read grants nothing.
    #[must_use]
    pub(crate) fn may_change(&self, caller: &Caller) -> bool {
        self.uids.contains(&caller.uid) || self.is_member(caller).unwrap_or(false)
    }

    /// The group's id, if there is such a group.
    pub(crate) fn group_id(&self) -> io::Result<Option<u32>> {
        Ok(find_group(&fs::read_to_string(&self.group_file)?, &self.group).map(|group| group.gid))
    }

    fn is_member(&self, caller: &Caller) -> io::Result<bool> {
        let groups = fs::read_to_string(&self.group_file)?;
        let Some(group) = find_group(&groups, &self.group) else { return Ok(false) };
        if group.gid == caller.gid {
            return Ok(true);
        }
        let users = fs::read_to_string(&self.passwd_file)?;
        Ok(user_names(&users, caller.uid).any(|name| group.members.contains(&name)))
    }
}

struct Group<'a> {
    gid: u32,
    members: Vec<&'a str>,
}

/// `name:password:gid:member,member`
fn find_group<'a>(file: &'a str, name: &str) -> Option<Group<'a>> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields.next().unwrap_or("").split(',').map(str::trim).filter(|m| !m.is_empty()).collect();
        Some(Group { gid, members })
    })
}

/// `name:password:uid:…`; several names may share a uid.
fn user_names(file: &str, uid: u32) -> impl Iterator<Item = &str> {
    file.lines().filter_map(move |line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(directory: &tempfile::TempDir) -> Access {
        let (group_file, passwd_file) = (directory.path().join("group"), directory.path().join("passwd"));
        fs::write(&group_file, "root:x:0:\nmeshdx:x:7:eve\nmeshd:x:998:anna, bert\nbroken\nusers:x:100:carl\n")
            .expect("a writable directory");
        fs::write(
            &passwd_file,
            "root:x:0:0::/root:/bin/sh\nanna:x:1001:100::/:/bin/sh\nbert:x:1002:100::/:/bin/sh\n\
             carl:x:1003:100::/:/bin/sh\neve:x:1004:7::/:/bin/sh\n",
        )
        .expect("a writable directory");
        Access { group_file, passwd_file, ..Access::default() }
    }

    #[test]
    fn root_and_group_members_may_change_others_not() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let access = access(&directory);
        for (uid, gid, expected) in [
            (0, 0, true),
            (1001, 100, true),
            (1002, 100, true),
            (1003, 100, false),
            (1003, 998, true), // primary group
            (1004, 7, false),  // a group whose name only starts alike
            (4242, 100, false),
        ] {
            assert_eq!(access.may_change(&Caller { uid, gid, pid: None }), expected, "uid {uid} gid {gid}");
        }
        assert_eq!(access.group_id().expect("readable"), Some(998));
    }

    #[test]
    fn unreadable_files_grant_nothing() {
        let access = Access { group_file: "/nonexistent/group".into(), ..Access::default() };
        assert!(!access.may_change(&Caller { uid: 1001, gid: 998, pid: None }));
        assert!(access.may_change(&Caller { uid: 0, gid: 0, pid: None }));
    }
}
