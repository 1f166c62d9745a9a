//! The ring's configuration, shown and changed by hand: `podctl config`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command as Program;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use crate::command::config::{Args, Command, EditArgs, SetArgs, ShowArgs};
use crate::exit;
use crate::look::ask::say;
use crate::look::ring_config::{RingSettings, check};
use crate::paint::{Paint, Tone};

/// What is edited with where nothing is set.
const EDITOR: &str = "vi";
/// Bytes of a text that somebody has edited; a configuration has some hundred.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Shows or changes the configuration.
///
/// # Errors
/// When no pod answers, or what was set can't be used.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Show(args) => show(args).await,
        Command::Set(args) => set(args).await,
        Command::Edit(args) => edit(args).await,
    }
}

async fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let mut conn = args.ask.target.connect().await?;
    let settings = RingSettings::read(&mut conn).await?;
    let shown = if args.all { json!(check(&settings.members)?) } else { Value::Object(settings.members) };
    if args.ask.json {
        return say(&format!("{shown}\n"));
    }
    if shown.as_object().is_some_and(Map::is_empty) {
        return say("nothing is set; `podctl config show --all` shows what holds\n");
    }
    say(&format!("{shown:#}\n"))
}

async fn set(args: &SetArgs) -> anyhow::Result<()> {
    let changes: Vec<(&str, Option<Value>)> =
        args.changes.iter().map(|change| parse_change(change)).collect::<anyhow::Result<_>>()?;
    let mut conn = args.ask.target.connect().await?;
    let before = RingSettings::read(&mut conn).await?;
    let after = RingSettings::change(&mut conn, |members| {
        for (key, value) in &changes {
            put(members, key, value.clone())?;
        }
        // Before it is sent, so that the message is of what was given here.
        check(members).map(drop)
    })
    .await
    .map_err(|err| err.context("nothing was changed"))?;
    if args.ask.json {
        return say(&format!("{}\n", Value::Object(after.members)));
    }
    say(&difference(&pretty(&before.members), &pretty(&after.members), Paint::stdout()))
}

/// `write.w=2`: a member with its sections, and JSON or a text; nothing takes the member away.
fn parse_change(change: &str) -> anyhow::Result<(&str, Option<Value>)> {
    let (key, value) = change
        .split_once('=')
        .filter(|(key, _)| !key.is_empty() && key.split('.').all(|part| !part.is_empty()))
        .ok_or_else(|| exit::wrong_use(format!("{change:?} is not KEY=VALUE, such as write.w=2")))?;
    let value = match value.trim() {
        "" | "null" => None,
        text => Some(serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))),
    };
    Ok((key, value))
}

fn put(members: &mut Map<String, Value>, key: &str, value: Option<Value>) -> anyhow::Result<()> {
    let Some((section, rest)) = key.split_once('.') else {
        match value {
            Some(value) => members.insert(key.to_owned(), value),
            None => members.remove(key),
        };
        return Ok(());
    };
    let within = members.entry(section).or_insert_with(|| json!({}));
    let Value::Object(within) = within else { bail!("`{section}` has no members") };
    put(within, rest, value)?;
    if within.is_empty() {
        members.remove(section);
    }
    Ok(())
}

async fn edit(args: &EditArgs) -> anyhow::Result<()> {
    let editor = args.editor.clone().or_else(editor_of_environment).unwrap_or_else(|| EDITOR.to_owned());
    let mut conn = args.target.connect().await?;
    let before = RingSettings::read(&mut conn).await?;
    let original = pretty(&before.members);
    let file = Draft::new(&format!("{}{original}\n", heading(None)))?;
    let mut last = None;
    let after = loop {
        open(&editor, &file.path)?;
        let text = file.read()?;
        match parse_text(&text) {
            Ok(members) => break members,
            Err(err) => {
                let body = without_comments(&text);
                // Saved as it was, or emptied: whoever edits has given up.
                if last.as_ref() == Some(&body) || body.trim().is_empty() {
                    bail!("nothing was changed; what you wrote could not be used: {err:#}");
                }
                file.write(&format!("{}{}", heading(Some(&format!("{err:#}"))), body))?;
                last = Some(body);
            }
        }
    };
    let difference = difference(&original, &pretty(&after), Paint::stdout());
    if difference.is_empty() {
        return say("nothing was changed\n");
    }
    say(&difference)?;
    let mut settings = before;
    settings.members = after;
    // Some time has gone by: the connection may be closed, and the next one finds another pod if need be.
    let mut conn = args.target.connect().await?;
    match settings.write(&mut conn).await {
        Ok(true) => say("the ring has it; each pod puts it in force within seconds\n"),
        Ok(false) => {
            let path = file.keep();
            bail!("somebody else has changed it meanwhile; what you wrote is in {}: edit again", path.display())
        }
        Err(err) => {
            let path = file.keep();
            Err(err.context(format!("it was not taken; what you wrote is in {}", path.display())))
        }
    }
}

fn editor_of_environment() -> Option<String> {
    ["VISUAL", "EDITOR"].into_iter().filter_map(|name| std::env::var(name).ok()).find(|value| !value.trim().is_empty())
}

/// The variables may hold arguments, as in `code --wait`; quotes mean nothing.
fn open(editor: &str, path: &Path) -> anyhow::Result<()> {
    let mut words = editor.split_whitespace();
    let program = words.next().context("no editor: set EDITOR")?;
    let status = Program::new(program)
        .args(words)
        .arg(path)
        .status()
        .with_context(|| format!("can't start {editor}: set EDITOR"))?;
    if !status.success() {
        bail!("{editor} ended with {status}: nothing was changed");
    }
    Ok(())
}

/// What is above the text in the editor.
fn heading(wrong: Option<&str>) -> String {
    let mut text =
        String::from("// The ring's configuration; lines that begin with // don't count. Save and leave to set it.\n");
    if let Some(wrong) = wrong {
        for line in wrong.lines() {
            let _ = writeln!(text, "// !! {line}");
        }
        text.push_str("// Put it right, or leave without a change to give up.\n");
    }
    text
}

fn parse_text(text: &str) -> anyhow::Result<Map<String, Value>> {
    let value: Value = serde_json::from_str(&without_comments(text)).context("that is no JSON")?;
    let Value::Object(members) = value else { bail!("that is no JSON object") };
    check(&members)?;
    Ok(members)
}

fn without_comments(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.fold(String::new(), |all, line| all + line + "\n")
}

fn pretty(members: &Map<String, Value>) -> String {
    format!("{:#}", Value::Object(members.clone()))
}

/// Which lines are gone and which are new; nothing where all are the same.
fn difference(before: &str, after: &str, paint: Paint) -> String {
    if before == after {
        return String::new();
    }
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let mut text = String::new();
    let mut say = |mark: &str, tone: Option<Tone>, line: &str| {
        let line = format!("{mark} {line}");
        let line = tone.map_or_else(|| line.clone(), |tone| paint.paint(tone, &line));
        text.push_str(&line);
        text.push('\n');
    };
    let common = longest_common(&old, &new);
    let (mut i, mut j) = (0, 0);
    for (a, b) in common.into_iter().chain([(old.len(), new.len())]) {
        old[i..a].iter().for_each(|line| say("-", Some(Tone::Bad), line));
        new[j..b].iter().for_each(|line| say("+", Some(Tone::Good), line));
        if let Some(line) = old.get(a).filter(|_| b < new.len()) {
            say(" ", None, line);
        }
        (i, j) = (a + 1, b + 1);
    }
    text
}

/// The places of a longest common subsequence of lines. A configuration has some dozen of them.
fn longest_common(old: &[&str], new: &[&str]) -> Vec<(usize, usize)> {
    let mut lengths = vec![vec![0usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            lengths[i][j] =
                if old[i] == new[j] { lengths[i + 1][j + 1] + 1 } else { lengths[i + 1][j].max(lengths[i][j + 1]) };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut pairs = Vec::new();
    while i < old.len() && j < new.len() {
        if old[i] == new[j] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if lengths[i + 1][j] >= lengths[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

/// A file that only its owner can read, and that goes unless it is kept.
struct Draft {
    path: PathBuf,
    is_kept: std::cell::Cell<bool>,
}

impl Draft {
    fn new(text: &str) -> anyhow::Result<Self> {
        let name = format!("podctl-config-{}.json", hex::encode(rand::random::<[u8; 8]>()));
        let path = std::env::temp_dir().join(name);
        let mut file = std::fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("can't make {}", path.display()))?;
        let draft = Self { path, is_kept: false.into() };
        file.write_all(text.as_bytes()).with_context(|| format!("can't write {}", draft.path.display()))?;
        Ok(draft)
    }

    fn write(&self, text: &str) -> anyhow::Result<()> {
        std::fs::write(&self.path, text).with_context(|| format!("can't write {}", self.path.display()))
    }

    fn read(&self) -> anyhow::Result<String> {
        let length = std::fs::metadata(&self.path).with_context(|| format!("{} is gone", self.path.display()))?.len();
        if length > MAX_TEXT_BYTES {
            bail!("{} is larger than any configuration", self.path.display());
        }
        std::fs::read_to_string(&self.path).with_context(|| format!("can't read {}", self.path.display()))
    }

    fn keep(&self) -> PathBuf {
        self.is_kept.set(true);
        self.path.clone()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_kept.get() {
            // It holds no secret; one that can't be removed is no harm.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Draft, difference, heading, parse_change, parse_text, put, without_comments};
    use crate::paint::Paint;
    use serde_json::{Map, Value, json};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn members_are_set_and_taken_away() {
        let mut members = Map::new();
        for change in ["write.w=2", "election.prefer=[\"pod-1\"]", "pods.pod-2=inactive", "gossip.phi=9.5", "write.w="]
        {
            let (key, value) = parse_change(change).expect("a change");
            put(&mut members, key, value).expect("put");
        }
        let wanted = json!({"election": {"prefer": ["pod-1"]}, "pods": {"pod-2": "inactive"}, "gossip": {"phi": 9.5}});
        assert_eq!(Value::Object(members.clone()), wanted);
        for wrong in ["w", "=2", "a..b=1", ".a=1"] {
            assert!(parse_change(wrong).is_err(), "{wrong}");
        }
        assert!(put(&mut members, "gossip.phi.x", Some(json!(1))).is_err());
    }

    #[test]
    fn comments_do_not_count_and_what_is_wrong_is_named() {
        let text = format!("{}{{\n  // twice\n  \"write\": {{\"w\": 2}}\n}}\n", heading(Some("a\nb")));
        assert_eq!(Value::Object(parse_text(&text).expect("good")), json!({"write": {"w": 2}}));
        assert!(!without_comments(&text).contains("!!"));
        let err = parse_text(r#"{"write": {"w": 0}}"#).expect_err("wrong");
        assert!(format!("{err:#}").contains("write.w"), "{err:#}");
        assert!(parse_text("[]").is_err() && parse_text("{").is_err());
    }

    #[test]
    fn a_difference_by_lines() {
        assert_eq!(difference("a\nb\nc", "a\nx\nc\nd", Paint::off()), "  a\n- b\n+ x\n  c\n+ d\n");
        assert_eq!(difference("a", "a", Paint::off()), "");
        assert_eq!(difference("a", "", Paint::off()), "- a\n");
    }

    #[test]
    fn a_draft_is_private_and_goes() {
        let draft = Draft::new("x").expect("a file");
        let path = draft.path.clone();
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(draft.read().expect("read"), "x");
        drop(draft);
        assert!(!path.exists());
    }
}
