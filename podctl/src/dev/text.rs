//! What `podctl dev` prints when it is ready.

use std::io::{self, Write};

use adea::folder::Folder;
use serde_json::json;

use crate::dev::example::{APP, USERS};
use crate::dev::master::Agreement;
use crate::dev::pods::Pod;
use crate::dev::ring::Ring;

/// Prints where the ring is, who may do what, and what to try. Whoever started us may have stopped reading; that is no
/// reason to stop the ring.
pub fn print(folder: &Folder, pods: &[Pod], agreement: Option<&Agreement>, ring: &Ring, as_json: bool) {
    let base = pods.first().map(Pod::url).unwrap_or_default();
    let text = if as_json {
        format!("{}\n", ready_json(&base, folder, pods, agreement, ring))
    } else {
        ready_text(&base, folder, &ring_text(pods, agreement), ring)
    };
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn ready_json(
    base: &str,
    folder: &Folder,
    pods: &[Pod],
    agreement: Option<&Agreement>,
    ring: &Ring,
) -> serde_json::Value {
    let example = example_password(ring).map(|password| {
        let users: Vec<&str> = USERS.iter().map(|(name, _)| *name).collect();
        json!({"app": APP, "users": users, "password": password})
    });
    let mut ready = json!({
        "ready": base,
        "admin": {"name": ring.file.admin.name, "password": ring.admin_password},
        "example": example,
        "data": folder.root(),
    });
    if let Some(agreement) = agreement {
        let pods = pods.iter().map(|pod| json!({"pod": pod.id, "url": pod.url(), "data": pod.folder.root()}));
        ready["pods"] = pods.collect();
        ready["master"] = json!(agreement.master);
    }
    ready
}

/// A line for each pod; nothing for a pod that is alone.
fn ring_text(pods: &[Pod], agreement: Option<&Agreement>) -> String {
    let Some(agreement) = agreement else { return String::new() };
    let lines = pods.iter().map(|pod| {
        let role = if agreement.master.as_ref() == Some(&pod.id) { ", takes the writes now" } else { "" };
        format!("{} {}{role}\n", pod.id, pod.url())
    });
    lines.collect()
}

fn ready_text(base: &str, folder: &Folder, pods: &str, ring: &Ring) -> String {
    let admin = &ring.file.admin.name;
    let password = &ring.admin_password;
    let as_admin = quote(&format!("{admin}:{password}"));
    let run = folder.run().display().to_string();
    let mut text = format!(
        "ready {base}\n\
         {pods}\
         administrator {admin}, password {password}\n\
         logs in {run}, Ctrl-C stops\n\
         \n\
         # make an app, and a user\n\
         curl -u {as_admin} -X PUT '{base}/recipes?access=true'\n\
         curl -u {as_admin} -X PUT {base}/_users/org.couchdb.user:dave \\\n     \
         -d '{{\"type\":\"user\",\"name\":\"dave\",\"password\":\"choose-one\",\"roles\":[]}}'\n"
    );
    if let Some(password) = example_password(ring) {
        let users: Vec<String> = USERS
            .iter()
            .map(|(name, roles)| match roles {
                [] => (*name).to_owned(),
                roles => format!("{name} ({})", roles.join(", ")),
            })
            .collect();
        text.push_str(&format!(
            "\n\
             # an example is there: app {APP}, users {users}; the password of each is {password}\n\
             # alice writes a note for the staff; bob reads it, carol can't\n\
             curl -u alice:{password} {base}/{APP}--me -H 'Content-Type: application/json' \\\n     \
             -d '{{\"text\":\"hello\",\"access\":{{\"read\":[\"role:staff\"]}}}}'\n\
             curl -u bob:{password} '{base}/{APP}--me/_all_docs?include_docs=true'\n\
             curl -u carol:{password} '{base}/{APP}--me/_all_docs?include_docs=true'\n\
             # the same with PouchDB: tests/example/notes.mjs\n",
            users = users.join(", "),
        ));
    }
    text
}

fn example_password(ring: &Ring) -> Option<&str> {
    ring.file.dev.as_ref()?.example_password.as_deref()
}

/// The text as one word for a shell.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || ":-_.@".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn quotes_for_a_shell() {
        assert_eq!(quote("admin:abc"), "admin:abc");
        assert_eq!(quote("admin:a b"), "'admin:a b'");
        assert_eq!(quote("o'x"), r"'o'\''x'");
    }
}
