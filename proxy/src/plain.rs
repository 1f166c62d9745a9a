//! Plain HTTP beside TLS: it sends people on to https, on a port of its own and where somebody speaks plain HTTP to the TLS
//! port. There it also tells whether the pod is up, for the pod's agent and other watchers, who know no certificates. It
//! hears and tells nothing else.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::body::Body;
use crate::connection::Phase;
use crate::error::json as json_response;
use crate::stack::Stack;
use crate::tls::Certificates;

/// Connections of one such port at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// One request's header, and one connection in all.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait when the system has no more sockets for us.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// hyper's smallest buffer: nobody has more to say here.
const MAX_HEADER_BYTES: usize = 8192;
/// The port that https has when an address names none.
const HTTPS_PORT: u16 = 443;

/// Sends people on to https.
pub struct Redirect {
    /// The certificate tells which hosts are ours.
    pub certificates: Arc<Certificates>,
    /// The port of the TLS listener as clients see it.
    pub port: u16,
}

impl Redirect {
    /// Serves a port until the server stops.
    pub async fn listen(self: Arc<Self>, listener: TcpListener, mut phase: watch::Receiver<Phase>) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let accept = async {
            loop {
                let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        let redirect = Arc::clone(&self);
                        tokio::spawn(async move {
                            redirect.serve(stream, peer.ip().to_canonical(), None).await;
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection can't be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = accept => {}
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => {}
        }
    }

    /// Answers what comes on one connection, which is one request; with a stack, also whether the pod is up.
    pub async fn serve(self: Arc<Self>, stream: TcpStream, peer: IpAddr, up: Option<Arc<Stack>>) {
        let service = service_fn(move |request: Request<Incoming>| {
            let (redirect, up) = (Arc::clone(&self), up.clone());
            async move {
                let asks = request.uri().path() == "/_up" && matches!(*request.method(), Method::GET | Method::HEAD);
                Ok::<_, Infallible>(match up.filter(|_| asks) {
                    Some(stack) => stack.handle(peer, request).await,
                    None => redirect.answer(&request),
                })
            }
        });
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEADER_BYTES);
        let connection = http1.keep_alive(false).serve_connection(TokioIo::new(stream), service);
        let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        if request.headers().contains_key(header::AUTHORIZATION) {
            // A client that is sent on would show it to everybody again and again, and nobody would notice.
            let reason = "Passwords go over https only, and this one came without: change the address to https, and the \
                          password if others can listen.";
            return json_response(StatusCode::FORBIDDEN, &json!({"error": "forbidden", "reason": reason}));
        }
        let of_uri = request.uri().host();
        let host = of_uri.or_else(|| request.headers().get(header::HOST)?.to_str().ok());
        let Some(location) = host.and_then(|host| self.location(host, request)) else {
            let reason = "This host is not one of this pod's.";
            let body = json!({"error": "misdirected_request", "reason": reason});
            return json_response(StatusCode::MISDIRECTED_REQUEST, &body);
        };
        let mut response = empty(StatusCode::PERMANENT_REDIRECT);
        response.headers_mut().insert(header::LOCATION, location);
        response
    }

    /// The same address with https; `None` for a host that is not ours.
    fn location<B>(&self, host: &str, request: &Request<B>) -> Option<HeaderValue> {
        let authority: Authority = host.parse().ok()?;
        let name = authority.host().trim_matches(['[', ']']);
        if host.contains('@') || !self.certificates.is_for(name) {
            return None;
        }
        let host = if name.parse::<Ipv6Addr>().is_ok() { format!("[{name}]") } else { name.to_owned() };
        let port = if self.port == HTTPS_PORT { String::new() } else { format!(":{}", self.port) };
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        HeaderValue::try_from(format!("https://{host}{port}{path}")).ok()
    }
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::full(Vec::new().into()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::tls::Certificates;

    fn ask(port: u16, uri: &str, headers: &[(&str, &str)]) -> (StatusCode, Option<String>) {
        let certificates = Arc::new(Certificates::new(Arc::new(Metrics::default())));
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = Redirect { certificates, port }.answer(&request.body(()).expect("a request"));
        let location = response.headers().get(header::LOCATION);
        (response.status(), location.map(|value| value.to_str().expect("ASCII").to_owned()))
    }

    #[test]
    fn the_same_address_with_https() {
        for (port, host, uri, location) in [
            (443, "pod.example", "/", "https://pod.example/"),
            (443, "pod.example:80", "/a%2Fb?x=%22&y", "https://pod.example/a%2Fb?x=%22&y"),
            (5984, "pod.example:80", "/a", "https://pod.example:5984/a"),
            (443, "[::1]:80", "/a", "https://[::1]/a"),
            (443, "ignored", "http://pod.example/a", "https://pod.example/a"),
        ] {
            let told = ask(port, uri, &[("host", host)]);
            assert_eq!(told, (StatusCode::PERMANENT_REDIRECT, Some(location.to_owned())), "{host} {uri}");
        }
        assert_eq!(ask(443, "/", &[]).0, StatusCode::MISDIRECTED_REQUEST);
        for bad in ["", "a b", "a@b", "a/b"] {
            assert_eq!(ask(443, "/", &[("host", bad)]), (StatusCode::MISDIRECTED_REQUEST, None), "{bad}");
        }
    }

    #[test]
    fn a_password_is_not_sent_on() {
        let told = ask(443, "/", &[("host", "pod.example"), ("authorization", "Basic x")]);
        assert_eq!(told, (StatusCode::FORBIDDEN, None));
    }
}
