//! Visitors of apps' pages who have no name: which of them gets which version of an app.
//!
//! rean chooses the version, by the user's name or, where there is none, by a number that a cookie keeps. The number is
//! drawn here and tells nothing of anybody: a thousand of them have to do for all visitors of the world. A cookie is given
//! only where there is more than one version, and only for the paths below that app.

use adea_ring::hosting::{BUCKET_HEADER, BUCKETS, SPLIT_HEADER};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::rules::segments;

/// The cookie's name. Each app has its own by the path.
const NAME: &str = "adea_app";
/// What is below a database and holds its app's files.
const FOLDER: &str = "_app";
/// How long a visitor keeps a version, in seconds: a year, as long as browsers remember at all.
const LIFETIME_S: u64 = 365 * 24 * 3_600;
const BUCKET: HeaderName = HeaderName::from_static(BUCKET_HEADER);
const SPLIT: HeaderName = HeaderName::from_static(SPLIT_HEADER);

/// A visitor of an app without a name.
#[derive(Debug)]
pub struct Visitor {
    bucket: u16,
    /// `Set-Cookie` for one that had none.
    cookie: Option<HeaderValue>,
}

/// The database whose app's files a path is about.
pub fn app_of(path: &str) -> Option<String> {
    if !path.contains(FOLDER) && !path.contains('%') {
        return None;
    }
    let mut segments = segments(path);
    let database = segments.next()?;
    segments.next().filter(|second| second == FOLDER).map(|_| database.into_owned())
}

impl Visitor {
    /// Who asks for this path, by the cookie; one who has none gets a number.
    pub fn of(path: &str, headers: &HeaderMap) -> Self {
        if let Some(bucket) = read(headers) {
            return Self { bucket, cookie: None };
        }
        let bucket = rand::random_range(0..BUCKETS);
        let is_secure = headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https");
        let cookie = below(path).map(|path| {
            let secure = if is_secure { "; Secure" } else { "" };
            format!("{NAME}={bucket}; Path={path}; Max-Age={LIFETIME_S}; HttpOnly; SameSite=Lax{secure}")
        });
        Self { bucket, cookie: cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) }
    }

    /// Tells rean.
    pub fn tell(&self, headers: &mut HeaderMap) {
        headers.insert(BUCKET, HeaderValue::from(self.bucket));
    }

    /// Gives a new visitor the cookie, if the number counted.
    pub fn keep(self, headers: &mut HeaderMap) {
        if let Some(cookie) = self.cookie.filter(|_| headers.contains_key(SPLIT)) {
            headers.append(header::SET_COOKIE, cookie);
        }
    }
}

/// Takes out what only the proxy is to know.
pub fn strip(headers: &mut HeaderMap) {
    headers.remove(SPLIT);
}

fn read(headers: &HeaderMap) -> Option<u16> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find_map(|(name, value)| (name == NAME).then(|| value.parse().ok())?).filter(|bucket| *bucket < BUCKETS)
}

/// The path of all files of the app, spelled as in this request: cookies are compared by the letter. `None` where the
/// spelling could be read as more than a path.
fn below(path: &str) -> Option<&str> {
    let mut from = 0;
    for _ in 0..2 {
        from += path[from..].find(|c| c != '/')?;
        from += path[from..].find('/').unwrap_or(path.len() - from);
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"/%_$()+-".contains(&byte);
    Some(&path[..from]).filter(|path| path.bytes().all(fits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_is_for_the_app_alone_and_stays() {
        assert_eq!(app_of("/a%2Fb/%5Fapp/x.js").as_deref(), Some("a/b"));
        assert_eq!(app_of("/notes/_app").as_deref(), Some("notes"));
        for path in ["/notes/_apps", "/_app/x", "/notes", "/notes/x/_app"] {
            assert_eq!(app_of(path), None, "{path}");
        }
        let mut asked = HeaderMap::new();
        asked.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        let visitor = Visitor::of("/a%2Fb/_app/x/y.js", &asked);
        let bucket = visitor.bucket;
        let mut told = HeaderMap::new();
        visitor.tell(&mut told);
        assert_eq!(told[BUCKET_HEADER], bucket.to_string());
        let mut answer = HeaderMap::from_iter([(SPLIT, HeaderValue::from_static("1"))]);
        visitor.keep(&mut answer);
        strip(&mut answer);
        let cookie = answer[header::SET_COOKIE].to_str().expect("text").to_owned();
        assert!(cookie.contains("; Path=/a%2Fb/_app;") && cookie.ends_with("; Secure"), "{cookie}");
        assert!(!answer.contains_key(SPLIT));
        let pair = format!("other=1; {}", cookie.split(';').next().expect("a pair"));
        asked.insert(header::COOKIE, HeaderValue::try_from(pair).expect("a value"));
        let again = Visitor::of("/a%2Fb/_app/", &asked);
        assert_eq!(again.bucket, bucket);
        assert!(again.cookie.is_none());
    }

    #[test]
    fn no_cookie_without_a_choice_and_none_by_a_hostile_path() {
        let mut answer = HeaderMap::new();
        Visitor::of("/notes/_app/", &HeaderMap::new()).keep(&mut answer);
        assert!(answer.is_empty());
        assert!(Visitor::of("/no;Domain=x/_app/", &HeaderMap::new()).cookie.is_none());
        let odd = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_static("adea_app=60000"))]);
        assert!(Visitor::of("/notes/_app", &odd).bucket < BUCKETS);
    }
}
