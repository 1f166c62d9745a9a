//! Passwords on their way in: from a file, the environment or a terminal, never from the command line, which all users of
//! a machine can see.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use argon2::Argon2;
use argon2::password_hash::PasswordHasher;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// The variable that a password may be in.
pub const PASSWORD_ENV: &str = "ADEA_PASSWORD";
/// The longest password, in bytes: more is some other file.
const MAX_BYTES: usize = 4096;

/// A password of 100 random bits: 20 letters and digits, without those that look alike.
pub fn made_up() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    rand::random::<[u8; 20]>().iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect()
}

/// The argon2id hash of a password, in PHC form.
pub fn hash(password: &str) -> anyhow::Result<String> {
    let hash = Argon2::default()
        .hash_password(password.as_bytes())
        .map_err(|err| anyhow!("the password can't be hashed: {err}"))?;
    Ok(hash.to_string())
}

/// The password of a file, else that of the variable `ADEA_PASSWORD`; none if there is neither.
pub fn given(file: Option<&Path>) -> anyhow::Result<Option<String>> {
    let Some(path) = file else {
        let variable = std::env::var(PASSWORD_ENV).ok().filter(|password| !password.is_empty());
        return Ok(variable);
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    let password = text.trim_end().to_owned();
    if password.is_empty() || password.len() > MAX_BYTES {
        bail!("{}: a password is 1 to {MAX_BYTES} bytes", path.display());
    }
    Ok(Some(password))
}

/// Asks for a password on the terminal, which doesn't show it.
pub fn ask(prompt: &str) -> anyhow::Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        bail!("no password: there is no terminal to ask at; give --password-file FILE, or set {PASSWORD_ENV}");
    }
    // The prompt is for people, what is printed may go into a pipe.
    let _ = write!(io::stderr(), "{prompt}: ");
    let _ = io::stderr().flush();
    let mut line = String::new();
    let read = {
        let _hidden = Hidden::new();
        stdin.lock().read_line(&mut line)
    };
    let _ = writeln!(io::stderr());
    read.context("can't read the password")?;
    let password = line.trim_end_matches(['\r', '\n']).to_owned();
    if password.is_empty() { Err(anyhow!("no password was given")) } else { Ok(password) }
}

/// While it lives, the terminal doesn't show what is typed.
struct Hidden {
    before: Option<Termios>,
}

impl Hidden {
    fn new() -> Self {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut hidden = before.clone();
            hidden.local_modes.remove(LocalModes::ECHO);
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &hidden);
        }
        Self { before }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{given, hash, made_up};
    use argon2::Argon2;
    use argon2::password_hash::PasswordVerifier;
    use argon2::password_hash::phc::PasswordHash;

    #[test]
    fn a_made_up_one_is_long_and_its_hash_fits() {
        let password = made_up();
        assert_eq!(password.len(), 20);
        assert_ne!(password, made_up());
        let hash = hash(&password).unwrap();
        let hash = PasswordHash::new(&hash).unwrap();
        Argon2::default().verify_password(password.as_bytes(), &hash).unwrap();
    }

    #[test]
    fn white_space_at_the_end_of_a_file_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, " a b \n").unwrap();
        assert_eq!(given(Some(&path)).unwrap().as_deref(), Some(" a b"));
        std::fs::write(&path, "\n").unwrap();
        assert!(given(Some(&path)).is_err());
        assert!(given(Some(&dir.path().join("none"))).is_err());
    }
}
