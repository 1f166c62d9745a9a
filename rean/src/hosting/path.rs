//! What a path below `/db/_app` asks for, and what its name tells of a file.

use percent_encoding::percent_decode_str;

/// Bytes of a path: attachments' names are no longer.
const MAX_BYTES: usize = 2_048;
/// The shortest content hash that a name may have, in characters: what bundlers use.
const HASH_CHARS: usize = 8;
/// The longest: SHA-256 in hexadecimal digits.
const MAX_HASH_CHARS: usize = 64;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// `/db/_app` itself.
    NoSlash,
    /// What is in a folder; empty or with a slash at its end.
    Folder(String),
    /// A file.
    File(String),
}

impl Wanted {
    /// Reads a path as it came on the wire; `None` for one that no file of an app can have. Other than in paths to
    /// documents a plus sign is one.
    pub fn parse(raw: &str) -> Option<Self> {
        // The database, then `_app`, in whatever spelling led here.
        let (_, below) = after_segment(raw)?;
        let Some((_, rest)) = after_segment(below) else { return Some(Self::NoSlash) };
        let Some(rest) = rest.strip_prefix('/') else { return Some(Self::NoSlash) };
        if rest.is_empty() {
            return Some(Self::Folder(String::new()));
        }
        let (path, is_folder) = rest.strip_suffix('/').map_or((rest, false), |path| (path, true));
        let mut names = Vec::new();
        for segment in path.split('/') {
            let name = percent_decode_str(segment).decode_utf8().ok()?;
            if name.is_empty() || name == "." || name == ".." || name.contains(is_hostile) {
                return None;
            }
            names.push(name.into_owned());
        }
        let mut path = names.join("/");
        if path.len() > MAX_BYTES {
            return None;
        }
        if is_folder {
            path.push('/');
            return Some(Self::Folder(path));
        }
        Some(Self::File(path))
    }

    /// The folder that may be meant by a path without a slash at its end.
    pub fn as_folder(&self) -> Option<String> {
        match self {
            Self::NoSlash => Some(String::new()),
            Self::Folder(_) => None,
            Self::File(path) => Some(format!("{path}/")),
        }
    }

    /// Whether the last name has an extension: then it is a file's, and no path of the app's own making.
    pub fn has_extension(&self) -> bool {
        match self {
            Self::NoSlash | Self::Folder(_) => false,
            Self::File(path) => extension(path).is_some(),
        }
    }
}

/// Parts a segment of a path from what is behind it, slashes before it left out; `None` if there is none.
fn after_segment(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_start_matches('/');
    if path.is_empty() {
        return None;
    }
    Some(path.split_at(path.find('/').unwrap_or(path.len())))
}

/// What would end a name, or begin another one, wherever this is read next.
fn is_hostile(character: char) -> bool {
    matches!(character, '/' | '\\') || character.is_control()
}

/// The last name of a path.
fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// What is behind the last dot of the last name.
pub fn extension(path: &str) -> Option<&str> {
    file_name(path).rsplit_once('.').map(|(_, extension)| extension).filter(|extension| !extension.is_empty())
}

/// Whether a page is meant, which is looked at anew each time.
pub fn is_page(path: &str) -> bool {
    extension(path).is_some_and(|extension| extension.eq_ignore_ascii_case("html") || extension == "htm")
}

/// Whether a name has a content hash for certain, as in `app.3f9a1c2b.js` or `index-Dx7_w3aQ.css`: another content has
/// another name, so it may be kept for good. A version may name more such folders itself.
pub fn is_hashed(path: &str) -> bool {
    hash_of(path).is_some_and(|hash| hash.bytes().any(|byte| byte.is_ascii_digit()))
}

/// Whether a name may have a content hash: `index-DiwrgTda.js` has one, `Font-SemiBold.woff2` has none.
pub fn may_be_hashed(path: &str) -> bool {
    hash_of(path).is_some()
}

/// The part of a name that may be a content hash: hexadecimal digits (webpack), or eight characters of another alphabet
/// (Vite, esbuild), of more than one kind.
fn hash_of(path: &str) -> Option<&str> {
    if is_page(path) {
        return None;
    }
    let (stem, _) = file_name(path).rsplit_once('.')?;
    // `app.3f9a1c2b.js.map` is named by the hash of what it maps.
    let stem = stem.strip_suffix(".js").or_else(|| stem.strip_suffix(".css")).unwrap_or(stem);
    let before = stem.len().checked_sub(HASH_CHARS).filter(|at| stem.is_char_boundary(*at))?;
    let is_parted = |at: usize| at.checked_sub(1).is_some_and(|at| matches!(stem.as_bytes()[at], b'.' | b'-' | b'_'));
    let exact = Some(&stem[before..]).filter(|part| is_parted(before) && is_mixed(part));
    let last = stem.rfind(['.', '-', '_']).map(|at| &stem[at + 1..]);
    exact.or_else(|| last.filter(|part| is_hex(part)))
}

fn is_hex(part: &str) -> bool {
    let digits = part.bytes().filter(u8::is_ascii_digit).count();
    (HASH_CHARS..=MAX_HASH_CHARS).contains(&part.len())
        && part.bytes().all(|byte| byte.is_ascii_hexdigit())
        // A date has digits only, a word none.
        && (1..part.len()).contains(&digits)
}

fn is_mixed(part: &str) -> bool {
    let has = |kind: fn(&u8) -> bool| part.as_bytes().iter().any(kind);
    let kinds = [has(u8::is_ascii_lowercase), has(u8::is_ascii_uppercase), has(u8::is_ascii_digit)];
    part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && kinds.iter().filter(|kind| **kind).count() >= 2
}

/// The type of a file by its extension (<https://www.iana.org/assignments/media-types>); `None` for one that isn't known.
pub fn type_of(path: &str) -> Option<&'static str> {
    Some(match extension(path)?.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "js" | "mjs" | "cjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "wasm" => "application/wasm",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "otf" => "font/otf",
        "mp3" => "audio/mpeg",
        "ogg" => "audio/ogg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "txt" => "text/plain; charset=utf-8",
        "md" => "text/markdown; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "xml" => "text/xml; charset=utf-8",
        "pdf" => "application/pdf",
        "gz" => "application/gzip",
        "zip" => "application/zip",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{Wanted, is_hashed, may_be_hashed, type_of};

    #[test]
    fn paths_are_read_as_they_came() {
        let file = |path: &str| Some(Wanted::File(path.to_owned()));
        assert_eq!(Wanted::parse("/notes/_app"), Some(Wanted::NoSlash));
        assert_eq!(Wanted::parse("/notes/_app/"), Some(Wanted::Folder(String::new())));
        assert_eq!(Wanted::parse("//a%2Fb/%5Fapp/x/"), Some(Wanted::Folder("x/".into())));
        assert_eq!(Wanted::parse("/n/_app/a/%C3%BC+b%20c.js"), file("a/ü+b c.js"));
        assert_eq!(Wanted::parse("/n/_app/..a/b..js"), file("..a/b..js"));
        for bad in ["..", ".", "a/../b", "%2e%2E/x", "a%2fb", "a%5Cb", "a\\b", "a%00", "a%0d%0ab", "a//b", "/", "/a"] {
            assert_eq!(Wanted::parse(&format!("/n/_app/{bad}")), None, "{bad}");
        }
    }

    #[test]
    fn hashes_are_told_from_words_and_dates() {
        for path in ["app.3f9a1c2b.js", "x/index-Dx7_w3aQ.css", "chunk-5NXPZ4QW.js", "a.3f9a1c2b.js.map"] {
            assert!(is_hashed(path) && may_be_hashed(path), "{path}");
        }
        assert!(may_be_hashed("index-DiwrgTda.js") && !is_hashed("Font-SemiBold.woff2"));
        for path in ["app.js", "jquery-3.7.1.min.js", "report-20240115.pdf", "vendor-bootstrap5.js", "a-deadbeef.js"] {
            assert!(!is_hashed(path), "{path}");
        }
        assert!(!may_be_hashed("3f9a1c2b.html") && !is_hashed("page.3f9a1c2b.html") && !is_hashed("3f9a1c2b"));
        assert!(!is_hashed("äääääää.js"));
    }

    #[test]
    fn types_are_known_by_extension() {
        assert_eq!(type_of("a/b.JS"), Some("text/javascript; charset=utf-8"));
        assert_eq!(type_of("a.b/c"), None);
    }
}
