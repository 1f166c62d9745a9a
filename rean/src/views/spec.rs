//! From a design document to the index that serves its views
//! (<https://docs.couchdb.org/en/stable/ddocs/ddocs.html#view-functions>).
//!
//! All views of a design document are one index. Views with the same map function are mapped once; those that agree in
//! their reduce function too are one. The index is known by a signature of all that decides about its rows, so a change
//! elsewhere in the document leaves it as it is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::StatusCode;
use md5::{Digest, Md5};
use rean_index::{
    Emit, Emitted, GroupSpec, IndexDoc, MapError, Mapper, Reduce, ReduceError, Reducer, Unmapped, ViewSpec,
    is_partitioned,
};
use rean_script::{Design, MappedDoc, ScriptError, Scripts};
use rean_store::collate;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::views::builds::{lane, note_limit};

/// Documents that cross to the functions at once: some milliseconds of work, so that others get their turn.
const DOCS_A_CALL: usize = 256;
/// As much text of documents, in bytes.
const BYTES_A_CALL: usize = 1 << 20;
/// Documents that may hit limits before the others of their call are left.
const MOST_COSTLY: usize = 3;
/// Views of one design document. Tens are usual; an index numbers its views in 16 bits, and each query of one brings all
/// of them up to date.
pub const MAX_VIEWS: usize = 1_000;
/// The language of functions.
const JAVASCRIPT: &str = "javascript";
/// That of Mango's indexes, which are asked with `_find`.
pub const QUERY: &str = "query";

/// Built-in reduce functions that are known by the beginning of what is written: CouchDB takes what follows.
const BUILT_IN: [&str; 4] = ["_sum", "_count", "_stats", "_approx_count_distinct"];

/// The views of one design document.
pub struct DesignViews {
    /// What the index is made of.
    pub group: Arc<GroupSpec>,
    names: BTreeMap<String, ViewPlace>,
}

/// Where a view's rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewPlace {
    /// The view's number in the index.
    pub view: usize,
    /// Whether it has a reduce function.
    pub has_reduce: bool,
    /// Whether its rows are in the order of raw collation.
    pub is_raw: bool,
    /// The reduce function's name, if there is no built-in one of that name.
    unknown_reduce: Option<String>,
}

/// Why a design document has no views that could be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpecError {
    /// It has none.
    NoViews,
    /// Its functions are in another language.
    Language(String),
    /// It has more than [`MAX_VIEWS`].
    TooMany,
}

/// What the database of a design document is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Home {
    /// Whether it is an app.
    pub is_app: bool,
    /// Whether it has partitions.
    pub is_partitioned: bool,
}

/// One view as the design document has it.
struct Source<'a> {
    name: &'a str,
    map: &'a str,
    reduce: Option<&'a str>,
    is_raw: bool,
}

impl DesignViews {
    /// Reads a design document, given as value and for its functions. For an app there is no `local_seq`: it would
    /// tell the readers of a part how much is written to the rest.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn of(doc: &Value, design: &Design, scripts: &Scripts, home: Home) -> Result<Self, SpecError> {
        let language = doc.get("language").and_then(Value::as_str).unwrap_or(JAVASCRIPT);
        if language != JAVASCRIPT {
            return Err(SpecError::Language(language.to_owned()));
        }
        let none = Map::new();
        let views = doc.get("views").and_then(Value::as_object).unwrap_or(&none);
        if views.len() > MAX_VIEWS {
            return Err(SpecError::TooMany);
        }
        let sources = sources(views);
        if sources.is_empty() {
            return Err(SpecError::NoViews);
        }
        let options = doc.get("options").cloned().unwrap_or_default();
        let flag = |name: &str| options.get(name).and_then(Value::as_bool).unwrap_or(false);
        let partitioned = is_partitioned(doc, home.is_partitioned);
        let signature = signature(&sources, &options, views.get("lib"), partitioned);
        let layout = Layout::of(&sources);
        let specs = layout.views.iter().map(|view| view.spec(design, scripts)).collect();
        let mapper = JsMapper {
            scripts: scripts.clone(),
            design: design.clone(),
            maps: layout.maps.iter().map(|(_, name)| (*name).to_owned()).collect(),
            map_of_view: layout.views.iter().map(|view| view.map).collect(),
            raw_views: layout.views.iter().map(|view| view.is_raw).collect(),
        };
        let group = GroupSpec {
            signature,
            views: specs,
            include_design: flag("include_design"),
            local_seq: flag("local_seq") && !home.is_app,
            partitioned,
            mapper: Arc::new(mapper),
        };
        Ok(Self { group: Arc::new(group), names: layout.names })
    }

    /// The view of this name.
    ///
    /// # Errors
    /// 404 `missing_named_view`.
    pub fn view(&self, name: &str) -> Result<&ViewPlace, ApiError> {
        self.names.get(name).ok_or_else(|| ApiError::not_found("missing_named_view"))
    }
}

impl ViewPlace {
    /// # Errors
    /// 400 for a reduce function that there isn't.
    pub fn require_reduce(&self) -> Result<(), ApiError> {
        match &self.unknown_reduce {
            None => Ok(()),
            Some(name) => {
                let reason = format!("`{name}` is not a supported reduce function.");
                Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_design_doc", reason))
            }
        }
    }
}

impl From<SpecError> for ApiError {
    fn from(error: SpecError) -> Self {
        match error {
            SpecError::NoViews => Self::not_found("missing_named_view"),
            SpecError::TooMany => Self::new(StatusCode::BAD_REQUEST, "invalid_design_doc", too_many_views()),
            SpecError::Language(language) if language == QUERY => {
                Self::bad_request("This is an index for _find: it is not asked as a view.")
            }
            SpecError::Language(language) => Self::new(
                StatusCode::BAD_REQUEST,
                "unknown_query_language",
                format!("Functions in {} are not run here: only those in javascript.", clip(&language)),
            ),
        }
    }
}

/// The built-in reduce function of this name; `None`: there is none.
pub fn built_in(name: &str) -> Option<Reduce> {
    let known = || BUILT_IN.into_iter().find(|known| name.starts_with(known)).and_then(Reduce::built_in);
    Reduce::built_in(name).or_else(known)
}

/// What is said of more views than [`MAX_VIEWS`].
pub fn too_many_views() -> String {
    format!("A design document has at most {MAX_VIEWS} views.")
}

fn clip(text: &str) -> String {
    /// More of a name that isn't there helps nobody.
    const SHOWN_CHARS: usize = 40;
    text.chars().take(SHOWN_CHARS).collect()
}

/// The views that have a map function, by name.
fn sources(views: &Map<String, Value>) -> Vec<Source<'_>> {
    let mut sources: Vec<Source<'_>> = views
        .iter()
        .filter_map(|(name, view)| {
            let map = view.get("map")?.as_str()?;
            let reduce = view.get("reduce").and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
            let collation = view.get("options").and_then(|options| options.get("collation"));
            let is_raw = collation.is_some_and(|collation| collation == "raw");
            Some(Source { name, map, reduce, is_raw })
        })
        .collect();
    sources.sort_by_key(|source| source.name);
    sources
}

/// How views are laid out in an index.
struct Layout<'a> {
    /// Each map function, with a view that has it.
    maps: Vec<(&'a str, &'a str)>,
    /// Where each of them is.
    map_places: HashMap<&'a str, usize>,
    views: Vec<LaidView<'a>>,
    names: BTreeMap<String, ViewPlace>,
}

struct LaidView<'a> {
    map: usize,
    is_raw: bool,
    reduce: Option<&'a str>,
    /// A view that has this reduce function.
    name: &'a str,
    names: Vec<String>,
}

impl<'a> Layout<'a> {
    fn of(sources: &[Source<'a>]) -> Self {
        let mut layout =
            Self { maps: Vec::new(), map_places: HashMap::new(), views: Vec::new(), names: BTreeMap::new() };
        // Those that reduce come first: one that doesn't shares the rows of one that does.
        let (reducing, plain): (Vec<_>, Vec<_>) = sources.iter().partition(|source| source.reduce.is_some());
        for source in reducing.into_iter().chain(plain) {
            layout.add(source);
        }
        layout
    }

    fn add(&mut self, source: &Source<'a>) {
        let map = *self.map_places.entry(source.map).or_insert_with(|| {
            self.maps.push((source.map, source.name));
            self.maps.len() - 1
        });
        let same = |view: &LaidView<'_>| {
            let rows = view.map == map && view.is_raw == source.is_raw;
            rows && (source.reduce.is_none() || view.reduce == source.reduce)
        };
        let view = match self.views.iter().position(same) {
            Some(view) => view,
            None => {
                self.views.push(LaidView {
                    map,
                    is_raw: source.is_raw,
                    reduce: source.reduce,
                    name: source.name,
                    names: Vec::new(),
                });
                self.views.len() - 1
            }
        };
        self.views[view].names.push(source.name.to_owned());
        let unknown = |name: &&str| name.starts_with('_') && built_in(name).is_none();
        let place = ViewPlace {
            view,
            has_reduce: source.reduce.is_some(),
            is_raw: source.is_raw,
            unknown_reduce: source.reduce.filter(unknown).map(clip),
        };
        self.names.insert(source.name.to_owned(), place);
    }
}

impl LaidView<'_> {
    fn spec(&self, design: &Design, scripts: &Scripts) -> ViewSpec {
        let reduce = match self.reduce {
            None => Reduce::None,
            // An unknown one is refused when it is asked for.
            Some(name) if name.starts_with('_') => built_in(name).unwrap_or(Reduce::None),
            Some(_) => Reduce::Custom(Arc::new(JsReducer {
                scripts: scripts.clone(),
                design: design.clone(),
                view: self.name.to_owned(),
            })),
        };
        ViewSpec { names: self.names.clone(), reduce }
    }
}

/// 32 hexadecimal digits of all that decides about the rows.
fn signature(sources: &[Source<'_>], options: &Value, lib: Option<&Value>, partitioned: bool) -> String {
    let views: Vec<Value> =
        sources.iter().map(|source| json!([source.name, source.map, source.reduce, source.is_raw])).collect();
    let mut text = String::new();
    push_canonical(&mut text, &json!({"lib": lib, "options": options, "views": views}));
    // Whatever the options say, in a database without partitions it is not.
    if partitioned {
        text.push_str("partitioned");
    }
    hex::encode(Md5::digest(text.as_bytes()))
}

/// The same text for the same value, whatever the order of its members.
fn push_canonical(out: &mut String, value: &Value) {
    match value {
        Value::Object(members) => {
            let sorted: BTreeMap<&String, &Value> = members.iter().collect();
            out.push('{');
            for (name, value) in sorted {
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                push_canonical(out, value);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                push_canonical(out, item);
                out.push(',');
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// Map functions of a design document.
struct JsMapper {
    scripts: Scripts,
    design: Design,
    /// For each map function the name of a view that has it.
    maps: Vec<String>,
    /// For each view of the index its map function.
    map_of_view: Vec<usize>,
    /// For each view of the index whether its rows are in raw collation.
    raw_views: Vec<bool>,
}

impl Mapper for JsMapper {
    fn map(&self, docs: Vec<IndexDoc>) -> Result<Vec<Vec<Emitted>>, MapError> {
        let mut out = Vec::with_capacity(docs.len());
        let mut call: Vec<String> = Vec::new();
        let mut bytes = 0;
        let mut left = docs.len();
        for doc in docs {
            left -= 1;
            bytes += doc.json.len();
            call.push(doc.json);
            if call.len() >= DOCS_A_CALL || bytes >= BYTES_A_CALL || left == 0 {
                if !self.call(std::mem::take(&mut call), &mut out)? {
                    break;
                }
                bytes = 0;
            }
        }
        Ok(out)
    }

    fn sort_key(&self, view: usize, key: &Value) -> Vec<u8> {
        if self.raw_views.get(view) == Some(&true) { collate::raw_sort_key(key) } else { collate::sort_key(key) }
    }
}

impl JsMapper {
    /// Maps documents. `false`: some of them hit limits, and the others were not looked at.
    fn call(&self, mut docs: Vec<String>, out: &mut Vec<Vec<Emitted>>) -> Result<bool, MapError> {
        let mut costly = 0;
        while !docs.is_empty() {
            // A call may end before all are mapped.
            let mapped = self.scripts.map(lane(), &self.design, &self.maps, docs.clone()).map_err(map_error)?;
            if mapped.is_empty() {
                return Err(MapError::Unavailable("the map functions gave no answer".to_owned()));
            }
            docs.drain(..mapped.len().min(docs.len()));
            for doc in mapped {
                if doc.costly {
                    costly += 1;
                    // It has no rows then; whoever asks is to hear of it.
                    note_limit("a map function used too much time or memory with a document");
                }
                out.push(self.laid_out(doc));
            }
            if costly >= MOST_COSTLY && !docs.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The rows of each view of the index, from those of each map function.
    fn laid_out(&self, doc: MappedDoc) -> Vec<Emitted> {
        let costly = doc.costly;
        let maps: Vec<Emitted> = doc
            .views
            .into_iter()
            .map(|rows| match rows {
                Ok(rows) => Ok(rows.into_iter().map(|(key, value)| Emit { key, value }).collect()),
                Err(words) => Err(Unmapped { words, costly }),
            })
            .collect();
        if self.map_of_view.len() == maps.len() {
            return maps;
        }
        let of = |map: &usize| maps.get(*map).cloned().unwrap_or_else(|| Ok(Vec::new()));
        self.map_of_view.iter().map(of).collect()
    }
}

fn map_error(error: ScriptError) -> MapError {
    let words = error.to_string();
    match error {
        ScriptError::Compile { .. } | ScriptError::Missing { .. } | ScriptError::BadInput(_) => {
            MapError::Function(words)
        }
        ScriptError::Resting { .. } | ScriptError::Busy | ScriptError::Closed => MapError::Unavailable(words),
        // What one document does is told with it: these are the function's own.
        ScriptError::TooMuchMemory { .. } | ScriptError::TooDeep { .. } => MapError::Function(words),
        ScriptError::TooLong { .. } => MapError::Resting(words),
        _ => MapError::Documents(words),
    }
}

/// A reduce function of a design document.
struct JsReducer {
    scripts: Scripts,
    design: Design,
    view: String,
}

impl Reducer for JsReducer {
    fn reduce(&self, keys: Option<&str>, values: &str) -> Result<String, ReduceError> {
        self.scripts.reduce(lane(), &self.design, &self.view, keys, values).map_err(reduce_error)
    }
}

fn reduce_error(error: ScriptError) -> ReduceError {
    let reason = error.to_string();
    let failed = |name: &str, reason: String| ReduceError::Failed { error: name.to_owned(), reason };
    match error {
        // It is made an error of the query on purpose: `null` would hide that the function doesn't reduce.
        ScriptError::Threw { error, message, .. } if error == "reduce_overflow_error" => failed(&error, message),
        ScriptError::Threw { .. } => ReduceError::Threw(reason),
        ScriptError::Compile { .. } | ScriptError::Missing { .. } | ScriptError::BadInput(_) => {
            failed("compilation_error", reason)
        }
        ScriptError::Resting { .. } | ScriptError::Busy | ScriptError::Closed => ReduceError::Unavailable(reason),
        ScriptError::TooLong { .. } => failed("timeout", reason),
        _ => failed("reduce_error", reason),
    }
}

#[cfg(test)]
mod tests {
    use super::{DesignViews, Home, MAX_VIEWS, SpecError, built_in};
    use rean_index::Reduce;
    use rean_script::{Design, ScriptLimits, Scripts};
    use serde_json::{Value, json};

    fn views(doc: &Value) -> Result<DesignViews, SpecError> {
        let design = Design::new(&doc.to_string()).expect("a design document");
        DesignViews::of(doc, &design, &Scripts::new(ScriptLimits::default()), Home::default())
    }

    fn signature(doc: &Value) -> String {
        views(doc).map_err(|error| format!("{error:?}")).expect("views").group.signature.clone()
    }

    #[test]
    fn equal_functions_are_shared() {
        let doc = json!({"views": {
            "a": {"map": "M"},
            "b": {"map": "M", "reduce": "_sum"},
            "c": {"map": "M", "reduce": " _sum "},
            "d": {"map": "M", "reduce": "_count"},
            "e": {"map": "N", "reduce": ""},
            "f": {"map": "N", "reduce": "_zork"},
            "lib": {"x": "exports.y = 1"},
            "g": "zork",
            "h": {"reduce": "_sum"},
        }});
        let views = views(&doc).map_err(|error| format!("{error:?}")).expect("views");
        let place = |name: &str| views.view(name).expect("a view").clone();
        assert_eq!(place("a").view, place("b").view);
        assert_eq!(place("b").view, place("c").view);
        assert!(!place("a").has_reduce && place("b").has_reduce && !place("e").has_reduce);
        assert_ne!(place("b").view, place("d").view);
        assert!(place("b").require_reduce().is_ok());
        assert!(place("f").require_reduce().is_err());
        assert!(["g", "h", "lib", "none"].iter().all(|name| views.view(name).is_err()));
        assert_eq!(views.group.views.len(), 3);
        assert!(matches!(views.group.views[place("d").view].reduce, Reduce::Count));
        for (name, known) in
            [("_sum\n", true), ("_statsorama", true), ("_top_3", true), ("_zork", false), ("sum", false)]
        {
            assert_eq!(built_in(name).is_some(), known, "{name}");
        }
        assert_eq!(views.group.signature.len(), 32);
    }

    #[test]
    fn the_signature_tells_what_decides_about_rows() {
        let base = json!({"_rev": "1-a", "views": {"a": {"map": "M"}}});
        let same =
            json!({"_rev": "2-b", "filters": {"f": "x"}, "language": "javascript", "views": {"a": {"map": "M"}}});
        assert_eq!(signature(&base), signature(&same));
        for other in [
            json!({"views": {"a": {"map": "N"}}}),
            json!({"views": {"b": {"map": "M"}}}),
            json!({"views": {"a": {"map": "M", "reduce": "_sum"}}}),
            json!({"views": {"a": {"map": "M"}, "lib": {"x": ""}}}),
            json!({"views": {"a": {"map": "M"}}, "options": {"include_design": true}}),
            json!({"views": {"a": {"map": "M", "options": {"collation": "raw"}}}}),
        ] {
            assert_ne!(signature(&base), signature(&other), "{other}");
        }
        let one = json!({"options": {"a": 1, "b": 2}, "views": {"a": {"map": "M"}}});
        let two = json!({"options": {"b": 2, "a": 1}, "views": {"a": {"map": "M"}}});
        assert_eq!(signature(&one), signature(&two));
    }

    #[test]
    fn views_of_a_partitioned_database_are_partitioned_unless_they_say_otherwise() {
        let spec = |options: Value, is_partitioned: bool| {
            let doc = json!({"options": options, "views": {"a": {"map": "M"}}});
            let design = Design::new(&doc.to_string()).expect("a design document");
            let home = Home { is_app: false, is_partitioned };
            let views = DesignViews::of(&doc, &design, &Scripts::new(ScriptLimits::default()), home);
            let group = views.map_err(|error| format!("{error:?}")).expect("views").group;
            (group.partitioned, group.signature.clone())
        };
        for (options, expected) in [
            (json!(null), true),
            (json!({}), true),
            (json!({"partitioned": true}), true),
            (json!({"partitioned": false}), false),
        ] {
            assert_eq!(spec(options.clone(), true).0, expected, "{options}");
            assert!(!spec(options.clone(), false).0);
            assert_eq!(spec(options.clone(), true).1 == spec(options, false).1, !expected);
        }
    }

    #[test]
    fn the_number_of_views_is_bounded() {
        let with = |count: usize| {
            let all: serde_json::Map<_, _> =
                (0..count).map(|n| (format!("v{n}"), json!({"map": n.to_string()}))).collect();
            views(&json!({"views": all}))
        };
        assert!(with(MAX_VIEWS).is_ok_and(|views| views.group.views.len() == MAX_VIEWS));
        assert_eq!(with(MAX_VIEWS + 1).err(), Some(SpecError::TooMany));
    }

    #[test]
    fn other_languages_and_no_views_are_told_apart() {
        let language = |name: &str| views(&json!({"language": name, "views": {"a": {"map": "M"}}})).err();
        assert_eq!(language("erlang"), Some(SpecError::Language("erlang".to_owned())));
        assert_eq!(language("query"), Some(SpecError::Language("query".to_owned())));
        for none in [json!({}), json!({"views": "zork"}), json!({"views": {"lib": {"a": "b"}}})] {
            assert_eq!(views(&none).err(), Some(SpecError::NoViews), "{none}");
        }
        let options = json!({"options": {"local_seq": true}, "views": {"a": {"map": "M"}}});
        let made = views(&options).map_err(|error| format!("{error:?}")).expect("views");
        assert!(made.group.local_seq && !made.group.include_design);
        let design = Design::new(&options.to_string()).expect("a design document");
        let scripts = Scripts::new(ScriptLimits::default());
        let for_app = DesignViews::of(&options, &design, &scripts, Home { is_app: true, ..Home::default() });
        assert!(for_app.is_ok_and(|views| !views.group.local_seq));
    }
}
