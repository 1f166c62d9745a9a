//! The apps that are asked for, each read once and read anew when a design document of its database changes.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rean_store::{Db, Scope, StoreError};

use crate::aside::aside;
use crate::designs::{DesignCache, DesignDoc, Designs};
use crate::hosting::version::{self, App, MAX_VERSIONS, MEMBER, PREFIX, ROUTING, Version};

/// Databases that are remembered, also those without an app: anybody may ask for any.
const MAX_APPS: usize = 1_000;
/// Files of all apps that are remembered; each takes some hundred bytes.
const MAX_FILES: usize = 100_000;

/// The apps of this pod.
#[derive(Default)]
pub struct Hosted {
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    /// By the database's name.
    known: HashMap<Box<str>, Known>,
    files: usize,
}

struct Known {
    /// What it was read from. While this is held, no other design documents have the same address.
    of: Weak<Designs>,
    app: Option<Arc<App>>,
}

impl Hosted {
    /// The app of a database as it is now; `None` if it has none.
    ///
    /// # Errors
    /// The store failed, or the database is gone.
    pub fn of(&self, designs: &DesignCache, db: &Db) -> Result<Option<Arc<App>>, StoreError> {
        let designs = designs.of(db)?;
        let key = Arc::downgrade(&designs);
        if let Some(known) = self.cache.lock().known.get(db.name()).filter(|known| known.of.ptr_eq(&key)) {
            return Ok(known.app.clone());
        }
        let app = aside(|| read(db, &designs))?.map(Arc::new);
        self.cache.lock().keep(db.name(), Known { of: key, app: app.clone() });
        Ok(app)
    }
}

impl Known {
    fn files(&self) -> usize {
        self.app.as_ref().map_or(0, |app| app.file_count())
    }
}

impl Cache {
    fn keep(&mut self, name: &str, known: Known) {
        self.files += known.files();
        if let Some(old) = self.known.insert(name.into(), known) {
            self.files -= old.files();
        }
        if self.known.len() > MAX_APPS || self.files > MAX_FILES {
            // Those that are in use come back at once.
            self.known.clear();
            self.files = 0;
        }
    }
}

fn read(db: &Db, designs: &Designs) -> Result<Option<App>, StoreError> {
    let first = designs.all().partition_point(|design| design.id.as_str() < PREFIX);
    let documents = designs.all()[first..].iter().take_while(|design| design.id.starts_with(PREFIX));
    let mut versions = Vec::new();
    for design in documents.take(MAX_VERSIONS) {
        versions.extend(read_version(db, design)?);
    }
    let routing = designs.get(ROUTING);
    let shares = routing.as_ref().and_then(|routing| routing.value.get(MEMBER)).map(version::shares);
    let shares = shares.transpose().unwrap_or_else(|reason| {
        tracing::warn!(database = db.name(), reason, "the shares of an app's versions can't be read");
        None
    });
    Ok(App::new(versions, shares.as_ref()))
}

fn read_version(db: &Db, design: &DesignDoc) -> Result<Option<Version>, StoreError> {
    let (Some(name), Some(member)) = (design.id.strip_prefix(PREFIX), design.value.get(MEMBER)) else {
        return Ok(None);
    };
    // Looked up anew: the files must be those of the revision that is there. When that is a newer one, all of this is
    // read again with the next request.
    let doc = db.doc(&Scope::All, &design.id)?;
    let at = doc.map(|doc| doc.winner().clone()).filter(|winner| !winner.deleted).and_then(|winner| winner.body);
    let Some(body) = at.map(|at| db.body(at)).transpose()?.flatten() else { return Ok(None) };
    match Version::read(db.name(), name, member, body.attachments) {
        Ok(version) => Ok(Some(version)),
        Err(reason) => {
            tracing::warn!(database = db.name(), document = design.id, reason, "a version of an app is left out");
            Ok(None)
        }
    }
}
