//! Tells the apps' databases which accounts have other roles now, or are gone.
//!
//! The store keeps what each user was served, and by which right, so that a device that lost its place is told of the end of
//! what it may hold, and of nothing else. Roles change while their users have no feed open, and while this pod is down: so
//! the place in `_users` up to which it was told is a note.

use std::sync::Arc;

use rean_store::{Db, DbKind, Feed, Scope, Since};

use crate::accounts::Roles;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::target::ACCOUNT_PREFIX;
use crate::workers::Stop;

/// Accounts that are looked at before others get the processor.
const AT_ONCE: usize = 100;
/// The name of the note.
const NOTE: &str = "readers";

/// Follows the accounts until it is told to stop.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let Some(users) = pod.store.db("_users") else {
        return Err("there is no _users".to_owned());
    };
    let mut feed = begin(&pod, &users).map_err(|error| error.cause().to_owned())?;
    let mut names: Vec<(String, bool)> = Vec::new();
    loop {
        let for_pass = Arc::clone(&pod);
        let pass = move || {
            let told = names.iter().try_for_each(|(name, removed)| tell(&for_pass, name, *removed));
            told.inspect_err(|_| for_pass.accounts.not_told(&names))?;
            let more = follow(&for_pass, &mut feed)?;
            Ok::<_, ApiError>((feed, more))
        };
        let passed = tokio::task::spawn_blocking(pass).await.map_err(|error| error.to_string())?;
        let more;
        (feed, more) = passed.map_err(|error| error.cause().to_owned())?;
        names = if more {
            Vec::new()
        } else {
            tokio::select! {
                names = pod.accounts.changed(AT_ONCE) => names,
                () = stop.stopped() => return Ok(()),
            }
        };
        if stop.is_stopped() {
            return Ok(());
        }
    }
}

fn begin(pod: &Pod, users: &Db) -> Result<Feed, ApiError> {
    let place = pod.store.note(NOTE)?.and_then(|note| String::from_utf8(note).ok());
    let feed = users.feed(&Scope::All, place.map_or(Since::Now, Since::Token));
    // A note that can't be read is begun anew.
    Ok(feed.or_else(|_| users.feed(&Scope::All, Since::Now))?)
}

/// Tells of some accounts that have changed since the place, and notes it. Tells whether there may be more.
fn follow(pod: &Pod, feed: &mut Feed) -> Result<bool, ApiError> {
    let rows = feed.next_page(AT_ONCE)?;
    for row in &rows {
        if let Some(name) = row.id.strip_prefix(ACCOUNT_PREFIX) {
            tell(pod, name, row.deleted)?;
        }
    }
    pod.store.set_note_lazily(NOTE, Some(feed.token().into_bytes()))?;
    Ok(!rows.is_empty())
}

/// `removed`: the account was, whether or not there is one of its name again.
fn tell(pod: &Pod, name: &str, removed: bool) -> Result<(), ApiError> {
    let roles = if removed { Roles::Removed } else { pod.accounts.roles(name)? };
    let names = pod.store.db_names();
    for db in names.iter().filter_map(|name| pod.store.db(name)).filter(|db| db.kind() == DbKind::App) {
        match &roles {
            Roles::Now(roles) => db.note_roles(name, roles)?,
            Roles::Removed => db.forget_served(name)?,
            Roles::Elsewhere => {}
        }
    }
    Ok(())
}
