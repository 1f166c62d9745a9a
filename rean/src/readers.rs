//! Tells the apps' databases which accounts have other roles now, or are gone.
//!
//! The store keeps what each user was served, and by which right, so that a device that lost its place is told of the end of
//! what it may hold, and of nothing else. Roles change while their users have no feed open.

use std::sync::Arc;

use rean_store::DbKind;

use crate::accounts::Roles;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::workers::Stop;

/// Accounts that are looked at before others get the processor.
const AT_ONCE: usize = 100;

/// Follows the accounts until it is told to stop.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    loop {
        let names = tokio::select! {
            names = pod.accounts.changed(AT_ONCE) => names,
            () = stop.stopped() => return Ok(()),
        };
        let for_pass = Arc::clone(&pod);
        let pass = move || names.iter().try_for_each(|name| tell(&for_pass, name));
        let told = tokio::task::spawn_blocking(pass).await.map_err(|error| error.to_string())?;
        told.map_err(|error| error.cause().to_owned())?;
    }
}

fn tell(pod: &Pod, name: &str) -> Result<(), ApiError> {
    let roles = pod.accounts.roles(name)?;
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
