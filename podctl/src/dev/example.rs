//! The example app of a new data folder: `notes`, with three users and one role.

use adea::folder::Folder;
use anyhow::bail;
use http::{Method, StatusCode};
use serde_json::json;

use crate::dev::ring::Ring;
use crate::http::{Peer, excerpt};

/// The app's name.
pub const APP: &str = "notes";
/// The users and their roles.
pub const USERS: [(&str, &[&str]); 3] = [("alice", &["staff"]), ("bob", &["staff"]), ("carol", &[])];

/// Makes the example if this folder is still to get it. What is there already stays as it is, so that a first start that
/// was cut short is finished by the second.
pub async fn make_if_pending(folder: &Folder, ring: &mut Ring, admin: &Peer) -> anyhow::Result<()> {
    let Some(password) =
        ring.file.dev.as_ref().filter(|dev| dev.example_pending).and_then(|dev| dev.example_password.clone())
    else {
        return Ok(());
    };
    let mut conn = admin.connect().await?;
    let mut put = async |path: &str, body: String| -> anyhow::Result<()> {
        let (status, body) = conn.send(Method::PUT, path, body).await?;
        match status {
            status if status.is_success() => Ok(()),
            StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => Ok(()),
            status => bail!("PUT {path}: {status}: {}", excerpt(&body)),
        }
    };
    put(&format!("/{APP}?access=true"), String::new()).await?;
    for (name, roles) in USERS {
        let user = json!({"name": name, "password": password, "roles": roles, "type": "user"});
        put(&format!("/_users/org.couchdb.user:{name}"), user.to_string()).await?;
    }
    if let Some(dev) = &mut ring.file.dev {
        dev.example_pending = false;
    }
    ring.file.save(&folder.ring_file())?;
    Ok(())
}
