//! What an app's database knows beside its documents: its access rules, its partial databases, and who reads
//! which of them.
//!
//! All of it is in memory, loaded at opening and changed on the writer thread alone, so that asking whether
//! somebody may read costs no look-up in the engine.

use crate::access::{Access, AppRules, Signature};
use crate::record::{AclNo, AclRecord, PartNo, PartRecord};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Access pairs of one app. All are in memory, and any user who may create documents can make one.
const MAX_ACLS: usize = 500_000;
/// Entries in all of them together: some 64 bytes each.
const MAX_ACL_ENTRIES: usize = 4_000_000;

/// Who asks: a user with their roles, or nobody in particular.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Who {
    /// `None`: not logged in.
    pub name: Option<String>,
    /// Their roles.
    pub roles: Vec<String>,
}

/// Who asks, ready to be compared with lists of readers and writers.
#[derive(Debug)]
pub struct Reader {
    who: Who,
    entries: HashSet<String>,
}

impl Reader {
    /// The entries of `access` that mean this user.
    pub fn new(mut who: Who) -> Reader {
        who.roles.sort_unstable();
        who.roles.dedup();
        let mut entries: HashSet<String> = who.roles.iter().map(|role| format!("role:{role}")).collect();
        entries.insert("anyone".to_owned());
        if let Some(name) = &who.name {
            entries.insert("users".to_owned());
            entries.insert(format!("user:{name}"));
        }
        Reader { who, entries }
    }

    /// Their name; `None`: not logged in.
    pub fn name(&self) -> Option<&str> {
        self.who.name.as_deref()
    }

    /// Their roles, sorted.
    pub fn roles(&self) -> &[String] {
        &self.who.roles
    }

    /// The same user with other roles.
    pub(crate) fn with_roles(&self, roles: Vec<String>) -> Reader {
        Reader::new(Who { name: self.who.name.clone(), roles })
    }

    /// Whether one of these entries means this user.
    pub fn is_among(&self, entries: &[String]) -> bool {
        entries.iter().any(|entry| self.entries.contains(entry))
    }

    fn entries(&self) -> impl Iterator<Item = &String> {
        self.entries.iter()
    }
}

/// A partial database, as others see it.
#[derive(Debug, Clone)]
pub struct PartInfo {
    /// Its name after `--`.
    pub signature: String,
    /// Who may read it.
    pub readers: Vec<String>,
    /// Live documents.
    pub doc_count: u64,
    /// Sequence of its newest row.
    pub update_seq: u64,
}

/// The state of an app. Empty for a plain database.
#[derive(Debug, Default)]
pub(crate) struct AppState {
    pub rules: Arc<AppRules>,
    parts: Vec<PartRecord>,
    by_signature: HashMap<String, PartNo>,
    by_entry: HashMap<String, Vec<PartNo>>,
    /// Number 0 is none, so `acls[n - 1]`.
    acls: Vec<AclRecord>,
    acl_numbers: HashMap<Access, AclNo>,
    acl_entries: usize,
}

impl AppState {
    /// Takes up stored partial databases and access pairs, both in the order of their numbers.
    pub fn load(rules: AppRules, parts: Vec<PartRecord>, acls: Vec<AclRecord>) -> AppState {
        let mut app = AppState { rules: Arc::new(rules), ..AppState::default() };
        for part in parts {
            app.add_part(part);
        }
        for acl in acls {
            app.add_acl(acl);
        }
        app
    }

    fn add_part(&mut self, part: PartRecord) -> PartNo {
        let number = self.parts.len() as PartNo;
        self.by_signature.insert(Signature::of(&part.readers).to_string(), number);
        for entry in &part.readers {
            self.by_entry.entry(entry.clone()).or_default().push(number);
        }
        self.parts.push(part);
        number
    }

    fn add_acl(&mut self, acl: AclRecord) -> AclNo {
        let read = acl.part.and_then(|p| self.part(p)).map(|p| p.readers.clone()).unwrap_or_default();
        let access = Access { read, write: acl.write.clone() };
        self.acl_entries += access.read.len() + access.write.len();
        self.acls.push(acl);
        let number = self.acls.len() as AclNo;
        self.acl_numbers.insert(access, number);
        number
    }

    pub fn part(&self, number: PartNo) -> Option<&PartRecord> {
        self.parts.get(number as usize)
    }

    pub fn part_mut(&mut self, number: PartNo) -> Option<&mut PartRecord> {
        self.parts.get_mut(number as usize)
    }

    pub fn parts(&self) -> impl Iterator<Item = (PartNo, &PartRecord)> {
        self.parts.iter().enumerate().map(|(n, part)| (n as PartNo, part))
    }

    pub fn part_by_signature(&self, signature: &str) -> Option<PartNo> {
        self.by_signature.get(signature).copied()
    }

    /// The partial databases that this reader may read, in order of their numbers.
    pub fn parts_of(&self, reader: &Reader) -> Vec<PartNo> {
        let lists = reader.entries().filter_map(|entry| self.by_entry.get(entry));
        let mut parts: Vec<PartNo> = lists.flatten().copied().collect();
        parts.sort_unstable();
        parts.dedup();
        parts
    }

    pub fn may_read(&self, reader: &Reader, part: Option<PartNo>) -> bool {
        part.and_then(|p| self.part(p)).is_some_and(|p| reader.is_among(&p.readers))
    }

    pub fn acl(&self, number: AclNo) -> Option<&AclRecord> {
        self.acls.get((number as usize).checked_sub(1)?)
    }

    /// The partial database for documents with this access pair.
    pub fn part_of_acl(&self, number: AclNo) -> Option<PartNo> {
        self.acl(number)?.part
    }

    pub fn may_read_acl(&self, reader: &Reader, number: AclNo) -> bool {
        self.may_read(reader, self.part_of_acl(number))
    }

    pub fn may_write_acl(&self, reader: &Reader, number: AclNo) -> bool {
        self.acl(number).is_some_and(|acl| reader.is_among(&acl.write))
    }

    /// Whether there is room for one more access pair like this, or it is known.
    pub fn has_room_for(&self, access: &Access) -> bool {
        let entries = self.acl_entries + access.read.len() + access.write.len();
        (self.acls.len() < MAX_ACLS && entries <= MAX_ACL_ENTRIES) || self.acl_numbers.contains_key(access)
    }

    /// The number of an access pair, made if it is new: then the records to store are in the second part.
    pub fn number_of(&mut self, access: &Access) -> (AclNo, Option<NewAcl>) {
        if let Some(number) = self.acl_numbers.get(access) {
            return (*number, None);
        }
        let mut new_part = None;
        // A document that nobody may read is in no partial database.
        let part = (!access.read.is_empty()).then(|| {
            let signature = Signature::of(&access.read);
            self.part_by_signature(signature.as_str()).unwrap_or_else(|| {
                let number = self.add_part(PartRecord { readers: access.read.clone(), ..PartRecord::default() });
                new_part = Some(number);
                number
            })
        });
        let record = AclRecord { part, write: access.write.clone() };
        let number = self.add_acl(record.clone());
        (number, Some(NewAcl { record, new_part }))
    }
}

/// What a new access pair adds to the store.
pub(crate) struct NewAcl {
    pub record: AclRecord,
    pub new_part: Option<PartNo>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(read: &[&str]) -> Access {
        let read: Vec<String> = read.iter().map(|s| (*s).to_owned()).collect();
        Access { write: read.clone(), read }
    }

    fn reader(name: Option<&str>, roles: &[&str]) -> Reader {
        let roles = roles.iter().map(|s| (*s).to_owned()).collect();
        Reader::new(Who { name: name.map(str::to_owned), roles })
    }

    #[test]
    fn a_reader_finds_the_partial_databases_that_name_them() {
        let mut app = AppState::default();
        let mut part = |read: &[&str]| {
            let (acl, _) = app.number_of(&access(read));
            app.part_of_acl(acl)
        };
        let ann = part(&["user:ann"]).unwrap();
        let staff = part(&["role:staff", "user:ann"]).unwrap();
        let users = part(&["users"]).unwrap();
        let anyone = part(&["anyone"]).unwrap();
        assert_eq!(part(&[]), None);
        assert_eq!(part(&["user:ann"]), Some(ann));
        assert_eq!(app.parts_of(&reader(Some("ann"), &[])), [ann, staff, users, anyone]);
        assert_eq!(app.parts_of(&reader(Some("bob"), &["staff"])), [staff, users, anyone]);
        assert_eq!(app.parts_of(&reader(None, &[])), [anyone]);
        // A name that looks like another entry stays a name.
        assert_eq!(app.parts_of(&reader(Some("ann\u{0}"), &["user:ann"])), [users, anyone]);
    }

    #[test]
    fn state_comes_back_as_it_was_stored() {
        let mut app = AppState::default();
        let mut records = Vec::new();
        for read in [&["user:a"][..], &["user:b"], &[], &["user:a", "user:b"]] {
            records.push(app.number_of(&access(read)).1.unwrap().record);
        }
        let parts: Vec<PartRecord> = app.parts().map(|(_, p)| p.clone()).collect();
        let mut again = AppState::load(AppRules::default(), parts, records);
        for read in [&["user:a"][..], &["user:b"], &[], &["user:a", "user:b"]] {
            let (number, new) = again.number_of(&access(read));
            assert!(new.is_none());
            assert_eq!(app.part_of_acl(number), again.part_of_acl(number));
        }
    }
}
