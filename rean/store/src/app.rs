//! What an app's database knows beside its documents: its access rules, its partial databases, and who reads
//! which of them.
//!
//! All of it is in memory, loaded at opening and changed on the writer thread alone, so that asking whether
//! somebody may read costs no look-up in the engine.

use crate::access::{Access, AppRules, Signature};
use crate::record::{AclNo, AclRecord, PartCount, PartNo};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Access pairs of one app. All are in memory, and any user who may create documents can make one.
const MAX_ACLS: usize = 500_000;
/// Bytes of the entries of all of them together. Each is kept up to four times.
const MAX_ACL_BYTES: usize = 128 << 20;
/// Access pairs that one user's edits may add, so that nobody can use up the room of all,
const MAX_USER_ACLS: usize = 10_000;
/// and their bytes.
const MAX_USER_ACL_BYTES: usize = 4 << 20;

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
    is_stand_in: bool,
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
        Reader { who, entries, is_stand_in: false }
    }

    /// Somebody whom these readers name: an administrator sees a partial database as such a one does. What it is shown
    /// is nobody's. `user`: a name for where these are all users; one that no account can have.
    pub fn stand_in(readers: &[String], user: &str) -> Reader {
        let mut who = Who::default();
        for entry in readers {
            if let Some(role) = entry.strip_prefix("role:") {
                who.roles.push(role.to_owned());
            } else if who.name.is_none() && entry != "anyone" {
                who.name = Some(entry.strip_prefix("user:").unwrap_or(user).to_owned());
            }
        }
        Reader { is_stand_in: true, ..Reader::new(who) }
    }

    /// The user who is shown what this reader reads.
    pub(crate) fn user(&self) -> Option<&str> {
        self.name().filter(|_| !self.is_stand_in)
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

/// A partial database in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    pub readers: Vec<String>,
    pub count: PartCount,
}

/// How much somebody's edits have added to the access pairs.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    pairs: usize,
    bytes: usize,
}

/// The state of an app. Empty for a plain database.
#[derive(Debug, Default)]
pub(crate) struct AppState {
    pub rules: Arc<AppRules>,
    parts: Vec<Part>,
    by_signature: HashMap<String, PartNo>,
    by_entry: HashMap<String, Vec<PartNo>>,
    /// Number 0 is none, so `acls[n - 1]`.
    acls: Vec<AclRecord>,
    acl_numbers: HashMap<Access, AclNo>,
    total: Share,
    makers: HashMap<String, Share>,
}

impl AppState {
    /// Takes up stored partial databases and access pairs, both in the order of their numbers.
    pub fn load(rules: AppRules, parts: Vec<Part>, acls: Vec<AclRecord>) -> AppState {
        let mut app = AppState { rules: Arc::new(rules), ..AppState::default() };
        for part in parts {
            app.add_part(part);
        }
        for acl in acls {
            app.add_acl(acl);
        }
        app
    }

    fn add_part(&mut self, part: Part) -> PartNo {
        let number = self.parts.len() as PartNo;
        self.by_signature.insert(Signature::of(&part.readers).to_string(), number);
        for entry in &part.readers {
            self.by_entry.entry(entry.clone()).or_default().push(number);
        }
        self.parts.push(part);
        number
    }

    fn add_acl(&mut self, acl: AclRecord) -> AclNo {
        self.acls.push(acl);
        let number = self.acls.len() as AclNo;
        let access = self.access_of(number).unwrap_or_default();
        self.total.add(&access);
        if let Some(maker) = self.acl(number).and_then(|acl| acl.maker.clone()) {
            self.makers.entry(maker).or_default().add(&access);
        }
        self.acl_numbers.insert(access, number);
        number
    }

    pub fn part(&self, number: PartNo) -> Option<&Part> {
        self.parts.get(number as usize)
    }

    pub fn part_mut(&mut self, number: PartNo) -> Option<&mut Part> {
        self.parts.get_mut(number as usize)
    }

    pub fn parts(&self) -> impl Iterator<Item = (PartNo, &Part)> {
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

    /// The pair of this number.
    pub fn access_of(&self, number: AclNo) -> Option<Access> {
        let acl = self.acl(number)?;
        let read = acl.part.and_then(|part| self.part(part)).map(|part| part.readers.clone()).unwrap_or_default();
        Some(Access { read, write: acl.write.clone() })
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

    /// Whether there is room for one more access pair like this, or it is known. `maker`: the user whose edit has
    /// it, if it is not an administrator's.
    pub fn has_room_for(&self, access: &Access, maker: Option<&str>) -> bool {
        if self.acl_numbers.contains_key(access) {
            return true;
        }
        let mut total = self.total;
        total.add(access);
        let mut own = maker.and_then(|maker| self.makers.get(maker)).copied().unwrap_or_default();
        own.add(access);
        let own_fits = maker.is_none() || (own.pairs <= MAX_USER_ACLS && own.bytes <= MAX_USER_ACL_BYTES);
        own_fits && total.pairs <= MAX_ACLS && total.bytes <= MAX_ACL_BYTES
    }

    /// The number of an access pair, made if it is new: then the records to store are in the second part.
    pub fn number_of(&mut self, access: &Access, maker: Option<&str>) -> (AclNo, Option<NewAcl>) {
        if let Some(number) = self.acl_numbers.get(access) {
            return (*number, None);
        }
        let mut new_part = None;
        // A document that nobody may read is in no partial database.
        let part = (!access.read.is_empty()).then(|| {
            let signature = Signature::of(&access.read);
            self.part_by_signature(signature.as_str()).unwrap_or_else(|| {
                let part = Part { readers: access.read.clone(), ..Part::default() };
                let number = self.add_part(part);
                new_part = Some((number, access.read.clone()));
                number
            })
        });
        let record = AclRecord { part, write: access.write.clone(), maker: maker.map(str::to_owned) };
        let number = self.add_acl(record.clone());
        (number, Some(NewAcl { record, new_part }))
    }
}

impl Share {
    fn add(&mut self, access: &Access) {
        self.pairs += 1;
        self.bytes += access.read.iter().chain(&access.write).map(String::len).sum::<usize>();
    }
}

/// What a new access pair adds to the store.
pub(crate) struct NewAcl {
    pub record: AclRecord,
    /// A new partial database and its readers.
    pub new_part: Option<(PartNo, Vec<String>)>,
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
            let (acl, _) = app.number_of(&access(read), None);
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
            records.push(app.number_of(&access(read), None).1.unwrap().record);
        }
        let parts: Vec<Part> = app.parts().map(|(_, p)| p.clone()).collect();
        let mut again = AppState::load(AppRules::default(), parts, records);
        for read in [&["user:a"][..], &["user:b"], &[], &["user:a", "user:b"]] {
            let (number, new) = again.number_of(&access(read), None);
            assert!(new.is_none());
            assert_eq!(app.part_of_acl(number), again.part_of_acl(number));
        }
    }
}
