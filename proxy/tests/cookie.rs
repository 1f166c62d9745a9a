//! CouchDB's cookie where it is switched on, and what administrators set while the proxy runs.

mod common;

use common::{ADMIN, Answer, Pod, hash, request, soon};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ANN: (&str, &str) = ("ann", "right");

async fn pod() -> Pod {
    let pod = Pod::start_with(|config| config.cookie = true).await;
    pod.rean.put_user("ann", "right", &["staff"]);
    pod
}

fn login_request() -> http::request::Builder {
    request("POST", "/_session", None).header("content-type", "application/json")
}

async fn log_in(pod: &Pod, headers: &[(&str, &str)]) -> Answer {
    let mut request = login_request();
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = pod.ask(request, &json!({"name": ANN.0, "password": ANN.1}).to_string()).await;
    assert_eq!(answer.status, StatusCode::OK);
    answer
}

/// The whole address of a path.
fn at(path: &str) -> String {
    format!("http://pod{path}")
}

/// The pair that a browser sends.
fn pair(answer: &Answer) -> String {
    let set = answer.header("set-cookie").expect("a cookie");
    set.split(';').next().expect("a pair").to_owned()
}

async fn get(pod: &Pod, path: &str, cookie: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = request("GET", path, None).header("cookie", cookie);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    pod.ask(request, "").await
}

fn set(pod: &Pod, sections: Value, admins: Value) {
    pod.rean.put("_ring", "node_config", json!({"sections": sections, "admins": admins}));
}

#[tokio::test]
async fn a_cookie_logs_in_and_a_log_out_ends_it() {
    let pod = pod().await;
    let answer = log_in(&pod, &[]).await;
    assert_eq!(answer.json(), json!({"ok": true, "name": "ann", "roles": ["staff"]}));
    let set = answer.header("set-cookie").expect("a cookie").to_owned();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=600"] {
        assert!(set.contains(part), "{set}");
    }
    let cookie = format!("other=1; {}", pair(&answer));
    let me = get(&pod, "/_session", &cookie, &[]).await.json();
    assert_eq!(me["userCtx"], json!({"name": "ann", "roles": ["staff"]}));
    assert_eq!(
        me["info"],
        json!({"authentication_handlers": ["cookie", "default", "session"], "authenticated": "cookie"})
    );
    let seen = get(&pod, "/x", &cookie, &[]).await.json();
    assert_eq!(seen["name"], "ann");
    assert!(seen["headers"].get("cookie").is_none(), "rean has no use for it");
    let out = pod.ask(request("DELETE", "/_session", None).header("cookie", &cookie), "").await;
    assert_eq!((out.status, out.json()), (StatusCode::OK, json!({"ok": true})));
    assert!(out.header("set-cookie").expect("cleared").starts_with("AuthSession=;"));
    // Over, and no error: a page can show its log-in.
    assert_eq!(get(&pod, "/x", &cookie, &[]).await.json()["name"], Value::Null);
    assert!(pod.rean.ids("_ring").is_empty());
}

#[tokio::test]
async fn a_log_out_ends_a_cookie_that_another_pod_has_just_prolonged() {
    let pod = pod().await;
    let cookie = pair(&log_in(&pod, &[]).await);
    assert_eq!(get(&pod, "/x", &cookie, &[]).await.json()["name"], "ann");
    // This proxy has not heard of it yet.
    let prolong = |(id, (generation, _)): (&String, &mut (u64, Value))| {
        *generation += u64::from(id.starts_with("_ring/session:"));
    };
    pod.rean.docs.lock().expect("lock").iter_mut().for_each(prolong);
    let out = pod.ask(request("DELETE", "/_session", None).header("cookie", &cookie), "").await;
    assert_eq!(out.status, StatusCode::OK);
    assert!(pod.rean.ids("_ring").is_empty(), "who has the cookie must not go on with it");
    assert_eq!(get(&pod, "/x", &cookie, &[]).await.json()["name"], Value::Null);
}

#[tokio::test]
async fn forms_are_sent_on_and_bad_ones_refused() {
    let pod = pod().await;
    let form = |path: &str| {
        request("POST", path, None)
            .header("content-type", "application/x-www-form-urlencoded")
            .header("origin", "http://pod")
    };
    let sent = pod.ask(form("/_session?next=%2Fapp%2Findex.html"), "username=ann&password=right").await;
    assert_eq!((sent.status, sent.header("location")), (StatusCode::FOUND, Some(at("/app/index.html").as_str())));
    let away = pod.ask(form("/_session?next=//evil.example"), "name=ann&password=right").await;
    assert_eq!((away.status, away.header("location")), (StatusCode::OK, None));
    assert_eq!(
        pod.ask(form("/_session"), "name=ann&username=bob&password=right").await.status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(pod.ask(form("/_session"), "name=ann&password=wrong").await.status, StatusCode::UNAUTHORIZED);
    let failed = pod.ask(form("/_session?next=/app&fail=/again"), "name=ann&password=wrong").await;
    assert_eq!((failed.status, failed.header("location")), (StatusCode::FOUND, Some(at("/again").as_str())));
    assert_eq!(failed.header("set-cookie"), None);
    let failed = pod.ask(form("/_session?fail=//evil.example"), "name=ann&password=wrong").await;
    assert_eq!((failed.status, failed.header("location")), (StatusCode::UNAUTHORIZED, None));
    let me = request("GET", "/_session?basic=true", None);
    assert_eq!(pod.ask(me, "").await.status, StatusCode::UNAUTHORIZED);
    let out = request("DELETE", "/_session?next=/bye", None).header("cookie", pair(&sent));
    let out = pod.ask(out, "").await;
    assert_eq!((out.status, out.header("location")), (StatusCode::FOUND, Some(at("/bye").as_str())));
}

#[tokio::test]
async fn foreign_pages_have_no_use_of_it() {
    let pod = pod().await;
    let cookie = pair(&log_in(&pod, &[]).await);
    for headers in
        [&[("origin", "http://evil.example")][..], &[("origin", "null")], &[("sec-fetch-site", "cross-site")]]
    {
        assert_eq!(get(&pod, "/x", &cookie, headers).await.json()["name"], Value::Null, "{headers:?}");
    }
    for headers in [&[("origin", "http://pod")][..], &[("sec-fetch-site", "same-origin")]] {
        assert_eq!(get(&pod, "/x", &cookie, headers).await.json()["name"], "ann", "{headers:?}");
    }
    // Nor is its visitor logged in under another name.
    let answer = log_in(&pod, &[("origin", "http://evil.example")]).await;
    assert_eq!(answer.header("set-cookie"), None);
    assert!(answer.json()["session"]["name"].is_string());
    // An origin that is named is no foreign one.
    set(&pod, json!({"cors": {"origins": "http://friend.example"}}), json!({}));
    let friend = [("origin", "http://friend.example")];
    let named = async { while get(&pod, "/x", &cookie, &friend).await.json()["name"] != json!("ann") {} };
    soon("the origin's naming", named).await;
}

#[tokio::test]
async fn forged_cookies_and_sessions_of_the_other_kind_are_nobodys() {
    let pod = pod().await;
    let good = pair(&log_in(&pod, &[]).await);
    let flipped = if good.ends_with('A') { "B" } else { "A" };
    let forged = format!("{}{flipped}", &good[..good.len() - 1]);
    for cookie in [forged.as_str(), "AuthSession=garbage", "AuthSession=", "AuthSession"] {
        assert_eq!(get(&pod, "/x", cookie, &[]).await.json()["name"], Value::Null, "{cookie}");
    }
    // A temporary name and password, asked for where there are cookies.
    let body = json!({"name": ANN.0, "password": ANN.1, "session": true}).to_string();
    let answer = pod.ask(login_request(), &body).await;
    assert_eq!(answer.header("set-cookie"), None);
    let session = answer.json()["session"].clone();
    let (name, secret) = (session["name"].as_str().expect("a name"), session["password"].as_str().expect("a secret"));
    assert_eq!(pod.get("/x", Some((name, secret))).await.json()["name"], "ann");
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let id = hex::decode(name.strip_prefix("session-").expect("its prefix")).expect("hex");
    let value = URL_SAFE_NO_PAD.encode([id, URL_SAFE_NO_PAD.decode(secret).expect("Base64")].concat());
    assert_eq!(get(&pod, "/x", &format!("AuthSession={value}"), &[]).await.json()["name"], Value::Null);
    // And a cookie's session is no name and password.
    let bytes = URL_SAFE_NO_PAD.decode(good.strip_prefix("AuthSession=").expect("its name")).expect("Base64");
    let (name, secret) = (format!("session-{}", hex::encode(&bytes[..16])), URL_SAFE_NO_PAD.encode(&bytes[16..]));
    assert_eq!(pod.get("/x", Some((&name, &secret))).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_cookie_in_use_lives_on_and_one_that_is_not_ends() {
    let pod = pod().await;
    set(&pod, json!({"chttpd_auth": {"timeout": "4"}}), json!({}));
    let short = async {
        loop {
            let answer = log_in(&pod, &[]).await;
            if answer.header("set-cookie").is_some_and(|set| set.contains("Max-Age=4")) {
                return pair(&answer);
            }
        }
    };
    let cookie = soon("the shorter time", short).await;
    let began = std::time::Instant::now();
    let renewed = async {
        loop {
            let answer = get(&pod, "/x", &cookie, &[]).await;
            assert_eq!(answer.json()["name"], "ann");
            if answer.header("set-cookie").is_some() {
                return pair(&answer);
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    assert_eq!(soon("the prolonging", renewed).await, cookie);
    assert!(began.elapsed().as_secs() >= 1, "not before half of its time");
    let over = async {
        // Asking prolongs it, so the document tells.
        let now = || std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as u64;
        let ends = |pod: &Pod| {
            let docs = pod.rean.docs.lock().expect("lock");
            let sessions = docs.iter().filter(|(id, _)| id.starts_with("_ring/session:"));
            let ends = sessions.filter_map(|(_, (_, doc))| doc["expires_at_ms"].as_u64());
            // Those of before the setting counted last for ten minutes.
            ends.filter(|end| *end < now() + 60_000).max().expect("a session")
        };
        while now() <= ends(&pod) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    soon("its end", over).await;
    assert_eq!(get(&pod, "/x", &cookie, &[]).await.json()["name"], Value::Null);
}

#[tokio::test]
async fn it_is_switched_on_and_off_by_a_setting() {
    let pod = Pod::start().await;
    pod.rean.put_user("ann", "right", &[]);
    assert_eq!(log_in(&pod, &[]).await.header("set-cookie"), None);
    let on = json!({"chttpd": {"authentication_handlers": "{chttpd_auth, cookie_authentication_handler}"}});
    set(&pod, on, json!({}));
    let cookie = async {
        loop {
            let answer = log_in(&pod, &[]).await;
            if answer.header("set-cookie").is_some() {
                return pair(&answer);
            }
        }
    };
    let cookie = soon("the cookie", cookie).await;
    assert_eq!(get(&pod, "/x", &cookie, &[]).await.json()["name"], "ann");
    set(&pod, json!({}), json!({}));
    let off = async { while get(&pod, "/x", &cookie, &[]).await.json()["name"] != Value::Null {} };
    soon("its end", off).await;
}

#[tokio::test]
async fn nobody_in_particular_can_be_shut_out() {
    let pod = Pod::start().await;
    assert_eq!(pod.get("/x", None).await.status, StatusCode::OK);
    set(&pod, json!({"chttpd": {"require_valid_user": "true"}}), json!({}));
    let shut = async { while pod.get("/x", None).await.status != StatusCode::UNAUTHORIZED {} };
    soon("the rule", shut).await;
    assert_eq!(pod.get("/x", None).await.json()["reason"], "Authentication required.");
    assert_eq!(pod.get("/x", Some(ADMIN)).await.status, StatusCode::OK);
    for path in ["/_up", "/_session"] {
        assert_eq!(pod.get(path, None).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn settings_are_in_force_at_the_first_request() {
    let pod = Pod::start().await;
    set(&pod, json!({"chttpd": {"require_valid_user": "true"}}), json!({}));
    // A proxy that starts later, before the same rean.
    let mut config = proxy::Config::new(([127, 0, 0, 1], 0).into(), pod.rean.address, pod.rean.secret.clone());
    config.admin = None;
    let server = proxy::Server::bind(&config).expect("binds");
    let address = server.local_addr();
    let served = tokio::spawn(server.serve(std::future::pending()));
    let mut client = tokio::net::TcpStream::connect(address).await.expect("connects");
    let ask = b"GET /x HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n";
    client.write_all(ask).await.expect("sends");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("answers");
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    served.abort();
}

#[tokio::test]
async fn administrators_of_settings_come_and_go() {
    let pod = Pod::start().await;
    pod.rean.put_user("bo", "as a user", &["staff"]);
    let (boss, user) = (Some(("bo", "as an admin")), Some(("bo", "as a user")));
    assert_eq!(pod.get("/x", boss).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(pod.get("/x", user).await.json()["roles"], json!(["staff"]));
    set(&pod, json!({}), json!({"bo": hash("as an admin"), "admin": hash("usurped")}));
    let made = async { while pod.get("/x", boss).await.status != StatusCode::OK {} };
    soon("the administrator", made).await;
    assert_eq!(pod.get("/x", boss).await.json()["roles"], json!(["_admin"]));
    assert_eq!(pod.get("/x", user).await.status, StatusCode::UNAUTHORIZED);
    // That of the file stays who it is.
    assert_eq!(pod.get("/x", Some(("admin", "usurped"))).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(pod.get("/x", Some(ADMIN)).await.status, StatusCode::OK);
    // A feed of an administrator who is none any more ends.
    let (feed, _task) = pod.open(request("GET", "/a/_changes?feed=continuous", boss), Default::default()).await;
    set(&pod, json!({}), json!({}));
    soon("the feed's end", http_body_util::BodyExt::collect(feed.into_body())).await.expect("a clean end");
    assert_eq!(pod.get("/x", boss).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(pod.get("/x", user).await.json()["roles"], json!(["staff"]));
}

#[tokio::test]
async fn rean_is_told_of_the_file_and_nobody_else_tells_it() {
    let pod = Pod::start().await;
    for path in ["/_node/_local/_config", "/%5Fnode/_local", "//_node"] {
        let request = request("GET", path, Some(ADMIN)).header("x-adea-file-settings", "{\"forged\":{}}");
        let told = pod.ask(request, "").await.json()["headers"]["x-adea-file-settings"].clone();
        let told: Value = serde_json::from_str(told.as_str().expect("a header")).expect("JSON");
        assert_eq!(told["admins"], json!({"admin": ""}), "{path}");
        assert_eq!(told.get("forged"), None);
    }
    let request = request("GET", "/x", Some(ADMIN)).header("x-adea-file-settings", "{}");
    assert_eq!(pod.ask(request, "").await.json()["headers"].get("x-adea-file-settings"), None);
}
