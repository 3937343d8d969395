//! Who a container's program is: a `USER` of an image, looked up in the image's own `/etc/passwd` and `/etc/group`.

use std::path::Path;

/// Bytes of either file that are looked at.
pub(crate) const FILE_BYTES_MAX: u64 = 4 << 20;
/// Groups of one user; the kernel takes more, and no image that means well has as many.
const GROUPS_MAX: usize = 1_024;

/// Numbers for the kernel, and the home that programs are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    /// All groups, ascending, with `gid`: a process that changes its group must not lose what the group is denied.
    pub groups: Vec<u32>,
    pub home: String,
}

/// A user or group that the image does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("the image has no user {0}")]
    NoUser(String),
    #[error("the image has no group {0}")]
    NoGroup(String),
    #[error("{0} is no user: expected NAME, UID, NAME:GROUP or UID:GID")]
    Malformed(String),
}

/// One line of `/etc/passwd`.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Resolves `user` (`NAME`, `UID`, either with `:GROUP` or `:GID`; empty is root) by the text of the two files. A number
/// needs no entry; a name does. Further groups are those that list the user, unless a group was given.
///
/// # Errors
/// A name without an entry, or text that is no user.
pub fn find_user(user: &str, passwd: &[u8], group: &[u8]) -> Result<ResolvedUser, UserError> {
    let (wanted, wanted_group) = match user.split_once(':') {
        Some((_, "")) => return Err(UserError::Malformed(user.to_owned())),
        Some((wanted, group)) => (wanted, Some(group)),
        None => (user, None),
    };
    if wanted.is_empty() && wanted_group.is_some() {
        return Err(UserError::Malformed(user.to_owned()));
    }
    let wanted = if wanted.is_empty() { "0" } else { wanted };
    let (passwd, group) = (String::from_utf8_lossy(passwd), String::from_utf8_lossy(group));
    let number = number(wanted);
    // A name is looked for first: some images have users named by digits.
    let by_name = accounts(&passwd).find(|account| account.name == wanted);
    let account = by_name.or_else(|| accounts(&passwd).find(|account| Some(account.uid) == number));
    let uid = match (&account, number) {
        (Some(account), _) => account.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(UserError::NoUser(wanted.to_owned())),
    };
    let gid = match wanted_group {
        None => account.as_ref().map_or(0, |account| account.gid),
        Some(name) => groups(&group)
            .find(|(known, _, _)| *known == name)
            .map(|(_, gid, _)| gid)
            .or_else(|| self::number(name))
            .ok_or_else(|| UserError::NoGroup(name.to_owned()))?,
    };
    let member_of = |account: &Account<'_>| -> Vec<u32> {
        let listed = groups(&group).filter(|(_, _, members)| members.split(',').any(|member| member == account.name));
        listed.map(|(_, number, _)| number).take(GROUPS_MAX).collect()
    };
    let mut all = if wanted_group.is_some() { Vec::new() } else { account.as_ref().map(member_of).unwrap_or_default() };
    all.push(gid);
    all.sort_unstable();
    all.dedup();
    let home = account.map(|account| account.home).filter(|home| Path::new(home).is_absolute());
    Ok(ResolvedUser { uid, gid, groups: all, home: home.unwrap_or("/").to_owned() })
}

/// Numbers that the kernel keeps for "nobody in particular" are refused.
fn number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| plain && *number != u32::MAX)
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let (uid, gid) = (number(fields.nth(1)?)?, number(fields.next()?)?);
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

/// Name, number and members.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = number(fields.nth(1)?)?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:,,,:/srv/web:/bin/false\n\
        broken line\n:x:1:1::/:\n7:x:1007:1007::/home/seven:/bin/sh\nbad:x:-1:0::/:\n";
    const GROUP: &[u8] = b"root:x:0:\nweb:x:34:\nadm:x:4:syslog,web\nssl:x:2:web\nstaff:x:50:\n\xff\xfe:x:9:web\n";

    fn check(user: &str) -> Result<(u32, u32, Vec<u32>, String), UserError> {
        find_user(user, PASSWD, GROUP).map(|u| (u.uid, u.gid, u.groups, u.home))
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        assert_eq!(check(""), Ok((0, 0, vec![0], "/root".to_owned())));
        assert_eq!(check("web"), Ok((33, 34, vec![2, 4, 9, 34], "/srv/web".to_owned())));
        assert_eq!(check("33"), check("web"));
        assert_eq!(check("web:staff"), Ok((33, 50, vec![50], "/srv/web".to_owned())));
        assert_eq!(check("web:77"), Ok((33, 77, vec![77], "/srv/web".to_owned())));
        assert_eq!(check("1234"), Ok((1_234, 0, vec![0], "/".to_owned())));
        assert_eq!(check("1234:5"), Ok((1_234, 5, vec![5], "/".to_owned())));
        let nobody_known = find_user("", b"", b"").map(|user| user.home);
        assert_eq!(nobody_known.as_deref(), Ok("/"), "an image without users has no /root");
        assert_eq!(check("7").map(|user| user.0), Ok(1_007), "a name of digits is a name");
    }

    #[test]
    fn an_unknown_name_is_told() {
        assert_eq!(check("nobody"), Err(UserError::NoUser("nobody".to_owned())));
        assert_eq!(check("web:wheel"), Err(UserError::NoGroup("wheel".to_owned())));
        assert_eq!(check("bad"), Err(UserError::NoUser("bad".to_owned())));
        for malformed in ["web:", ":web", ":"] {
            assert_eq!(check(malformed), Err(UserError::Malformed(malformed.to_owned())));
        }
        for number in ["4294967295", "4294967296", "-1", "+1"] {
            assert_eq!(check(number), Err(UserError::NoUser(number.to_owned())));
        }
    }

    #[test]
    fn an_image_without_the_files_still_has_numbers() {
        assert_eq!(find_user("", b"", b"").unwrap().uid, 0);
        assert_eq!(find_user("5:6", b"", b"").unwrap().gid, 6);
        assert!(find_user("root", b"", b"").is_err());
    }
}
