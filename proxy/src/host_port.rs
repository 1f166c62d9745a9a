//! Where a server is reached, as HOST:PORT: a name is looked up at each connection, as what it means may change.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use http::uri::Authority;
use tokio::net::TcpStream;

/// Where a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    authority: Authority,
}

/// A text is not HOST:PORT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be HOST:PORT, such as 127.0.0.1:5986 or rean:5986")]
pub struct HostPortError;

impl HostPort {
    /// The same for a request's URI.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Opens a connection; of several addresses the first that answers is taken.
    ///
    /// # Errors
    /// When the name is unknown, or nobody listens there.
    pub(crate) async fn connect(&self) -> std::io::Result<TcpStream> {
        TcpStream::connect(self.authority.as_str()).await
    }
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let authority: Authority = text.parse().map_err(|_| HostPortError)?;
        let fits = authority.port_u16().is_some() && !authority.host().is_empty() && !text.contains('@');
        if fits { Ok(Self { authority }) } else { Err(HostPortError) }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        // An IPv6 address without its zone, if it has one, and any IPv4 address are valid authorities.
        let authority = match address {
            SocketAddr::V4(address) => address.to_string(),
            SocketAddr::V6(address) => format!("[{}]:{}", address.ip(), address.port()),
        };
        Self { authority: authority.parse().expect("an IP address and a port are an authority") }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.authority.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::HostPort;
    use std::net::SocketAddr;

    #[test]
    fn names_and_addresses() {
        for text in ["127.0.0.1:5986", "rean:5986", "[::1]:1", "a.example.org:65535"] {
            assert_eq!(text.parse::<HostPort>().expect(text).to_string(), text);
        }
        for text in ["", "rean", "rean:", ":5986", "rean:65536", "a@rean:1", "http://rean:1", "rean:1/x", "::1:1x"] {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
        let address: SocketAddr = "[fe80::1%3]:7".parse().expect("an address");
        assert_eq!(HostPort::from(address).to_string(), "[fe80::1]:7");
    }

    #[tokio::test]
    async fn a_name_is_looked_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let at: HostPort = format!("localhost:{port}").parse().expect("valid");
        at.connect().await.expect("a connection");
    }
}
