//! Apps' pages: `GET /db/_app/...` gives the files of the version of an app that its visitor is to have.
//!
//! Whatever is served runs on the database's own origin, with its visitors' sessions. So files come from design documents
//! only, `_design/app:VERSION`, and only administrators of the server write those ([`rules`]): nothing that a user can
//! write is ever a page. They are there for everyone, also without a log-in, whoever may read the database: the
//! member `app` says so. Apart from those files nothing of the database shows: a database that isn't there, one without
//! an app and a file that isn't there are one answer.
//!
//! Which version a visitor has is a function of the user's name, or of a number that the proxy keeps in a cookie for who
//! has none ([`split`]), so that a page and what it loads are of one version.

mod answer;
mod cache;
mod path;
pub mod rules;
mod split;
mod version;

use std::sync::Arc;

use adea_ring::Identity;
use adea_ring::hosting::BUCKET_HEADER;
use http::Method;
use rean_store::StoreError;

use crate::error::ApiError;
use crate::pod::{Pod, SYSTEM_DATABASES};
use crate::route::{Request, Response};
use crate::target::SEPARATOR;
pub use cache::Hosted;
use path::Wanted;
use split::Bucket;
pub use version::is_name as is_version_name;
use version::{App, Version};

/// The parameter that asks for one version, for a look at it. It sets nothing: what the page loads is of the visitor's
/// own version, but for names with a content hash, which are found in whatever version has them.
const VERSION_PARAMETER: &str = "_app_version";

/// Answers with a file.
///
/// # Errors
/// 404, always the same one, for whatever isn't there; 405 for anything but reading; 416 for a range behind the end.
pub async fn serve(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    if request.method != Method::GET {
        return Err(ApiError::method_not_allowed("GET,HEAD"));
    }
    let name = request.db_name();
    if SYSTEM_DATABASES.contains(&name) || name.contains(SEPARATOR) {
        return Err(nothing());
    }
    let db = pod.store.db(name).ok_or_else(nothing)?;
    let app = match pod.hosted.of(&pod.designs, &db) {
        Ok(Some(app)) => app,
        Ok(None) | Err(StoreError::Gone) => return Err(nothing()),
        Err(error) => return Err(error.into()),
    };
    let wanted = Wanted::parse(request.uri.path()).ok_or_else(nothing)?;
    let asked = request.query.get(VERSION_PARAMETER);
    let version = match asked {
        Some(asked) => app.version(asked),
        None => app.choose(bucket(who, name, &request)),
    };
    let version = version.ok_or_else(nothing)?;
    let Some(found) = find(&app, version, &wanted, &request) else {
        let folder = wanted.as_folder().filter(|folder| version.index_of(folder).is_some());
        return folder.map_or_else(|| Err(nothing()), |folder| answer::elsewhere(name, &folder, request.uri.query()));
    };
    let of_all = asked.is_none() && app.is_split();
    let (headers, head) = (&request.headers, request.head);
    answer::send(pod, &db, &found, of_all, headers, head).await
}

/// What a request gets.
struct Found<'a> {
    version: &'a Version,
    path: String,
    file: &'a rean_store::Attachment,
    /// A page for a path of the app's own making: another request for it may get 404.
    is_fallback: bool,
}

fn find<'a>(app: &'a App, version: &'a Version, wanted: &Wanted, request: &Request) -> Option<Found<'a>> {
    let found = |version: &'a Version, path: String, is_fallback| {
        version.file(&path).map(|file| Found { version, path, file, is_fallback })
    };
    match wanted {
        // Without the slash the page's own links would lead elsewhere.
        Wanted::NoSlash => return None,
        Wanted::Folder(folder) => {
            if let Some(index) = version.index_of(folder) {
                return found(version, index, false);
            }
        }
        Wanted::File(path) => {
            if let Some(found) = found(version, path.clone(), false) {
                return Some(found);
            }
            if version.index_of(path).is_some() {
                return None;
            }
            // A page of another version is still open somewhere.
            let keeps = |other: &&Version| path::may_be_hashed(path) || other.is_immutable(path);
            if let Some(other) = app.versions().find(|other| other.file(path).is_some() && keeps(other)) {
                return found(other, path.clone(), false);
            }
        }
    }
    let is_page = !wanted.has_extension() && answer::accepts_pages(request);
    version.fallback().filter(|_| is_page).and_then(|fallback| found(version, fallback.to_owned(), true))
}

/// Which of the app's visitors this is.
fn bucket(who: &Identity, db_name: &str, request: &Request) -> Bucket {
    match &who.name {
        Some(user) => Bucket::of_user(db_name, user),
        None => Bucket::given(request.headers.get(BUCKET_HEADER)),
    }
}

/// The one answer for whatever isn't there.
fn nothing() -> ApiError {
    ApiError::not_found("There is no such file here.")
}
