//! CouchDB's cookie, where it is switched on (<https://docs.couchdb.org/en/stable/api/server/authn.html#cookie-authentication>).
//!
//! A cookie is a session like any other: its value is the id and the secret of a session's document, and nothing in it is
//! signed or can be made up. What is different is that a browser adds it by itself, also to requests that a foreign page
//! makes. So it counts only where the page is of this very origin, or of one that the configuration names (`*` names
//! none), and by default it is `SameSite=Strict`. Where it doesn't count, the request is nobody's.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, header};

use crate::clock;

/// The cookie's name.
const NAME: &str = "AuthSession";
/// Bytes of the id at the beginning of a value; the rest is the secret.
const ID_BYTES: usize = 16;
/// Bytes of a value.
const VALUE_BYTES: usize = 48;

/// How cookies are given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieRules {
    /// How long one lasts without a request, in seconds: CouchDB's `chttpd_auth/timeout`.
    pub timeout_s: u64,
    /// Whether it outlives the browser: `allow_persistent_cookies`.
    pub persistent: bool,
    /// From where a browser sends it: `same_site`.
    pub same_site: SameSite,
    /// For which hosts it is: `cookie_domain`.
    pub domain: Option<String>,
}

/// Which pages' requests a browser adds a cookie to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SameSite {
    /// Those of the same site.
    #[default]
    Strict,
    /// Also when a link of another site leads here.
    Lax,
    /// Any. Browsers want TLS for it.
    None,
}

impl Default for CookieRules {
    fn default() -> Self {
        Self { timeout_s: 600, persistent: true, same_site: SameSite::Strict, domain: None }
    }
}

/// The id and the secret in a request's cookie, as a session's log-in has them; `None` if there is no cookie of ours.
pub fn read(headers: &HeaderMap) -> Option<(String, String)> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    // Another program on this host may have one of the same name: cookies know no ports.
    pairs.filter(|(name, _)| *name == NAME).find_map(|(_, value)| parse(value.trim_matches('"')))
}

fn parse(value: &str) -> Option<(String, String)> {
    let bytes = URL_SAFE_NO_PAD.decode(value).ok().filter(|bytes| bytes.len() == VALUE_BYTES)?;
    let (id, secret) = bytes.split_at(ID_BYTES);
    Some((hex::encode(id), URL_SAFE_NO_PAD.encode(secret)))
}

/// The value of a session's cookie.
fn value(id: &str, secret: &str) -> Option<String> {
    let mut bytes = hex::decode(id).ok()?;
    bytes.extend(URL_SAFE_NO_PAD.decode(secret).ok()?);
    (bytes.len() == VALUE_BYTES).then(|| URL_SAFE_NO_PAD.encode(bytes))
}

/// `Set-Cookie` for a session that ends then; `None` if the session is none of ours.
pub fn set(
    rules: &CookieRules,
    id: &str,
    secret: &str,
    expires_at_ms: u64,
    headers: &HeaderMap,
) -> Option<HeaderValue> {
    let mut text = format!("{NAME}={}; Version=1", value(id, secret)?);
    if rules.persistent {
        // Rounded, as the moment was taken a moment ago.
        let left_s = expires_at_ms.saturating_sub(clock::now_ms()).saturating_add(500) / 1000;
        text.push_str(&format!("; Expires={}; Max-Age={left_s}", clock::http_date(expires_at_ms)));
    }
    attributes(&mut text, rules, headers);
    HeaderValue::try_from(text).ok()
}

/// `Set-Cookie` that takes the cookie away.
pub fn clear(rules: &CookieRules, headers: &HeaderMap) -> Option<HeaderValue> {
    let mut text = format!("{NAME}=; Version=1; Expires={}; Max-Age=0", clock::http_date(0));
    attributes(&mut text, rules, headers);
    HeaderValue::try_from(text).ok()
}

fn attributes(text: &mut String, rules: &CookieRules, headers: &HeaderMap) {
    text.push_str("; Path=/; HttpOnly");
    if let Some(domain) = &rules.domain {
        text.push_str(&format!("; Domain={domain}"));
    }
    text.push_str(match rules.same_site {
        SameSite::Strict => "; SameSite=Strict",
        SameSite::Lax => "; SameSite=Lax",
        SameSite::None => "; SameSite=None",
    });
    // Whoever claims it falsely harms only themselves: the browser keeps the cookie from plain HTTP.
    if forwarded_scheme(headers) == Some("https") {
        text.push_str("; Secure");
    }
}

/// How the client has reached whatever stands before this pod, if that says it.
fn forwarded_scheme(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-forwarded-proto")?.to_str().ok()?.split(',').next().map(str::trim)
}

/// Whether a cookie may count: the request is of a page of this very origin or of one of these, or of no page.
pub fn counts(request: &Parts, named: &[String]) -> bool {
    let headers = &request.headers;
    let Some(origin) = headers.get(header::ORIGIN) else {
        // A browser says where a request without an origin comes from; other clients say nothing.
        return headers.get("sec-fetch-site").is_none_or(|site| site != "cross-site");
    };
    let Ok(origin) = origin.to_str() else { return false };
    // Any page can make itself one without an origin, in a frame with `sandbox`: so also where that is named.
    if origin != "null" && named.iter().any(|known| known == origin) {
        return true;
    }
    let host = request.uri.authority().map(|host| host.as_str());
    let host = host.or_else(|| headers.get(header::HOST)?.to_str().ok());
    let Some((scheme, rest)) = origin.split_once("://") else { return false };
    let same_scheme = forwarded_scheme(headers).is_none_or(|forwarded| forwarded == scheme);
    same_scheme && host.is_some_and(|host| host.eq_ignore_ascii_case(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00112233445566778899aabbccddeeff";

    fn request(pairs: &[(&'static str, &'static str)]) -> Parts {
        let mut request = http::Request::builder().uri("/x");
        for (name, value) in pairs {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn what_is_set_is_read_back() {
        let secret = URL_SAFE_NO_PAD.encode([7; 32]);
        let none = HeaderMap::new();
        let set = set(&CookieRules::default(), ID, &secret, clock::now_ms() + 600_000, &none).expect("a cookie");
        let text = set.to_str().expect("ASCII");
        for part in ["Max-Age=600", "Path=/", "HttpOnly", "SameSite=Strict", "Expires="] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("Secure"));
        let mut headers = HeaderMap::new();
        let pair = text.split(';').next().expect("a pair");
        headers.insert(header::COOKIE, format!("a=b; AuthSession=garbage; {pair}").parse().expect("a value"));
        assert_eq!(read(&headers), Some((ID.to_owned(), secret)));
        headers.insert(header::COOKIE, HeaderValue::from_static("AuthSession="));
        assert_eq!(read(&headers), None);
        let clear = clear(&CookieRules::default(), &none).expect("a cookie");
        assert!(clear.to_str().expect("ASCII").starts_with("AuthSession=;"));
    }

    #[test]
    fn rules_become_attributes() {
        let rules = CookieRules {
            timeout_s: 5,
            persistent: false,
            same_site: SameSite::None,
            domain: Some("example.org".to_owned()),
        };
        let secure = request(&[("x-forwarded-proto", "https")]).headers;
        let set = set(&rules, ID, &URL_SAFE_NO_PAD.encode([7; 32]), 5, &secure).expect("a cookie");
        let text = set.to_str().expect("ASCII");
        assert!(!text.contains("Max-Age") && text.contains("; Secure"), "{text}");
        assert!(text.contains("SameSite=None") && text.contains("Domain=example.org"), "{text}");
    }

    #[test]
    fn a_foreign_page_has_no_use_of_it() {
        let named = ["https://app.example".to_owned(), "null".to_owned(), "*".to_owned()];
        for pairs in [
            &[("host", "pod:5984")][..],
            &[("host", "pod:5984"), ("origin", "http://pod:5984")],
            &[("host", "pod:5984"), ("origin", "http://POD:5984")],
            &[("host", "pod:5984"), ("origin", "https://app.example")],
            &[("host", "pod:5984"), ("sec-fetch-site", "same-origin")],
            &[("host", "pod"), ("origin", "https://pod"), ("x-forwarded-proto", "https")],
        ] {
            assert!(counts(&request(pairs), &named), "{pairs:?}");
        }
        for pairs in [
            &[("host", "pod:5984"), ("origin", "http://evil")][..],
            &[("host", "pod:5984"), ("origin", "null")],
            &[("host", "pod:5984"), ("origin", "*")],
            &[("host", "pod:5984"), ("origin", "http://pod:5985")],
            &[("host", "pod:5984"), ("sec-fetch-site", "cross-site")],
            &[("host", "pod"), ("origin", "http://pod"), ("x-forwarded-proto", "https")],
        ] {
            assert!(!counts(&request(pairs), &named[..2]), "{pairs:?}");
        }
    }
}
