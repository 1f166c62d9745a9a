//! The first pod of a ring: a new secret, an administrator, and the agent's configuration.

use std::io::{self, IsTerminal};

use adea::ring_file::{Admin, RingFile};
use adea_ring::upgrade::{OrderKey, OrderTrust};
use anyhow::bail;
use serde_json::json;

use crate::command::init::Args;
use crate::machine::{Machine, start};
use crate::password;

/// The longest name of an administrator, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// Makes the ring.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    check_name(&args.admin)?;
    let given = password::given(args.admin_password_file.as_deref())?;
    let is_seen = args.machine.json || io::stdout().is_terminal();
    if given.is_none() && !is_seen {
        bail!(
            "nobody would see the administrator's password, which is shown once and stored nowhere: give \
             --admin-password-file FILE, set {}, or give --json",
            password::PASSWORD_ENV
        );
    }
    let machine = Machine::check(&args.machine)?;
    let made_up = given.is_none();
    let password = given.unwrap_or_else(password::made_up);
    let admin = Admin { name: args.admin.clone(), password_hash: password::hash(&password)? };
    let mut file = RingFile::new(machine.pod.to_string(), admin);
    let order_key = OrderKey::random();
    file.trust_new_key(&OrderTrust { key: order_key.public(), at: Some(machine.pod.clone()) });
    let written = machine.write(&file, Some(&order_key), &[], None)?;
    if args.machine.json {
        let mut value = written.json();
        value["admin"] = json!({"name": args.admin, "password": made_up.then_some(&password)});
        value["start"] = json!(start::how(&written.config));
        println!("{value}");
    } else {
        println!("{} is the first pod of a new ring\n{}", written.pod, written.lines());
        if made_up {
            println!(
                "  administrator  {}, password {password}\n  It is shown this once and stored nowhere.\n",
                args.admin
            );
        } else {
            println!("  administrator  {}, with the given password\n", args.admin);
        }
    }
    if args.machine.start {
        start::start()?;
        start::until_up(&written.config).await?;
    }
    if !args.machine.json {
        if args.machine.start {
            println!("It is up. For each further machine:");
        } else {
            println!("Start it:\n  {}\nThen, for each further machine:", start::how(&written.config));
        }
        println!("  podctl token create    which prints the command to run there");
    }
    Ok(())
}

/// Names that begin with `_` or `session-` mean something to the pods, and a colon ends a name in a log-in.
fn check_name(name: &str) -> anyhow::Result<()> {
    let fits = (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.starts_with('_')
        && !name.starts_with("session-")
        && !name.contains(|c: char| c == ':' || c.is_control());
    if fits {
        Ok(())
    } else {
        bail!("--admin: a name is 1 to {MAX_NAME_BYTES} bytes, has no colon, and doesn't begin with `_` or `session-`")
    }
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn names_that_mean_something_else_are_refused() {
        for good in ["admin", "änn", "a b"] {
            check_name(good).unwrap();
        }
        for bad in ["", "_operator-x", "session-x", "a:b", "a\nb", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
