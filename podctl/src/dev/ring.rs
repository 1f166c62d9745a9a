//! The ring of a data folder: made at the first start, used again at the next.

use adea::folder::Folder;
use adea::ring_file::{Admin, DevSecrets, RingFile};
use anyhow::Context;

use crate::command::dev::{Args, Login};
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
    let (file, password) = match (RingFile::load(&path)?, &args.admin) {
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
    Ok(Ring { file, admin_password: password })
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
