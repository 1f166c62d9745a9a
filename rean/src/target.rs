//! From a database's name and an identity to what the request may touch.
//!
//! Every handler resolves its [`Target`] first and reads through the target's scope only. Refusals are the same whether
//! or not the thing that one may not see exists: a partial database that doesn't name the reader and one that isn't
//! there, an unreadable document and a missing one.

use std::sync::Arc;

use adea_ring::Identity;
use adea_ring::identity::SYSTEM_NAME;
use rean_store::access::Signature;
use rean_store::{Author, Db, DbKind, Reader, Scope, Who, validate_partitioned_id};

use crate::error::ApiError;
use crate::pod::Pod;
use crate::security::Security;

/// Parts a partial or personal database's name from its app's: `notes--me`.
pub const SEPARATOR: &str = "--";
/// The part after it that means the personal database.
pub const PERSONAL: &str = "me";
/// What the id of an account's document starts with.
pub const ACCOUNT_PREFIX: &str = "org.couchdb.user:";

/// A database as one identity sees it.
pub struct Target {
    /// The store's database: the app's for a partial or personal one.
    pub db: Db,
    /// What may be read, and how sequences are shown.
    pub scope: Scope,
    /// As whom writes are made.
    pub author: Author,
    /// Who asks, as the proxy says. The account may have fewer roles by now: `scope` and `author` have those.
    pub who: Identity,
    /// The name as it was asked for: `notes`, `notes--me`, `notes--<signature>`.
    pub name: String,
    /// Separates the `_local` documents of one user from another's; empty where all share them.
    pub owner: String,
    /// Whether `_local` documents are bounded for each user (they are where everyone may have an account).
    pub local_bounded: bool,
    /// Which of the pod's own databases it is.
    pub system: System,
    /// What is allowed.
    pub rights: Rights,
}

/// The pod's own databases, whose documents mean something to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// An ordinary database.
    None,
    /// `_users`: accounts.
    Users,
    /// `_ring`: settings, sessions.
    Ring,
    /// `_pods`: what everyone may know of the pods.
    Pods,
    /// `_replicator`.
    Replicator,
}

/// What an identity may do with a database.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    read: bool,
    write: Writing,
    local: bool,
    db_admin: bool,
    server_admin: bool,
    anonymous: bool,
}

/// Whether documents may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writing {
    Yes,
    No,
    /// A partial database: it follows its app.
    ReadOnly,
    /// The pod writes it, and no request.
    Own,
}

/// Finds the database and what this identity may do with it.
///
/// # Errors
/// 404 when there is no such database; 401 or 403 for a partial database that doesn't name the reader, whether or not
/// there is one; 401 for an account that has been removed.
pub fn resolve(pod: &Pod, who: &Identity, name: &str) -> Result<Target, ApiError> {
    let who_now = pod.accounts.who(who)?;
    // The account's roles of this moment, which may be fewer than those that the proxy remembers.
    let identity = Identity { name: who_now.name.clone(), roles: who_now.roles.clone() };
    find(pod, &identity, who_now, name).map(|target| Target { who: who.clone(), ..target })
}

fn find(pod: &Pod, identity: &Identity, who_now: Who, name: &str) -> Result<Target, ApiError> {
    let Some((base, suffix)) = name.rsplit_once(SEPARATOR) else {
        let db = pod.store.db(name).ok_or_else(ApiError::no_database)?;
        return Ok(match db.kind() {
            DbKind::App => aggregate(db, name, identity, who_now),
            DbKind::Plain => plain(db, name, identity, who_now),
        });
    };
    let db = pod.store.db(base).filter(|db| db.kind() == DbKind::App).ok_or_else(ApiError::no_database)?;
    if suffix == PERSONAL {
        Ok(personal(db, name, identity, who_now))
    } else if Signature::is_form(suffix) {
        partial(db, name, suffix, identity, who_now)
    } else {
        Err(ApiError::no_database())
    }
}

/// Refuses everyone but server administrators, in CouchDB's words.
///
/// # Errors
/// 401 `unauthorized`.
pub fn require_server_admin(who: &Identity) -> Result<(), ApiError> {
    if who.is_admin() { Ok(()) } else { Err(ApiError::unauthorized("You are not a server admin.")) }
}

fn system_of(name: &str) -> System {
    match name {
        "_users" => System::Users,
        "_ring" => System::Ring,
        "_pods" => System::Pods,
        "_replicator" => System::Replicator,
        _ => System::None,
    }
}

fn author(identity: &Identity, who: Who) -> Author {
    if identity.is_admin() { Author::admin(who) } else { Author::user(who) }
}

fn plain(db: Db, name: &str, identity: &Identity, who: Who) -> Target {
    let admin = identity.is_admin();
    let system = system_of(name);
    let (member, db_admin) = match system {
        _ if admin => (true, true),
        System::None => {
            let security = Security::of(&db.security());
            (security.is_member(identity), security.is_admin(identity))
        }
        System::Pods => (true, false),
        System::Users | System::Ring | System::Replicator => (false, false),
    };
    // What is known of the pods is written by the pod itself, not by requests.
    let writer = system != System::Pods && (admin || (member && system == System::None));
    Target {
        scope: Scope::All,
        author: author(identity, who),
        who: identity.clone(),
        name: name.to_owned(),
        owner: String::new(),
        local_bounded: false,
        system,
        rights: Rights {
            read: member,
            write: match system {
                System::Pods => Writing::Own,
                _ if writer => Writing::Yes,
                _ => Writing::No,
            },
            local: writer || admin,
            db_admin,
            server_admin: admin,
            anonymous: identity.name.is_none(),
        },
        db,
    }
}

/// An app's aggregate: administrators read it, everyone may try to write, and the store asks the access rules.
fn aggregate(db: Db, name: &str, identity: &Identity, who: Who) -> Target {
    let admin = identity.is_admin();
    let scope = if admin {
        Scope::All
    } else {
        // Nothing is shown through it; edits that extend "the current revision" must find one that the author may see.
        Scope::Personal(db.reader(who.clone()))
    };
    Target {
        scope,
        author: author(identity, who),
        who: identity.clone(),
        name: name.to_owned(),
        owner: String::new(),
        local_bounded: false,
        system: System::None,
        rights: Rights {
            read: admin,
            write: Writing::Yes,
            local: admin,
            db_admin: admin,
            server_admin: admin,
            anonymous: identity.name.is_none(),
        },
        db,
    }
}

fn personal(db: Db, name: &str, identity: &Identity, who: Who) -> Target {
    let reader = db.reader(who.clone());
    of_app(db, name, Scope::Personal(reader), Writing::Yes, identity, who)
}

fn partial(db: Db, name: &str, signature: &str, identity: &Identity, who: Who) -> Result<Target, ApiError> {
    let admin = identity.is_admin();
    let reader = if admin {
        let part = db.parts().into_iter().find(|part| part.signature == signature);
        stand_in(&part.map(|part| part.readers).unwrap_or_default())
    } else {
        db.reader(who.clone())
    };
    let readable = db.part(signature).filter(|part| db.may_read_part(&reader, *part));
    match readable {
        Some(part) => {
            let scope = Scope::Part(reader, part);
            Ok(of_app(db, name, scope, Writing::ReadOnly, identity, who))
        }
        None if admin => Err(ApiError::no_database()),
        None => Err(no_reader(identity.name.is_none())),
    }
}

/// Somebody whom these readers name, for an administrator.
pub fn stand_in(readers: &[String]) -> Arc<Reader> {
    Arc::new(Reader::stand_in(readers, SYSTEM_NAME))
}

fn of_app(db: Db, name: &str, scope: Scope, write: Writing, identity: &Identity, who: Who) -> Target {
    Target {
        db,
        scope,
        who: identity.clone(),
        name: name.to_owned(),
        owner: who.name.clone().unwrap_or_default(),
        local_bounded: true,
        system: System::None,
        rights: Rights {
            read: true,
            write,
            local: identity.name.is_some(),
            // Settings are the app's: they are changed at its own name.
            db_admin: false,
            server_admin: identity.is_admin(),
            anonymous: identity.name.is_none(),
        },
        author: author(identity, who),
    }
}

fn no_reader(anonymous: bool) -> ApiError {
    if anonymous {
        ApiError::unauthorized("You are not authorized to access this db.")
    } else {
        ApiError::forbidden("You are not allowed to access this db.")
    }
}

/// 401 for nobody in particular, who may still log in; 403 for somebody, as in CouchDB.
fn no_db_admin(anonymous: bool) -> ApiError {
    let reason = "You are not a db or server admin.";
    if anonymous { ApiError::unauthorized(reason) } else { ApiError::forbidden(reason) }
}

impl Target {
    /// Whether this is a partial database.
    pub fn reader_only(&self) -> bool {
        self.rights.write == Writing::ReadOnly
    }

    /// Whether this is the database itself and not a view of an app for its readers.
    pub fn whole(&self) -> bool {
        matches!(self.scope, Scope::All)
    }

    /// # Errors
    /// 401 or 403 when the database may not be read.
    pub fn require_read(&self) -> Result<(), ApiError> {
        if self.rights.read { Ok(()) } else { Err(no_reader(self.rights.anonymous)) }
    }

    /// As [`Target::require_read`], for one document: of `_users` everyone may read their own.
    ///
    /// # Errors
    /// 401 or 403; 404 for another's account, whether or not there is one, to nobody in particular too.
    pub fn require_read_doc(&self, id: &str) -> Result<(), ApiError> {
        if self.rights.read || self.is_own_account(id) {
            return self.require_fit_id(id);
        }
        if self.system == System::Users {
            return Err(ApiError::missing());
        }
        Err(no_reader(self.rights.anonymous))
    }

    /// # Errors
    /// 401 or 403 when no document of the database may be written.
    pub fn require_write(&self) -> Result<(), ApiError> {
        match self.rights.write {
            Writing::Yes => Ok(()),
            Writing::ReadOnly => {
                Err(ApiError::forbidden("This database is read-only: write to its app or to the personal database."))
            }
            Writing::Own => Err(ApiError::forbidden("This database is read-only: the pod writes it.")),
            Writing::No if self.is_open_to_sign_up() || self.own_account_id().is_some() => Ok(()),
            Writing::No => Err(no_reader(self.rights.anonymous)),
        }
    }

    /// As [`Target::require_write`], for one document.
    ///
    /// # Errors
    /// 401 or 403 also for a design document, unless by an administrator of the database; 400 for an id that a partitioned
    /// database can't have.
    pub fn require_write_doc(&self, id: &str) -> Result<(), ApiError> {
        self.require_write()?;
        if id.starts_with("_design/") && !self.rights.db_admin {
            return Err(if self.whole() {
                no_db_admin(self.rights.anonymous)
            } else {
                ApiError::forbidden("Design documents are written to the app, by an administrator.")
            });
        }
        if self.rights.write == Writing::No
            && !self.is_own_account(id)
            && !(self.is_open_to_sign_up() && id.starts_with(ACCOUNT_PREFIX))
        {
            return Err(no_reader(self.rights.anonymous));
        }
        self.require_fit_id(id)
    }

    /// # Errors
    /// 400 for an id without a partition, where the database has partitions. What another pod has taken is taken here too.
    pub fn require_fit_id(&self, id: &str) -> Result<(), ApiError> {
        if self.db.is_partitioned() && self.who != Identity::system() {
            validate_partitioned_id(id)?;
        }
        Ok(())
    }

    /// # Errors
    /// 401 or 403 when `_local` documents may not be read and written.
    pub fn require_local(&self) -> Result<(), ApiError> {
        if self.rights.local { Ok(()) } else { Err(no_reader(self.rights.anonymous)) }
    }

    /// # Errors
    /// 401 `unauthorized` for nobody in particular, 403 `forbidden` for who is no administrator of the database.
    pub fn require_db_admin(&self) -> Result<(), ApiError> {
        if self.rights.db_admin { Ok(()) } else { Err(no_db_admin(self.rights.anonymous)) }
    }

    /// # Errors
    /// 401 `unauthorized` for all but administrators of the server.
    pub fn require_server_admin(&self) -> Result<(), ApiError> {
        if self.rights.server_admin { Ok(()) } else { Err(ApiError::unauthorized("You are not a server admin.")) }
    }

    /// The id of the account that asks, where the database is `_users`.
    fn own_account_id(&self) -> Option<String> {
        let name = self.author.name()?;
        (self.system == System::Users).then(|| format!("{ACCOUNT_PREFIX}{name}"))
    }

    fn is_own_account(&self, id: &str) -> bool {
        self.system == System::Users
            && id.strip_prefix(ACCOUNT_PREFIX).is_some_and(|name| self.author.name() == Some(name))
    }

    /// `_users` whose `_security` an administrator has opened to everyone, as in CouchDB: anyone may sign up.
    fn is_open_to_sign_up(&self) -> bool {
        self.system == System::Users && Security::of(&self.db.security()).is_public()
    }
}
