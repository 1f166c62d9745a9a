//! What the proxy and rean tell each other about visitors of apps' pages.

/// Which visitor it is that has no name: a number below [`BUCKETS`] out of the visitor's cookie. The proxy says it to rean
/// with each request below `/DB/_app/`.
pub const BUCKET_HEADER: &str = "x-adea-app-bucket";
/// In the answer of rean: the number counted, so the visitor has to keep it. It ends at the proxy.
pub const SPLIT_HEADER: &str = "x-adea-app-split";
/// In the answer of rean, and in that to the client: of which version of the app the file is.
pub const VERSION_HEADER: &str = "x-app-version";
/// How many visitors are told apart: enough for shares of a hundredth, and far too few to know anybody again by it.
pub const BUCKETS: u16 = 1_000;
