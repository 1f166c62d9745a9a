//! `/_feeds`: a WebSocket of many feeds, carried between a client and rean. (The same as an event stream is an answer as
//! that of any feed is; here is only how one is told from other requests.)
//!
//! rean speaks the protocol; here it is bytes, with three exceptions. Who asks is found out before, also where a browser
//! can't say it in a header. A page of a foreign origin is refused. And the connection is closed from here when the right
//! to it ends or the server does: between two messages of rean's, which is why the frames are followed ([`Frames`]), and
//! with a code that tells the client what to do next.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Uri, Version, header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::auth::SESSION_PREFIX;
use crate::body::Body;
use crate::connection::Phase;
use crate::error::Refusal;
use crate::feeds::{Close, FeedTicket};
use crate::metrics::Metrics;
use crate::rules::{is_plain, segments};

/// Where it is.
pub const PATH: &str = "/_feeds";
/// A protocol of this name carries a session: what follows is `NAME:SECRET` in Base64 of the URL-safe kind, without padding.
const SESSION_PROTOCOL: &str = "adea.session.";
/// Tells rean which databases the maintenance rules close to readers.
pub const CLOSED_HEADER: HeaderName = HeaderName::from_static("x-adea-closed");
/// What is read from a client at once, in bytes: its messages are short.
const UP_BYTES: usize = 2 * 1024;
/// What is read from rean at once, in bytes.
const DOWN_BYTES: usize = 16 * 1024;
/// How long a message that has begun may take to end when the connection is to be closed.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the client may take to say good-bye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// The way to rean for one connection, after its `101`.
#[derive(Debug)]
pub struct Tunnel {
    /// rean's side.
    pub rean: TcpStream,
    /// What rean has said already.
    pub first: Bytes,
    /// Ends the connection.
    pub ticket: FeedTicket,
    open: Open,
}

/// Counts itself among the open feeds.
#[derive(Debug)]
struct Open(Arc<Metrics>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.feeds.fetch_sub(1, Relaxed);
    }
}

impl Tunnel {
    /// A tunnel over a connection that rean has taken.
    pub fn new(rean: TcpStream, first: Bytes, ticket: FeedTicket, metrics: Arc<Metrics>) -> Self {
        metrics.feeds.fetch_add(1, Relaxed);
        Self { rean, first, ticket, open: Open(metrics) }
    }
}

/// Whether a request asks for a tunnel. What doesn't goes to rean like any other, which says what is wrong.
pub fn is_asked_for(parts: &Parts) -> bool {
    parts.method == Method::GET
        && parts.version == Version::HTTP_11
        && parts.uri.path() == PATH
        && parts.headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Whether a request asks for the same as an event stream. The path is read as rean reads it.
pub fn is_stream_asked_for(parts: &Parts) -> bool {
    let kinds = || parts.headers.get_all(header::ACCEPT).iter().filter_map(|kinds| kinds.to_str().ok());
    let mut segments = segments(parts.uri.path());
    parts.method == Method::GET
        && !is_plain(parts.uri.path())
        && kinds().any(|kinds| kinds.to_ascii_lowercase().contains("text/event-stream"))
        && segments.next().is_some_and(|first| first == PATH[1..])
        && segments.next().is_none()
}

/// Tells rean that this request is followed as a feed is, and which databases are closed: names, parted by commas. Without
/// it rean gives no event stream, so none goes on that nobody ends with its log-in.
pub fn mark_stream(headers: &mut HeaderMap, closed: &str) {
    // `Rules::unreadable` leaves out what no header can carry.
    let closed = HeaderValue::from_str(closed).unwrap_or(HeaderValue::from_static(""));
    headers.insert(CLOSED_HEADER, closed);
}

/// Refuses a page of a foreign origin, and takes the credentials that a browser adds by itself from one that is only let in
/// because everybody is (RFC 6455, 10.2). `any` and `listed`: what the CORS rules say of the origin.
///
/// # Errors
/// `Origin`.
pub fn check_origin(headers: &mut HeaderMap, any: bool, listed: bool) -> Result<(), Refusal> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let own = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    let own = own.as_ref().and_then(Uri::authority).map(|authority| authority.as_str().to_owned());
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let same = own.is_some_and(|own| host.is_some_and(|host| host.eq_ignore_ascii_case(&own)));
    if same || listed {
        return Ok(());
    }
    if !any {
        return Err(Refusal::Origin);
    }
    headers.remove(header::COOKIE);
    Ok(())
}

/// Takes a session out of the list of protocols, where a browser puts it, and makes it the request's credentials. It never
/// goes on to rean, and never was in the URL.
///
/// # Errors
/// `BadCredentials` for what is no session, `BadRequest` when there are other credentials as well.
pub fn take_session(headers: &mut HeaderMap) -> Result<(), Refusal> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let protocols: Vec<String> = values.flat_map(|value| value.split(',')).map(|one| one.trim().to_owned()).collect();
    let mut sessions = protocols.iter().filter_map(|one| one.strip_prefix(SESSION_PROTOCOL));
    let Some(session) = sessions.next() else { return Ok(()) };
    if sessions.next().is_some() || headers.contains_key(header::AUTHORIZATION) {
        return Err(Refusal::BadRequest("There must be one set of credentials"));
    }
    let text = URL_SAFE_NO_PAD.decode(session).map_err(|_| Refusal::BadCredentials)?;
    // A password is not to be written where logs may keep it: a session ends.
    if !text.starts_with(SESSION_PREFIX.as_bytes()) {
        return Err(Refusal::BadCredentials);
    }
    let value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(text)));
    headers.insert(header::AUTHORIZATION, value.map_err(|_| Refusal::BadCredentials)?);
    let left: Vec<&str> =
        protocols.iter().map(String::as_str).filter(|one| !one.starts_with(SESSION_PROTOCOL)).collect();
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    if let Ok(left) = HeaderValue::try_from(left.join(", ")) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, left);
    }
    Ok(())
}

/// Adds to a request for rean what makes it one for a tunnel. `closed`: names of databases, parted by commas.
pub fn ask(headers: &mut HeaderMap, closed: &str) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    // What is compressed could not be shared by listeners, and rean has no use for other extensions.
    headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
    headers.remove(CLOSED_HEADER);
    if let Ok(closed) = HeaderValue::from_str(closed)
        && !closed.is_empty()
    {
        headers.insert(CLOSED_HEADER, closed);
    }
}

/// The frame that says why a connection is closed from here.
fn close_frame(close: Close) -> Vec<u8> {
    let reason = close.reason().as_bytes();
    // Both are far below the 125 bytes of a short frame.
    let mut frame = vec![0x88, u8::try_from(2 + reason.len()).unwrap_or(2)];
    frame.extend_from_slice(&close.code().to_be_bytes());
    frame.extend_from_slice(reason);
    frame
}

/// Follows the frames that rean sends, which have no mask (RFC 6455, 5.2).
#[derive(Debug, Default)]
struct Frames {
    head: [u8; 10],
    /// How much of the head of the present frame has come.
    have: usize,
    /// Payload of the present frame that is still to come.
    left: u64,
    /// Whether the present message goes on with a further frame.
    open: bool,
    /// Whether rean has said good-bye.
    closed: bool,
}

impl Frames {
    /// Whether the next byte begins a message.
    fn at_boundary(&self) -> bool {
        self.have == 0 && self.left == 0 && !self.open
    }

    /// Follows some bytes, only up to the end of a message if `stop`. Gives how many.
    fn pass(&mut self, bytes: &[u8], stop: bool) -> usize {
        let mut at = 0;
        while at < bytes.len() && !(stop && self.at_boundary()) {
            if self.left > 0 {
                let step = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.left -= step as u64;
                at += step;
                continue;
            }
            self.head[self.have] = bytes[at];
            self.have += 1;
            at += 1;
            self.head_grown();
        }
        at
    }

    fn head_grown(&mut self) {
        let size = match self.head[1] & 0x7f {
            _ if self.have < 2 => return,
            126 => 4,
            127 => 10,
            _ => 2,
        };
        if self.have < size {
            return;
        }
        self.left = match size {
            2 => u64::from(self.head[1] & 0x7f),
            4 => u64::from(u16::from_be_bytes([self.head[2], self.head[3]])),
            _ => self.head[2..].iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)),
        };
        self.have = 0;
        // Control frames may come between the frames of a message, and end none.
        match self.head[0] & 0x0f {
            8 => self.closed = true,
            0..8 => self.open = self.head[0] & 0x80 == 0,
            _ => {}
        }
    }
}

/// Carries a connection to its end.
pub async fn carry<S>(socket: S, response: Response<Body>, tunnel: Tunnel, mut phase: watch::Receiver<Phase>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Tunnel { rean, first, ticket, open } = tunnel;
    let (mut from_client, mut to_client) = tokio::io::split(socket);
    let (mut from_rean, mut to_rean) = rean.into_split();
    let (head, mut body) = head(response);
    let (ends, end) = watch::channel(None);
    let down = async {
        to_client.write_all(&head).await?;
        to_client.flush().await?;
        drop(head);
        down(&mut from_rean, &mut to_client, first, end, &mut body).await
    };
    let up = async {
        let sent = up(&mut from_client, &mut to_rean, &open.0).await;
        // The client has hung up, or rean has.
        let _ = to_rean.shutdown().await;
        sent
    };
    let ended = async {
        let ended = std::future::poll_fn(|context| match ticket.poll_ended(context.waker()) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        });
        let by_log_in = tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => false,
            () = ended => true,
        };
        // A server that stops ends the log-ins of its feeds as well.
        let close = if by_log_in && *phase.borrow() == Phase::Serving { Close::LogIn } else { Close::Restart };
        ends.send_replace(Some(close));
        tokio::time::sleep(END_TIMEOUT).await;
    };
    let said_goodbye = {
        let (mut down, mut up) = (std::pin::pin!(down), std::pin::pin!(up));
        tokio::select! {
            carried = &mut down => carried.is_ok(),
            // What rean says last, its good-bye, still goes to a client that has said its own.
            _ = &mut up => timeout(GOODBYE_TIMEOUT, down).await.is_ok_and(|carried| carried.is_ok()),
            // In the middle of a message that doesn't end: it is cut off.
            () = ended => false,
        }
    };
    if said_goodbye {
        let goodbye = async {
            to_client.shutdown().await?;
            // Closing with something unread would take back what was sent.
            let mut unread = [0; 256];
            while from_client.read(&mut unread).await? > 0 {}
            io::Result::Ok(())
        };
        if timeout(GOODBYE_TIMEOUT, goodbye).await.is_err() {
            tracing::debug!("a client did not close its connection");
        }
    }
    drop(open);
}

/// From the client to rean, as it comes.
async fn up<R, W>(client: &mut R, rean: &mut W, metrics: &Metrics) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; UP_BYTES];
    loop {
        let count = client.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        metrics.bytes_in.fetch_add(count as u64, Relaxed);
        rean.write_all(&buffer[..count]).await?;
    }
}

/// From rean to the client, until rean has said all or the connection is to be closed.
async fn down<R, W>(
    rean: &mut R,
    client: &mut W,
    first: Bytes,
    mut end: watch::Receiver<Option<Close>>,
    body: &mut Body,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut frames = Frames::default();
    frames.pass(&first, false);
    client.write_all(&first).await?;
    client.flush().await?;
    body.sent(first.len() as u64);
    drop(first);
    let mut buffer = vec![0; DOWN_BYTES];
    loop {
        let ending = *end.borrow_and_update();
        if let Some(close) = ending.filter(|_| frames.at_boundary()) {
            return say_goodbye(client, &frames, close).await;
        }
        let count = tokio::select! {
            biased;
            changed = end.changed(), if ending.is_none() => match changed {
                Ok(()) => continue,
                Err(_) => return Ok(()),
            },
            count = rean.read(&mut buffer) => count.unwrap_or(0),
        };
        if count == 0 {
            // rean is gone. It says why if it can; a client whose message was cut off sees that by itself.
            return if frames.at_boundary() { say_goodbye(client, &frames, Close::Restart).await } else { Ok(()) };
        }
        let passed = frames.pass(&buffer[..count], ending.is_some());
        client.write_all(&buffer[..passed]).await?;
        client.flush().await?;
        body.sent(passed as u64);
    }
}

async fn say_goodbye<W: AsyncWrite + Unpin>(client: &mut W, frames: &Frames, close: Close) -> io::Result<()> {
    if !frames.closed {
        client.write_all(&close_frame(close)).await?;
    }
    client.flush().await
}

/// Status line and headers of the answer.
fn head(response: Response<Body>) -> (Vec<u8>, Body) {
    let (parts, body) = response.into_parts();
    let mut head = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n".to_vec();
    for (name, value) in &parts.headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    (head, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a value"))).collect()
    }

    #[test]
    fn frames_are_followed_however_they_are_cut() {
        let mut stream = vec![0x81, 2, b'h', b'i'];
        stream.extend_from_slice(&[0x01, 126, 1, 0]);
        stream.extend(std::iter::repeat_n(b'a', 256));
        // A ping within a message of two frames, and its end.
        stream.extend_from_slice(&[0x89, 0, 0x80, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        stream.extend(std::iter::repeat_n(b'b', 65_536));
        let boundaries: Vec<usize> = vec![4, stream.len()];
        for step in [1, 3, 7, 1000, stream.len()] {
            let (mut frames, mut at, mut seen) = (Frames::default(), 0, Vec::new());
            while at < stream.len() {
                let to = (at + step).min(stream.len());
                let mut from = at;
                while from < to {
                    // One byte is passed without stopping, to leave the boundary behind.
                    from += frames.pass(&stream[from..=from], false);
                    if frames.at_boundary() {
                        seen.push(from);
                    }
                    from += frames.pass(&stream[from..to], !frames.at_boundary());
                    if frames.at_boundary() && seen.last() != Some(&from) {
                        seen.push(from);
                    }
                    if frames.at_boundary() {
                        break;
                    }
                }
                at = from;
            }
            seen.dedup();
            seen.retain(|at| boundaries.contains(at));
            assert_eq!(seen.last(), boundaries.last(), "in steps of {step}");
            assert!(frames.at_boundary() && !frames.closed);
            frames.pass(&close_frame(Close::LogIn), false);
            assert!(frames.at_boundary() && frames.closed);
        }
    }

    #[test]
    fn what_stops_stops_at_the_end_of_the_message() {
        let mut frames = Frames::default();
        assert_eq!(frames.pass(&[0x81, 3, b'a'], false), 3);
        assert_eq!(frames.pass(&[b'b', b'c', 0x81, 1, b'x'], true), 2);
        assert!(frames.at_boundary());
        assert_eq!(frames.pass(&[0x81, 1, b'x'], true), 0);
    }

    #[test]
    fn origins_are_checked() {
        let check = |origin: Option<&str>, any: bool, listed: bool| {
            let mut headers = headers(&[("host", "pod.example:5984"), ("cookie", "a=b")]);
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().expect("a value"));
            }
            check_origin(&mut headers, any, listed).map(|()| headers.contains_key(header::COOKIE))
        };
        assert_eq!(check(None, false, false), Ok(true));
        assert_eq!(check(Some("https://pod.example:5984"), false, false), Ok(true));
        assert_eq!(check(Some("https://app.example"), false, true), Ok(true));
        // Whoever may come brings nothing that their browser adds by itself.
        assert_eq!(check(Some("https://evil.example"), true, false), Ok(false));
        for origin in ["https://evil.example", "https://pod.example", "null", "https://pod.example:5984.evil.example"] {
            assert_eq!(check(Some(origin), false, false), Err(Refusal::Origin), "{origin}");
        }
    }

    #[test]
    fn a_session_comes_as_a_protocol_and_nothing_else_does() {
        let session = URL_SAFE_NO_PAD.encode("session-0123:secret");
        let mut found = headers(&[("sec-websocket-protocol", &format!("adea.feeds.v1, adea.session.{session}"))]);
        take_session(&mut found).expect("a session");
        assert_eq!(found["sec-websocket-protocol"], "adea.feeds.v1");
        assert_eq!(found["authorization"], format!("Basic {}", STANDARD.encode("session-0123:secret")).as_str());
        let password = URL_SAFE_NO_PAD.encode("ann:password");
        for bad in [format!("adea.session.{password}"), "adea.session.%".to_owned(), "adea.session.".to_owned()] {
            let mut headers = headers(&[("sec-websocket-protocol", &bad)]);
            assert_eq!(take_session(&mut headers), Err(Refusal::BadCredentials), "{bad}");
        }
        let two = format!("adea.session.{session}");
        let mut both = headers(&[("sec-websocket-protocol", &two), ("authorization", "Basic x")]);
        assert!(matches!(take_session(&mut both), Err(Refusal::BadRequest(_))));
        let mut none = headers(&[("sec-websocket-protocol", "adea.feeds.v1")]);
        assert_eq!(take_session(&mut none), Ok(()));
        assert_eq!(none.len(), 1);
    }

    #[test]
    fn a_stream_is_told_from_other_requests_however_it_is_written() {
        let asked = |method: Method, path: &str, accept: &str| {
            let request = http::Request::builder().method(method).uri(path).header(header::ACCEPT, accept);
            is_stream_asked_for(&request.body(()).expect("a request").into_parts().0)
        };
        for path in ["/_feeds", "/_feeds/", "//_feeds?messages=%5B%5D", "/%5Ffeeds", "/_f%65eds"] {
            assert!(asked(Method::GET, path, "text/event-stream"), "{path}");
        }
        assert!(asked(Method::GET, "/_feeds", "*/*, Text/Event-Stream;q=0.9"));
        for (method, path, accept) in [
            (Method::GET, "/_feeds", "application/json"),
            (Method::POST, "/_feeds", "text/event-stream"),
            (Method::HEAD, "/_feeds", "text/event-stream"),
            (Method::GET, "/_feeds/a", "text/event-stream"),
            (Method::GET, "/a/_feeds", "text/event-stream"),
        ] {
            assert!(!asked(method.clone(), path, accept), "{method} {path} {accept}");
        }
    }

    #[test]
    fn clients_can_not_say_which_databases_are_closed() {
        let mut headers = headers(&[("x-adea-closed", "mine"), ("sec-websocket-extensions", "permessage-deflate")]);
        ask(&mut headers, "");
        assert!(!headers.contains_key(CLOSED_HEADER) && !headers.contains_key("sec-websocket-extensions"));
        ask(&mut headers, "notes,x");
        assert_eq!(headers[CLOSED_HEADER], "notes,x");
    }
}
