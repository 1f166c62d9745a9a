//! The apps: what is in each, who may read what it doesn't say itself, and how its writes are kept.

use anyhow::Context;
use http::Method;
use serde_json::{Value, json};

use super::ask::say;
use super::maintenance::{self, encoded};
use crate::command::apps::{Args, Command};
use crate::command::ask::AskArgs;
use crate::exit;
use crate::http::Conn;
use crate::import::teller::size;
use crate::paint::{Paint, Tone, harmless};
use crate::ring::documents::{self, starting_with};
use crate::ring::table::{Cell, Table};

/// Partial databases that are shown by name; there may be tens of thousands.
const SHOWN_PARTIALS: usize = 20;

/// An app, as it is asked for.
struct App {
    name: String,
    /// What `GET /APP` says; null while it is closed.
    info: Value,
    /// `_ring/app:NAME`, where somebody has set something.
    settings: Value,
    /// The rule of its maintenance.
    rule: Option<String>,
}

/// Lists the apps, or shows one.
///
/// # Errors
/// When no pod answers, or there is no such app.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Some(Command::Show(show)) => show_one(&show.ask, &show.app).await,
        Some(Command::List(ask)) => list(ask).await,
        None => list(&args.ask).await,
    }
}

async fn list(ask: &AskArgs) -> anyhow::Result<()> {
    let mut conn = ask.target.connect().await?;
    let rules = maintenance::read(&mut conn).await?;
    let mut apps = Vec::new();
    for name in names(&mut conn).await? {
        apps.push(App::read(&mut conn, &name, &rules).await?);
    }
    if ask.json {
        let rows: Vec<Value> = apps.iter().map(App::json).collect();
        return say(&format!("{}\n", json!({"apps": rows})));
    }
    if apps.is_empty() {
        return say("there are no apps; PUT /NAME?access=true makes one\n");
    }
    let mut table = Table::new(&["app", "documents", "deleted", "size", "w", "maintenance"]);
    apps.iter().for_each(|app| table.push(app.cells()));
    say(&table.painted(Paint::stdout()))
}

/// The names of all apps of the ring.
async fn names(conn: &mut Conn) -> anyhow::Result<Vec<String>> {
    let (docs, _) = starting_with(conn, "_ring", "db:").await?;
    // One that was deleted is kept as a document without an instance.
    let apps = docs.iter().filter(|doc| doc["app"] == true && doc["instance"].is_string());
    Ok(apps.filter_map(|doc| doc["_id"].as_str()?.strip_prefix("db:").map(str::to_owned)).collect())
}

async fn show_one(ask: &AskArgs, name: &str) -> anyhow::Result<()> {
    let mut conn = ask.target.connect().await?;
    let all = names(&mut conn).await?;
    if !all.iter().any(|app| app == name) {
        return Err(exit::wrong_use(format!("there is no app {name}; `podctl apps` lists those that there are")));
    }
    let rules = maintenance::read(&mut conn).await?;
    let app = App::read(&mut conn, name, &rules).await?;
    let partials = if app.info.is_null() {
        None
    } else {
        let answer = conn.expect(Method::GET, &format!("/{}/_access", encoded(name)), "").await?;
        Some(answer["partials"].as_array().cloned().context("the pod's answer has no partial databases")?)
    };
    if ask.json {
        let mut json = app.json();
        json["partials"] = partials.map_or(Value::Null, Value::Array);
        return say(&format!("{json}\n"));
    }
    say(&app.text(partials.unwrap_or_default(), Paint::stdout()))
}

impl App {
    async fn read(conn: &mut Conn, name: &str, rules: &[(String, String)]) -> anyhow::Result<Self> {
        let rule = rules.iter().find(|(db, _)| db == name).map(|(_, rule)| rule.clone());
        let info = match rule.as_deref() {
            // It is closed to whoever asks.
            Some(adea_ring::node_config::CLOSED) => Value::Null,
            _ => conn.expect(Method::GET, &format!("/{}", encoded(name)), "").await?,
        };
        let settings = documents::get(conn, &format!("/_ring/{}", encoded(&format!("app:{name}")))).await?;
        Ok(Self { name: name.to_owned(), info, settings: settings.unwrap_or_default(), rule })
    }

    fn cells(&self) -> Vec<Cell> {
        let number = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), |number| number.to_string());
        vec![
            self.name.as_str().into(),
            number(&self.info["doc_count"]).into(),
            number(&self.info["doc_del_count"]).into(),
            self.size().into(),
            number(&self.settings["w"]).into(),
            self.rule.as_ref().map_or_else(|| Cell::from("-"), |rule| Cell::toned(rule.as_str(), Tone::Warn)),
        ]
    }

    fn size(&self) -> String {
        self.info["sizes"]["active"].as_u64().map_or_else(|| "-".to_owned(), size)
    }

    fn json(&self) -> Value {
        let members = self.settings.as_object().into_iter().flatten();
        let settings: serde_json::Map<String, Value> = members
            .filter(|(name, _)| !name.starts_with('_'))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        json!({
            "app": self.name, "doc_count": self.info["doc_count"], "doc_del_count": self.info["doc_del_count"],
            "sizes": self.info["sizes"], "settings": settings, "maintenance": self.rule,
        })
    }

    fn text(&self, mut partials: Vec<Value>, paint: Paint) -> String {
        let mut text = format!("{}\n", paint.paint(Tone::Bold, &self.name));
        let mut line = |name: &str, value: &str| text.push_str(&format!("  {name:<20} {}\n", harmless(value)));
        if self.info.is_null() {
            line("maintenance", "closed: what is in it can't be asked for");
        } else {
            line("documents", &self.info["doc_count"].to_string());
            line("deleted", &self.info["doc_del_count"].to_string());
            line("size", &self.size());
            line("maintenance", self.rule.as_deref().unwrap_or("none"));
        }
        let set = |name: &str, otherwise: &str| match &self.settings[name] {
            Value::Null => otherwise.to_owned(),
            value => value.to_string(),
        };
        line("without `access`", &set("default", "only administrators read and write"));
        line("rules", &set("rules", "none"));
        line("who may create", &set("create", "users (anyone who is logged in)"));
        line("w", &set("w", "as the ring's `write.w` says"));
        line("personal database", &format!("{}--me", self.name));
        line("partial databases", &partials.len().to_string());
        if partials.is_empty() {
            return text;
        }
        partials.sort_by_key(|part| std::cmp::Reverse(part["doc_count"].as_u64()));
        let mut table = Table::new(&["documents", "database", "readers"]);
        for part in partials.iter().take(SHOWN_PARTIALS) {
            let readers: Vec<&str> =
                part["readers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let db = part["db"].as_str().unwrap_or("-").to_owned();
            table.push(vec![part["doc_count"].to_string(), db, readers.join(", ")]);
        }
        text.push('\n');
        text.push_str(&table.painted(paint));
        if partials.len() > SHOWN_PARTIALS {
            text.push_str(&format!("... and {} more: --json has them all\n", partials.len() - SHOWN_PARTIALS));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::App;
    use crate::paint::Paint;
    use serde_json::{Value, json};

    #[test]
    fn an_app_with_its_largest_parts() {
        let app = App {
            name: "notes".into(),
            info: json!({"doc_count": 7, "doc_del_count": 1, "sizes": {"active": 2_000_000}}),
            settings: json!({"_id": "app:notes", "_rev": "1-a", "w": 2, "default": {"read": ["role:staff"]}}),
            rule: None,
        };
        let part = |db: &str, count: u64| json!({"db": db, "doc_count": count, "readers": ["user:ann", "role:x"]});
        let text = app.text(vec![part("notes--1", 2), part("notes--2", 5)], Paint::off());
        assert!(text.contains("2.0 MB") && text.contains(r#"{"read":["role:staff"]}"#), "{text}");
        assert!(text.find("notes--2") < text.find("notes--1") && text.contains("user:ann, role:x"), "{text}");
        assert_eq!(app.json()["settings"], json!({"w": 2, "default": {"read": ["role:staff"]}}));
    }

    #[test]
    fn a_closed_app_says_so() {
        let app = App { name: "a".into(), info: Value::Null, settings: Value::Null, rule: Some("closed".into()) };
        assert!(app.text(Vec::new(), Paint::off()).contains("closed"));
        assert_eq!(app.json()["maintenance"], "closed");
    }
}
