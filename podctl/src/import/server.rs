//! One end: a server that speaks CouchDB's API, and as whom to talk to it.

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use percent_encoding::percent_decode_str;
use rean::replicate::peer::{Answer, Far, Peer, Sent, escaped, far};
use rean::replicate::spec::Remote;
use serde_json::{Value, json};

use super::patience::patiently;

/// An address as it is given on a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The server, without a log-in and without a slash at the end.
    pub base: String,
    /// The name before the `@`.
    pub user: Option<String>,
}

/// A server, and as whom to talk to it.
pub struct Server {
    base: String,
    login: Option<(String, String)>,
    headers: HeaderMap,
    client: Far,
}

/// What a server says of itself.
#[derive(Debug, Clone, Default)]
pub struct Welcome {
    /// Its name and version, for people.
    pub shown: String,
    /// Who it is: the same for as long as its data is.
    pub uuid: String,
    /// Whether it is a pod.
    pub is_pod: bool,
    /// Whether it can give the changes of design documents alone; what only resembles CouchDB can't.
    pub filters_designs: bool,
}

impl Address {
    /// Reads `http[s]://[NAME@]HOST[:PORT][/PATH]`.
    ///
    /// # Errors
    /// What is wrong; never the address itself, which may hold a password.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let uri: Uri = text.parse().ok().context("that is no address: http://NAME@HOST:PORT")?;
        let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme));
        let scheme = scheme.context("the address must start with http:// or https://")?;
        if uri.query().is_some() {
            bail!("the address must have no parameters: databases are named with --db");
        }
        let authority = uri.authority().context("the address names no host")?.as_str();
        let (login, host) = match authority.rsplit_once('@') {
            Some((login, host)) => (Some(login), host),
            None => (None, authority),
        };
        if login.is_some_and(|login| login.contains(':')) {
            bail!("everybody on this machine can read a password in an address: give NAME@HOST alone");
        }
        let user = login.map(|name| percent_decode_str(name).decode_utf8_lossy().into_owned());
        Ok(Self { base: format!("{scheme}://{host}{}", uri.path().trim_end_matches('/')), user })
    }
}

impl Server {
    /// A server at an address, as somebody or as nobody.
    ///
    /// # Errors
    /// When the log-in can't be sent.
    pub fn new(address: &Address, login: Option<(String, String)>) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        if let Some((name, password)) = &login {
            let value = format!("Basic {}", STANDARD.encode(format!("{name}:{password}")));
            let mut value = HeaderValue::try_from(value).context("the log-in can't be sent")?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(Self { base: address.base.clone(), login, headers, client: far() })
    }

    /// Its address, without a log-in.
    pub fn shown(&self) -> &str {
        &self.base
    }

    /// The server itself.
    pub fn root(&self) -> Peer {
        self.peer(String::new())
    }

    /// One of its databases.
    pub fn database(&self, name: &str) -> Peer {
        self.peer(format!("/{}", escaped(name)))
    }

    fn peer(&self, path: String) -> Peer {
        let user = self.login.as_ref().map(|(name, _)| name.clone());
        let remote = Remote { url: format!("{}{path}", self.base), user, headers: self.headers.clone() };
        Peer::remote(&remote, &self.client)
    }

    /// One of its databases as the end of a replication.
    pub fn end(&self, name: &str) -> Value {
        let mut end = json!({"url": format!("{}/{}", self.base, escaped(name))});
        if let Some((name, password)) = &self.login {
            end["auth"] = json!({"basic": {"username": name, "password": password}});
        }
        end
    }

    /// Asks who it is, and whether it takes the log-in.
    ///
    /// # Errors
    /// When it can't be reached, is no such server, or refuses the log-in.
    pub async fn welcome(&self) -> anyhow::Result<Welcome> {
        let root = self.root();
        let answer =
            root.ask(Method::GET, "/", None).await.context("is the address right, and does that server run?")?;
        if !answer.status.is_success() {
            return Err(root.fault("asking who it is", &answer).into());
        }
        let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let is_pod = told.get("adea").is_some();
        let product = ["couchdb", "express-pouchdb"].into_iter().find(|name| told.get(name).is_some());
        let Some(product) = product else { bail!("{}: that is no CouchDB", self.base) };
        if self.login.is_some() {
            let answer = root.ask(Method::GET, "/_session", None).await?;
            if answer.status == StatusCode::UNAUTHORIZED {
                bail!("{}: name or password is incorrect", self.base);
            }
        }
        let filters_designs = product == "couchdb";
        let product = if is_pod { "Adea" } else { product };
        let shown = format!("{product} {} at {}", text(&told["version"]), self.base);
        Ok(Welcome { shown, uuid: text(&told["uuid"]), is_pod, filters_designs })
    }

    /// The names of all its databases.
    ///
    /// # Errors
    /// When it does not tell them.
    pub async fn databases(&self) -> anyhow::Result<Vec<String>> {
        let answer = self.expect(&self.root(), Method::GET, "/_all_dbs", None).await?;
        serde_json::from_value(answer).with_context(|| format!("{}: its list of databases has another form", self.base))
    }

    /// Asks, and again where that may help; the answer has to be a success and JSON.
    ///
    /// # Errors
    /// Whatever else the answer is.
    pub async fn expect(
        &self,
        peer: &Peer,
        method: Method,
        below: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let answer = ask(peer, &method, below, body).await?;
        if !answer.status.is_success() {
            return Err(peer.fault(&format!("{method} {below}"), &answer).into());
        }
        serde_json::from_slice(&answer.body).with_context(|| format!("{}: {method} {below}: no JSON", peer.shown()))
    }
}

/// Asks, and again where that may help. An answer that tells of an error is an answer.
///
/// # Errors
/// When there is none after all.
pub async fn ask(peer: &Peer, method: &Method, below: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
    let sent = || body.map(|body| Sent::json(body.to_string()));
    let answer = patiently(|| async {
        let answer = peer.ask(method.clone(), below, sent()).await?;
        match answer.status {
            StatusCode::TOO_MANY_REQUESTS => Err(peer.fault(below, &answer)),
            status if status.is_server_error() => Err(peer.fault(below, &answer)),
            _ => Ok(answer),
        }
    })
    .await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn reads_addresses_and_takes_no_password() {
        let read = |text| Address::parse(text).map(|address| (address.base, address.user));
        let some = |base: &str, user: Option<&str>| (base.to_owned(), user.map(str::to_owned));
        assert_eq!(read("http://a%40b@couch:5984/").unwrap(), some("http://couch:5984", Some("a@b")));
        assert_eq!(read("http://[::1]:5984/below/").unwrap(), some("http://[::1]:5984/below", None));
        assert_eq!(read("https://couch/").unwrap(), some("https://couch", None));
        for wrong in ["", "couch", "ftp://x", "http://x/?a=1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let told = read("http://ann:secret@x").unwrap_err().to_string();
        assert!(told.contains("password") && !told.contains("secret"), "{told}");
    }
}
