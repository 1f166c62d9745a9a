//! What the driver may ask for: one JSON object a line on standard input, answered by one on standard output.
//!
//! | line | answer |
//! | --- | --- |
//! | `{"link":[1,2],"delay_ms":30,"jitter_ms":5,"loss":0.02,"cut":true,"one_way":true}` | `{"ok":true}`; the rule replaces the link's earlier one, what is left out is perfect |
//! | `{"heal":true}` | `{"ok":true}`; all links are perfect |
//! | `{"stats":true}` | `{"stats":[{"from":1,"to":2,"packets":9,"bytes":900,"lost":0}]}` since the start |

use serde::Deserialize;

use crate::rule::Rule;

/// One request.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// From now on this holds from the first to the second, and the other way too unless it is one way.
    Link {
        /// The numbers of two places.
        ends: (usize, usize),
        /// What holds.
        rule: Rule,
        /// Only from the first to the second.
        one_way: bool,
    },
    /// All links are perfect again.
    Heal,
    /// How much has gone where?
    Stats,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    link: Option<(usize, usize)>,
    heal: Option<bool>,
    stats: Option<bool>,
    #[serde(default)]
    one_way: bool,
    #[serde(default)]
    delay_ms: u64,
    #[serde(default)]
    jitter_ms: u64,
    #[serde(default)]
    loss: f64,
    #[serde(default)]
    cut: bool,
}

impl Command {
    /// Reads a line. `places` is how many there are; they are numbered from 1.
    ///
    /// # Errors
    /// When it can't be carried out; with what is wrong, in words.
    pub fn parse(line: &str, places: usize) -> Result<Self, String> {
        let line: Line = serde_json::from_str(line).map_err(|err| err.to_string())?;
        let Line { link, heal, stats, one_way, delay_ms, jitter_ms, loss, cut } = line;
        match (link, heal, stats) {
            (None, Some(true), None) => Ok(Self::Heal),
            (None, None, Some(true)) => Ok(Self::Stats),
            (Some(ends), None, None) => {
                let exists = |place: usize| (1..=places).contains(&place);
                if !exists(ends.0) || !exists(ends.1) || ends.0 == ends.1 {
                    return Err(format!("`link` must name two of the places 1 to {places}"));
                }
                let rule = Rule { delay_ms, jitter_ms, loss, cut };
                rule.check()?;
                Ok(Self::Link { ends, rule, one_way })
            }
            _ => Err("one of `link`, `heal` and `stats` is needed".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Command;
    use crate::rule::Rule;

    #[test]
    fn reads_what_is_documented() {
        assert_eq!(Command::parse(r#"{"heal":true}"#, 2), Ok(Command::Heal));
        assert_eq!(Command::parse(r#"{"stats":true}"#, 2), Ok(Command::Stats));
        let rule = Rule { delay_ms: 30, jitter_ms: 5, loss: 0.5, cut: true };
        let line = r#"{"link":[1,2],"delay_ms":30,"jitter_ms":5,"loss":0.5,"cut":true,"one_way":true}"#;
        assert_eq!(Command::parse(line, 2), Ok(Command::Link { ends: (1, 2), rule, one_way: true }));
        let line = r#"{"link":[2,1]}"#;
        assert_eq!(Command::parse(line, 2), Ok(Command::Link { ends: (2, 1), rule: Rule::default(), one_way: false }));
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        for line in [
            "",
            "{}",
            "[]",
            r#"{"link":[1,3]}"#,
            r#"{"link":[1,1]}"#,
            r#"{"link":[0,1]}"#,
            r#"{"link":[1,2],"loss":2}"#,
        ] {
            assert!(Command::parse(line, 2).is_err(), "{line}");
        }
        for line in [r#"{"link":[1,2],"los":1}"#, r#"{"heal":true,"stats":true}"#, r#"{"heal":false}"#] {
            assert!(Command::parse(line, 2).is_err(), "{line}");
        }
    }
}
