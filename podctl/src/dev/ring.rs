//! The ring of a data folder: made at the first start, used again at the next.

use std::path::Path;

use adea::folder::Folder;
use adea::order_key;
use adea::ring_file::{Admin, DevSecrets, RingFile};
use adea_ring::upgrade::{OrderKey, OrderTrust};
use anyhow::Context;

use crate::command::dev::{Args, Login};
use crate::moment::now_ms;
use crate::password;

/// A ring whose passwords are known.
pub struct Ring {
    pub file: RingFile,
    pub admin_password: String,
}

/// Reads the folder's ring file or makes one, under this name if it is given; a given administrator replaces the one
/// there.
pub fn prepare(folder: &Folder, args: &Args, name: Option<String>) -> anyhow::Result<Ring> {
    let path = folder.ring_file();
    let (mut file, password) = match (RingFile::load(&path)?, &args.admin) {
        (None, login) => {
            let login = login.clone().unwrap_or_else(made_up);
            let mut file = RingFile::new(name.unwrap_or_else(pod_id), admin(&login)?);
            file.dev = Some(DevSecrets {
                admin_password: login.password.clone(),
                example_password: (!args.no_example).then(password::made_up),
                example_pending: !args.no_example,
            });
            file.save(&path)?;
            (file, login.password)
        }
        (Some(mut file), Some(login)) => {
            file.admin = admin(login)?;
            let dev = file.dev.get_or_insert_default();
            dev.admin_password.clone_from(&login.password);
            file.save(&path)?;
            (file, login.password.clone())
        }
        (Some(file), None) => {
            let password = file.dev.as_ref().map(|dev| dev.admin_password.clone()).with_context(|| {
                format!(
                    "{} was not made by `podctl dev`: give it an administrator with --admin NAME:PASSWORD",
                    path.display()
                )
            })?;
            (file, password)
        }
    };
    give_order_key(&path, &mut file)?;
    Ok(Ring { file, admin_password: password })
}

/// The key for orders of upgrades: it is made where the folder has none, as an earlier version left it; and the ring's
/// file is to have the public half of what lies here, which an earlier version would have taken out of it.
fn give_order_key(ring_file: &Path, file: &mut RingFile) -> anyhow::Result<()> {
    let path = order_key::beside(ring_file);
    let known = file.order_trust().map(|trust| trust.key);
    let key = match (order_key::load(&path)?, known) {
        (Some(key), _) => key,
        // It lies elsewhere.
        (None, Some(_)) => return Ok(()),
        (None, None) => {
            let key = OrderKey::random();
            order_key::save(&path, &key)?;
            key
        }
    };
    if known != Some(key.public()) {
        let at = file.pod_id.parse().context("the ring file's `pod_id`")?;
        file.trust_orders(&OrderTrust { key: key.public(), at: Some(at) }, now_ms());
        file.save(ring_file)?;
    }
    Ok(())
}

fn admin(login: &Login) -> anyhow::Result<Admin> {
    Ok(Admin { name: login.name.clone(), password_hash: password::hash(&login.password)? })
}

fn made_up() -> Login {
    Login { name: "admin".to_owned(), password: password::made_up() }
}

fn pod_id() -> String {
    format!("pod-{:08x}", rand::random::<u32>())
}

#[cfg(test)]
mod tests {
    use super::prepare;
    use crate::command::dev::Args;
    use adea::folder::Folder;
    use adea::order_key;
    use argon2::Argon2;
    use argon2::password_hash::PasswordVerifier;
    use argon2::password_hash::phc::PasswordHash;

    fn args(admin: Option<&str>) -> Args {
        Args {
            pods: None,
            port: 5984,
            data: "x".into(),
            admin: admin.map(|text| text.parse().ok().unwrap()),
            no_tls: false,
            engine: "fjall".into(),
            json: false,
            access_log: false,
            couch_cookie: false,
            no_example: false,
        }
    }

    #[test]
    fn what_is_missing_of_the_key_for_orders_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        let first = prepare(&folder, &args(None), None).unwrap().file;
        let path = order_key::beside(&folder.ring_file());
        let key = order_key::load(&path).unwrap().expect("made with the ring").public();
        assert_eq!(first.order_trust().unwrap().key, key);
        assert_eq!(first.for_pod("pod-2".into()).order_trust(), first.order_trust());
        // As an earlier version leaves its ring file.
        let text = std::fs::read_to_string(folder.ring_file()).unwrap();
        let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
        old.as_object_mut().unwrap().remove("order_key").unwrap();
        std::fs::write(folder.ring_file(), old.to_string()).unwrap();
        assert_eq!(prepare(&folder, &args(None), None).unwrap().file.order_trust(), first.order_trust());
        std::fs::write(folder.ring_file(), old.to_string()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let anew = prepare(&folder, &args(None), None).unwrap().file.order_trust().unwrap().key;
        assert_eq!(order_key::load(&path).unwrap().expect("made anew").public(), anew);
        assert_ne!(anew, key);
        // A public key alone is one that lies elsewhere.
        std::fs::remove_file(&path).unwrap();
        assert_eq!(prepare(&folder, &args(None), None).unwrap().file.order_trust().unwrap().key, anew);
        assert!(!path.exists());
    }

    #[test]
    fn the_second_start_finds_the_first_ones_ring() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        let first = prepare(&folder, &args(None), None).unwrap();
        assert_eq!(first.admin_password.len(), 20);
        let second = prepare(&folder, &args(None), None).unwrap();
        assert_eq!(second.admin_password, first.admin_password);
        assert_eq!(second.file.pod_id, first.file.pod_id);
        let third = prepare(&folder, &args(Some("ann:secret")), None).unwrap();
        assert_eq!(third.file.admin.name, "ann");
        let fourth = prepare(&folder, &args(None), None).unwrap();
        assert_eq!(fourth.admin_password, "secret");
        let hash = PasswordHash::new(&fourth.file.admin.password_hash).unwrap();
        Argon2::default().verify_password(b"secret", &hash).unwrap();
        assert_eq!(fourth.file.secret().unwrap().to_hex(), first.file.secret().unwrap().to_hex());
    }
}
