//! Users and their groups, from `/etc/passwd` and `/etc/group`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Groups of a user that are told.
const MOST_GROUPS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct People {
    /// Names and primary groups, by user numbers.
    users: BTreeMap<u32, (String, u32)>,
    /// Names, numbers and members.
    groups: Vec<(String, u32, Vec<String>)>,
}

impl People {
    /// As the files have them; what cannot be read is not known.
    pub(super) fn read(etc: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(etc.join(name)).unwrap_or_default();
        let mut people = Self::default();
        for line in text("passwd").lines() {
            if let [name, _, user, group, ..] = line.split(':').collect::<Vec<_>>()[..]
                && let (Ok(user), Ok(group)) = (user.parse(), group.parse())
            {
                people.users.insert(user, (name.to_owned(), group));
            }
        }
        for line in text("group").lines() {
            if let [name, _, group, members] = line.split(':').collect::<Vec<_>>()[..]
                && let Ok(group) = group.parse()
            {
                let members = members.split(',').map(str::to_owned).collect();
                people.groups.push((name.to_owned(), group, members));
            }
        }
        people
    }

    /// A user's name; the number if it has none.
    pub(super) fn name(&self, user: u32) -> String {
        let known = self.users.get(&user);
        known.map_or_else(|| user.to_string(), |(name, _)| name.clone())
    }

    /// The names of a user's groups.
    pub(super) fn groups(&self, user: u32) -> Vec<String> {
        let Some((name, primary)) = self.users.get(&user) else {
            return Vec::new();
        };
        let of_it =
            |(_, group, members): &&(String, u32, Vec<String>)| group == primary || members.contains(name);
        let groups = self.groups.iter().filter(of_it).take(MOST_GROUPS);
        groups.map(|(name, ..)| name.clone()).collect()
    }
}
