//! Who may read and who may change.
//!
//! Root and guestseal's own user may do both; others what the configuration says of their user or their primary group.
//! Whoever may change may read.

use std::collections::BTreeSet;

/// What a call needs.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Right {
    /// It only looks.
    Read,
    /// It changes something.
    Change,
}

/// Users and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct People {
    /// User numbers.
    pub users: BTreeSet<u32>,
    /// Group numbers.
    pub groups: BTreeSet<u32>,
}

/// Who may do what, besides root and guestseal's own user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Who may read.
    pub read: People,
    /// Who may change, and read.
    pub change: People,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A process of this host, by what the kernel says of it.
    Local {
        /// Its user.
        user: u32,
        /// Its primary group.
        group: u32,
        /// Its number, if the kernel knows one.
        process: Option<i32>,
        /// What it may do.
        may: Option<Right>,
    },
    /// The holder of a certificate.
    Certificate {
        /// Its DNS name.
        name: String,
        /// What it may do.
        may: Option<Right>,
    },
}

impl People {
    fn have(&self, user: u32, group: u32) -> bool {
        self.users.contains(&user) || self.groups.contains(&group)
    }

    /// Reads a list: `alice` and `1000` are users, `@operators` and `@1001` are groups.
    ///
    /// # Errors
    /// The name that the system does not know.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut people = Self::default();
        for name in names {
            match name.strip_prefix('@') {
                Some(group) => {
                    let number =
                        group_number(group).ok_or_else(|| format!("this host has no group \"{group}\""))?;
                    people.groups.insert(number);
                }
                None => {
                    let number = number("/etc/passwd", name);
                    people
                        .users
                        .insert(number.ok_or_else(|| format!("this host has no user \"{name}\""))?);
                }
            }
        }
        Ok(people)
    }
}

/// The number of a group of this host, by name or number.
#[must_use]
pub fn group_number(name: &str) -> Option<u32> {
    number("/etc/group", name)
}

/// `name:x:number:...`
fn number(file: &str, name: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let text = std::fs::read_to_string(file).ok()?;
    let mut found = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    });
    found.next()
}

impl Access {
    /// What a local process may do.
    #[must_use]
    pub fn of(&self, user: u32, group: u32) -> Option<Right> {
        let own = rustix::process::geteuid().as_raw();
        if user == 0 || user == own || self.change.have(user, group) {
            Some(Right::Change)
        } else if self.read.have(user, group) {
            Some(Right::Read)
        } else {
            None
        }
    }
}

impl Caller {
    /// Whether it may.
    #[must_use]
    pub fn may(&self, needed: Right) -> bool {
        let (Caller::Local { may, .. } | Caller::Certificate { may, .. }) = self;
        matches!(
            (may, needed),
            (Some(Right::Change), _) | (Some(Right::Read), Right::Read)
        )
    }

    /// Whether it is one of some people of this host.
    #[must_use]
    pub fn is_among(&self, people: &People) -> bool {
        match self {
            Caller::Local { user, group, .. } => people.have(*user, *group),
            Caller::Certificate { .. } => false,
        }
    }

    /// Its name in the journal.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Caller::Local {
                user,
                process: Some(process),
                ..
            } => format!("user {user}, process {process}"),
            Caller::Local { user, .. } => format!("user {user}"),
            Caller::Certificate { name, .. } => format!("certificate of {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_of_users_and_groups() {
        let people = People::parse(["root", "4711", "@root", "@4712"]).unwrap();
        assert_eq!(people.users, BTreeSet::from([0, 4711]));
        assert_eq!(people.groups, BTreeSet::from([0, 4712]));
        let error = People::parse(["no such user"]).unwrap_err();
        assert_eq!(error, "this host has no user \"no such user\"");
        assert!(People::parse(["@"]).is_err());
    }

    #[test]
    fn who_may_change_may_read_and_nobody_else_may() {
        let access = Access {
            read: People::parse(["4711"]).unwrap(),
            change: People::parse(["@4712"]).unwrap(),
        };
        let caller = |user, group| Caller::Local {
            user,
            group,
            process: None,
            may: access.of(user, group),
        };
        let may = |user, group| [Right::Read, Right::Change].map(|right| caller(user, group).may(right));
        assert_eq!(may(0, 99), [true, true], "root");
        assert_eq!(may(4711, 99), [true, false]);
        assert_eq!(may(99, 4712), [true, true]);
        assert_eq!(may(99, 99), [false, false]);
        assert_eq!(may(4712, 4711), [false, false], "users are not groups");
    }
}
