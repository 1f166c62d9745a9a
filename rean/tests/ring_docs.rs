//! What the pods write down in `_ring` and `_pods`: databases, settings, instructions, status, diverged documents.

mod harness;

use std::time::Duration;

use adea_ring::Identity;
use harness::{DEADLINE, World, admin, user};
use serde_json::{Value, json};

/// The identity of links.
fn system() -> Identity {
    Identity::system()
}

async fn wait_for<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl World {
    /// Writes revisions into `_ring`, as a link does.
    async fn bring(&self, docs: Value) {
        let answer = self.post(&system(), "/_ring/_bulk_docs", json!({"new_edits": false, "docs": docs})).await;
        assert_eq!(answer.expect(201), json!([]));
    }

    async fn ids(&self, path: &str) -> Vec<String> {
        let rows = self.get(&admin(), path).await.expect(200)["rows"].clone();
        let rows = rows.as_array().expect("rows").iter();
        rows.map(|row| row["id"].as_str().expect("an id").to_owned()).collect()
    }

    async fn instructions(&self) -> Vec<Value> {
        let path = "/_ring/_all_docs?startkey=%22instruction:%22&endkey=%22instruction%3B%22&include_docs=true";
        let rows = self.get(&admin(), path).await.expect(200)["rows"].clone();
        rows.as_array().expect("rows").iter().map(|row| row["doc"].clone()).collect()
    }

    async fn has(&self, db: &str) -> bool {
        self.get(&admin(), &format!("/{db}")).await.status == 200
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn making_setting_up_and_deleting_databases_writes_their_documents() {
    let world = World::new().await;
    world.send(&admin(), "PUT", "/plain", None).await.expect(201);
    world.app("notes").await;
    assert_eq!(world.send(&admin(), "PUT", "/notes", None).await.expect(412)["error"], "file_exists");
    let doc = world.get(&admin(), "/_ring/db:notes").await.expect(200);
    assert_eq!((&doc["app"], &doc["gone"], &doc["revs_limit"]), (&json!(true), &json!([]), &json!(1000)));
    assert!(doc.get("security").is_none());
    let first = doc["instance"].as_str().expect("an instance").to_owned();
    assert_eq!(first.len(), 8);

    let text = json!({"members": {"names": ["ann"], "roles": []}, "admins": {"names": [], "roles": []}});
    world.put(&admin(), "/plain/_security", text.clone()).await.expect(200);
    world.put(&admin(), "/plain/_revs_limit", json!(7)).await.expect(200);
    let doc = world.get(&admin(), "/_ring/db:plain").await.expect(200);
    assert_eq!((&doc["app"], &doc["security"], &doc["revs_limit"]), (&json!(false), &text, &json!(7)));
    assert_eq!(world.get(&admin(), "/plain/_security").await.expect(200), text);
    assert_eq!(world.get(&admin(), "/plain/_revs_limit").await.expect(200), json!(7));
    world.put(&admin(), "/plain/_security", json!({})).await.expect(200);
    assert_eq!(world.get(&admin(), "/_ring/db:plain").await.expect(200)["security"], json!({}));
    world.get(&Identity::anonymous(), "/plain").await.expect(200);
    // The pod's own databases get one with their first setting.
    assert_eq!(world.get(&admin(), "/_ring/db:_users").await.status, 404);
    world.put(&admin(), "/_users/_security", json!({"members": {"names": ["ann"]}})).await.expect(200);
    let doc = world.get(&admin(), "/_ring/db:_users").await.expect(200);
    assert_eq!(doc["security"], json!({"members": {"names": ["ann"]}}));

    world.send(&admin(), "DELETE", "/notes", None).await.expect(200);
    world.send(&admin(), "DELETE", "/notes", None).await.expect(404);
    world.get(&admin(), "/_ring/db:notes").await.expect(404);
    world.send(&admin(), "PUT", "/notes", None).await.expect(201);
    let doc = world.get(&admin(), "/_ring/db:notes").await.expect(200);
    assert_eq!((&doc["app"], &doc["gone"]), (&json!(false), &json!([first])));
    assert_ne!(doc["instance"], first.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_arrive_make_change_and_drop_databases() {
    let world = World::new().await;
    let made = |rev: &str, ids: &[&str], instance: &str, gone: &[&str], more: Value| {
        let mut doc = json!({"_id": "db:notes", "_rev": rev, "app": false, "instance": instance, "gone": gone});
        doc["_revisions"] = json!({"start": ids.len(), "ids": ids});
        doc.as_object_mut().expect("an object").extend(more.as_object().expect("members").clone());
        doc
    };
    world.bring(json!([made("1-aa", &["aa"], "11111111", &[], json!({"revs_limit": 5}))])).await;
    // At once: rows of the database follow.
    assert_eq!(world.get(&admin(), "/notes/_revs_limit").await.expect(200), json!(5));
    assert_eq!(world.get(&user("ann", &[]), "/notes").await.status, 403);
    let open = json!({"security": {"members": {"names": ["ann"], "roles": []}}});
    world.bring(json!([made("2-aa", &["aa", "aa"], "11111111", &[], open)])).await;
    world.get(&user("ann", &[]), "/notes").await.expect(200);
    world.put(&admin(), "/notes/x", json!({})).await.expect(201);

    // Another side of a split has made it too: that is the same database.
    world.bring(json!([made("2-ff", &["ff", "fe"], "22222222", &[], json!({}))])).await;
    world.get(&admin(), "/notes/x").await.expect(200);
    assert_eq!(world.get(&user("ann", &[]), "/notes").await.status, 403);

    // Deleted and made anew, of which this pod hears late.
    let ids = ["cc", "bb", "ff", "fe"];
    world.bring(json!([made("4-cc", &ids, "33333333", &["11111111", "22222222"], json!({}))])).await;
    world.get(&admin(), "/notes").await.expect(200);
    world.get(&admin(), "/notes/x").await.expect(404);

    let mut gone = made("5-dd", &["dd", "cc", "bb", "ff", "fe"], "33333333", &["33333333"], json!({}));
    gone["_deleted"] = json!(true);
    let mut other = made("3-dd", &["dd", "aa", "aa"], "11111111", &["11111111"], json!({}));
    other["_deleted"] = json!(true);
    world.bring(json!([gone, other])).await;
    assert!(!world.has("notes").await);
    // What is no name of a database, or is the pod's own, does nothing.
    world
        .bring(json!([{"_id": "db:_pods", "_rev": "1-a", "app": false, "instance": "11111111", "revs_limit": 3}]))
        .await;
    world.bring(json!([{"_id": "db:Not a name", "_rev": "1-a", "app": false, "instance": "11111111"}])).await;
    assert_eq!(world.get(&admin(), "/_pods/_revs_limit").await.expect(200), json!(1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_from_before_its_documents_gets_one() {
    let world = World::new().await;
    let make = |name: &str| {
        let (store, name) = (world.pod.store.clone(), name.to_owned());
        tokio::task::spawn_blocking(move || store.create_db(&name, rean_store::DbKind::App).map(|_| ()))
    };
    make("old").await.expect("no panic").expect("it is made");
    world.put(&admin(), "/old/_revs_limit", json!(9)).await.expect(200);
    let doc = world.get(&admin(), "/_ring/db:old").await.expect(200);
    assert_eq!((&doc["app"], &doc["revs_limit"]), (&json!(true), &json!(9)));
    make("older").await.expect("no panic").expect("it is made");
    world.send(&admin(), "DELETE", "/older", None).await.expect(200);
    assert!(!world.has("older").await && world.has("old").await);
    let changes = world.get(&admin(), "/_ring/_changes?include_docs=true").await.expect(200);
    let rows = changes["results"].as_array().expect("rows");
    let gone = rows.iter().find(|row| row["id"] == "db:older").expect("a row");
    assert_eq!(gone["doc"]["gone"], json!([gone["doc"]["instance"]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_and_a_plain_database_of_one_name_do_not_mix() {
    let world = World::new().await;
    world.send(&admin(), "PUT", "/notes", None).await.expect(201);
    world.put(&admin(), "/notes/x", json!({})).await.expect(201);
    let doc = world.get(&admin(), "/_ring/db:notes").await.expect(200);
    world
        .bring(json!([{
            "_id": "db:notes", "_rev": "2-ffff", "_revisions": {"start": 2, "ids": ["ffff", "fffe"]},
            "app": true, "instance": "22222222", "gone": []
        }]))
        .await;
    world.get(&admin(), "/notes/x").await.expect(200);
    assert_eq!(world.get(&admin(), "/notes/_access").await.status, 404);
    // Nothing of the others' is taken.
    use rean::ring::databases::{Ensured, ensure_from};
    let of = async |theirs| ensure_from(&world.pod, "notes", theirs).await.expect("the store answers");
    assert_eq!(of(Some("22222222")).await, Ensured::NotYet);
    assert!(world.pod.ring.records.mixed.lock().contains("notes"));
    world.send(&admin(), "DELETE", "/notes", None).await.expect(200);
    assert_eq!(of(Some("22222222")).await, Ensured::Gone);
    assert_eq!(of(doc["instance"].as_str()).await, Ensured::Gone);
    world.app("notes").await;
    assert_eq!(of(None).await, Ensured::Here);
    assert_eq!(of(Some("22222222")).await, Ensured::Gone);
    assert_eq!(of(Some("44444444")).await, Ensured::NotYet);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_checked_and_put_in_force() {
    let world = World::new().await;
    for (id, doc, member) in [
        ("config", json!({"write": {"w": 0}}), "write.w"),
        ("config", json!({"zork": 1}), "zork"),
        ("config", json!({"election": {"prefer": ["Not an id"]}}), "election.prefer"),
        ("keyring", json!({"primary": "x"}), "keys"),
        ("app:notes", json!({"w": 101}), "w"),
    ] {
        let error = world.put(&admin(), &format!("/_ring/{id}"), doc).await.expect(400);
        assert!(error["reason"].as_str().expect("a reason").contains(member), "{error}");
    }
    for id in ["db:x", "instruction:x", "pod:pod", "divergence:x:0"] {
        assert_eq!(world.put(&admin(), &format!("/_ring/{id}"), json!({})).await.status, 403, "{id}");
        let doc = json!({"_id": id, "_rev": "9-a"});
        let rows = world.post(&admin(), "/_ring/_bulk_docs", json!({"new_edits": false, "docs": [doc]})).await;
        assert_eq!(rows.expect(201)[0]["error"], "forbidden", "{id}");
    }
    assert!(!world.has("x").await);

    let written = world.put(&admin(), "/_ring/config", json!({"write": {"w": 2, "wait_ms": 10}})).await.expect(201);
    world.put(&admin(), "/_ring/app:notes", json!({"w": 3})).await.expect(201);
    world.put(&admin(), "/_ring/keyring", json!({"keys": [], "primary": "x"})).await.expect(201);
    let ring = &world.pod.ring;
    wait_for("they are in force", async || {
        (ring.config().write.wait_ms == 10 && ring.default_w("notes") == 3 && ring.keyring().is_some()).then_some(())
    })
    .await;
    assert_eq!(ring.default_w("other"), 2);
    // Of one that comes from a newer pod, what is known here counts, and what is not is told of.
    world
        .bring(json!([{
            "_id": "config", "_rev": "2-b", "zork": 1, "write": {"w": 2, "wait_ms": 10},
            "_revisions": {"start": 2, "ids": ["b", written["rev"].as_str().expect("a revision")[2..]]}
        }]))
        .await;
    wait_for("the status tells of it", async || {
        let status = world.get(&admin(), "/_ring/pod:pod").await;
        (status.status == 200 && status.json()["config_error"].as_str().is_some_and(|text| text.contains("zork")))
            .then_some(())
    })
    .await;
    assert_eq!(ring.config().write.wait_ms, 10);
    let path = format!(
        "/_ring/config?rev={}",
        world.get(&admin(), "/_ring/config").await.expect(200)["_rev"].as_str().expect("a revision")
    );
    world.send(&admin(), "DELETE", &path, None).await.expect(200);
    wait_for("the defaults are in force", async || (ring.config().write.wait_ms == 5_000).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_are_recorded_numbered_and_pruned_but_for_the_last() {
    let world = World::new().await;
    world.app("notes").await;
    let access = |who: &str| json!({"read": [format!("user:{who}")]});
    let made = world.put(&admin(), "/notes/a", json!({"access": access("ann")})).await.expect(201);
    assert_eq!(world.instructions().await, Vec::<Value>::new());
    // What the pod says of itself takes sequences too; said once, it is not said again so soon.
    for path in ["/_ring/pod:pod", "/_pods/pod:pod"] {
        wait_for(path, async || (world.get(&admin(), path).await.status == 200).then_some(())).await;
    }
    let seq = world.pod.store.seq();
    let moved =
        world.put(&admin(), "/notes/a", json!({"_rev": made["rev"], "access": access("bob")})).await.expect(201);
    let first = world.instructions().await.pop().expect("an instruction");
    assert!(first["_id"].as_str().is_some_and(|id| id.ends_with(".0000000001")), "{first}");
    assert_eq!(first["prev"], Value::Null);
    let one = &first["moves"][0];
    assert_eq!((&one["db"], &one["id"], &one["rev"]), (&json!("notes"), &json!("a"), &moved["rev"]));
    let signature = |who: &str| rean_store::access::Signature::of(&[format!("user:{who}")]).to_string();
    assert_eq!((&one["from"], &one["to"]), (&json!(signature("ann")), &json!(signature("bob"))));
    // The move and its record, in one commit.
    assert!(world.pod.store.seq() <= seq + 3);

    // By a rule, many at once, into nobody's sight; and back again.
    let docs: Vec<Value> = (0..30).map(|n| json!({"_id": format!("r{n}"), "kind": "r"})).collect();
    let rule = |who: &str| json!({"rules": [{"selector": {"kind": "r"}, "read": [format!("user:{who}")]}]});
    let mut rev = world.put(&admin(), "/_ring/app:notes", rule("ann")).await.expect(201)["rev"].clone();
    world.app_rules_hold("notes", "user:ann").await;
    world.post(&admin(), "/notes/_bulk_docs", json!({ "docs": docs })).await.expect(201);
    for who in ["cyn", "ann"] {
        let mut settings = rule(who);
        settings["_rev"] = rev.clone();
        rev = world.put(&admin(), "/_ring/app:notes", settings).await.expect(201)["rev"].clone();
        world.app_rules_hold("notes", &format!("user:{who}")).await;
        wait_for("all are placed anew", async || {
            let app = world.pod.store.db("notes").expect("the app");
            (!app.needs_repartition()).then_some(())
        })
        .await;
    }
    let progress = &world.pod.ring.records.progress;
    wait_for("all are carried out", async || {
        let newest = world.instructions().await.pop().expect("an instruction");
        let newest =
            newest["_id"].as_str().and_then(|id| id.strip_prefix("instruction:")).expect("a number").to_owned();
        let carried = world.pod.ring.carried_out().map(|number| number.to_string());
        (progress.open().is_empty() && carried == Some(newest)).then_some(())
    })
    .await;
    // The master prunes: only the end of the chain stays, and what comes next goes on from there.
    let last = wait_for("they are pruned", async || {
        let left = world.instructions().await;
        (left.len() == 1).then(|| left[0].clone())
    })
    .await;
    world.put(&admin(), "/notes/a", json!({"_rev": moved["rev"], "access": access("cyn")})).await.expect(201);
    let next = world.instructions().await.pop().expect("an instruction");
    assert_eq!(format!("instruction:{}", next["prev"].as_str().expect("a number")), last["_id"]);
    let number = |doc: &Value| doc["_id"].as_str().and_then(|id| id.rsplit('.').next()?.parse::<u64>().ok());
    assert_eq!(number(&next), number(&last).map(|number| number + 1));
}

impl World {
    /// Waits until an app's rules name this reader.
    async fn app_rules_hold(&self, app: &str, reader: &str) {
        let app = self.pod.store.db(app).expect("the app");
        wait_for("the rules hold", async || app.rules().text().contains(reader).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instruction_that_is_not_carried_out_holds_the_pod_back() {
    let world = World::new().await;
    world.app("notes").await;
    let made = world.put(&admin(), "/notes/a", json!({"access": {"read": ["user:ann"]}})).await.expect(201);
    let from = rean_store::access::Signature::of(&["user:ann".to_owned()]).to_string();
    let epoch = "000000000005-0000-other";
    let doc = |number: u64, prev: Option<u64>, moves: Value| {
        let id = |number: u64| format!("{epoch}.{number:010}");
        json!({"_id": format!("instruction:{}", id(number)), "_rev": "1-a", "prev": prev.map(id), "moves": moves})
    };
    // The document's new revision is on the way; the second instruction comes first.
    let moves = json!([{"db": "notes", "id": "a", "from": from, "to": null, "rev": "2-abcd"}]);
    world.bring(json!([doc(1, None, json!([]))])).await;
    let progress = &world.pod.ring.records.progress;
    let id = |number: u64| Some(format!("{epoch}.{number:010}"));
    let is_carried_out = |number: u64| (world_carried(progress) == id(number)).then_some(());
    wait_for("the first is carried out", async || is_carried_out(1)).await;
    world.bring(json!([doc(3, Some(2), json!([]))])).await;
    wait_for("it is held back", async || (progress.open() == [format!("{epoch}.0000000003")]).then_some(())).await;
    world.bring(json!([doc(2, Some(1), moves)])).await;
    wait_for("that is now the first", async || (progress.open() == [format!("{epoch}.0000000002")]).then_some(()))
        .await;
    assert_eq!(world_carried(progress), Some(format!("{epoch}.0000000001")));
    let first = made["rev"].as_str().expect("a revision")[2..].to_owned();
    let news = json!({"_id": "a", "_rev": "2-abcd", "_revisions": {"start": 2, "ids": ["abcd", first]},
        "access": {"read": []}});
    let answer = world.post(&system(), "/notes/_bulk_docs", json!({"new_edits": false, "docs": [news]})).await;
    assert_eq!(answer.expect(201), json!([]));
    let epoch = epoch.parse().expect("a stamp");
    wait_for("all are carried out", async || (progress.reached(&epoch) == 3).then_some(())).await;
    wait_for("nothing is open", async || progress.open().is_empty().then_some(())).await;
}

fn world_carried(progress: &rean::ring::instructions::progress::Progress) -> Option<String> {
    progress.carried_out().map(|number| number.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_for_long_has_the_links_compare_everything() {
    let world = World::new().await;
    world.app("notes").await;
    world.put(&admin(), "/notes/a", json!({"access": {"read": ["user:ann"]}})).await.expect(201);
    let (asked, mut is_asked) = tokio::sync::watch::channel(0_u32);
    world
        .pod
        .ring
        .records
        .set_links(|| json!([{"peer": "b", "state": "live"}]), move || asked.send_modify(|n| *n += 1));
    let from = rean_store::access::Signature::of(&["user:ann".to_owned()]).to_string();
    let moves = json!([{"db": "notes", "id": "a", "from": from, "to": null, "rev": "2-abcd"}]);
    let id = "instruction:000000000005-0000-other.0000000001";
    world.bring(json!([{"_id": id, "_rev": "1-a", "prev": null, "moves": moves}])).await;
    let once = is_asked.wait_for(|asked| *asked > 0);
    tokio::time::timeout(Duration::from_secs(30), once).await.expect("in time").expect("the hook is there");
    assert_eq!(world.pod.ring.records.progress.open(), [id.trim_start_matches("instruction:")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_pods_are_written_once_and_then_all_is_still() {
    let world = World::new().await;
    world.open_db("db").await;
    let status = wait_for("a status", async || {
        let status = world.get(&admin(), "/_ring/pod:pod").await;
        (status.status == 200).then(|| status.json())
    })
    .await;
    assert_eq!(
        (&status["pod"], &status["role"], &status["caught_up"]),
        (&json!("pod"), &json!("master"), &json!(true))
    );
    for member in ["software", "since", "stamp", "seq", "applied", "links", "clocks_off", "docs", "disk_bytes", "load"]
    {
        assert!(status.get(member).is_some(), "{member}: {status}");
    }
    let nobody = Identity::anonymous();
    let info = wait_for("a document of the pod", async || {
        let info = world.get(&nobody, "/_pods/pod:pod").await;
        (info.status == 200).then(|| info.json())
    })
    .await;
    assert_eq!((&info["role"], &info["alive"], &info["pod"]), (&json!("master"), &json!(true), &json!("pod")));
    for member in ["seq", "applied", "docs", "disk_bytes", "ring_address", "address", "links"] {
        assert!(info.get(member).is_none(), "{member}: {info}");
    }
    let changes = world.get(&nobody, "/_pods/_changes?include_docs=true").await.expect(200);
    assert_eq!(changes["results"].as_array().expect("rows").len(), 1);

    // Longer than the shortest pause between two: were one set off by another, it would show. A load that moves is told.
    let ring = world.pod.store.db("_ring").expect("the database");
    let seq = |db: &rean_store::Db| db.info().update_seq;
    let before = seq(&ring);
    tokio::time::sleep(Duration::from_millis(3_000)).await;
    assert_eq!(seq(&ring), before);
    assert!(
        world.get(&admin(), "/_ring/pod:pod").await.expect(200)["_rev"]
            .as_str()
            .is_some_and(|rev| rev.starts_with("1-"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_writes_to_pods_and_nobody_but_administrators_reads_the_ring() {
    let world = World::new().await;
    wait_for("a document of the pod", async || {
        (world.get(&admin(), "/_pods/pod:pod").await.status == 200).then_some(())
    })
    .await;
    let rev = world.get(&admin(), "/_pods/pod:pod").await.expect(200)["_rev"].as_str().expect("a revision").to_owned();
    for who in [admin(), system(), user("ann", &["staff"]), Identity::anonymous()] {
        world.get(&who, "/_pods/_all_docs").await.expect(200);
        let deletion = format!("/_pods/pod:pod?rev={rev}");
        let tries = [
            world.put(&who, "/_pods/x", json!({})).await,
            world.post(&who, "/_pods", json!({"_id": "x"})).await,
            world.send(&who, "DELETE", &deletion, None).await,
            world.post(&who, "/_pods/_bulk_docs", json!({"docs": [{"_id": "x"}]})).await,
            world
                .post(&who, "/_pods/_bulk_docs", json!({"new_edits": false, "docs": [{"_id": "x", "_rev": "9-a"}]}))
                .await,
            world.post(&who, "/_pods/_purge", json!({"pod:pod": [rev]})).await,
            world.put(&who, "/_pods/_design/x", json!({})).await,
            world.put(&who, "/_pods/_security", json!({})).await,
            world.put(&who, "/_pods/pod:pod/file", json!({})).await,
            world.send(&who, "DELETE", "/_pods", None).await,
        ];
        for (n, answer) in tries.iter().enumerate() {
            assert!(matches!(answer.status.as_u16(), 401 | 403), "{n}: {} {}", answer.status, answer.text);
        }
    }
    assert_eq!(world.ids("/_pods/_all_docs").await, ["pod:pod"]);

    for who in [user("ann", &["staff"]), Identity::anonymous()] {
        for path in [
            "/_ring",
            "/_ring/db:_users",
            "/_ring/pod:pod",
            "/_ring/nosuch",
            "/_ring/pod:pod?revs=true&open_revs=all",
            "/_ring/_all_docs",
            "/_ring/_design_docs",
            "/_ring/_local_docs",
            "/_ring/_changes",
            "/_ring/_changes?feed=continuous",
            "/_ring/_security",
            "/_ring/_revs_limit",
            "/_ring/_local/x",
            "/_ring/_access",
            "/_ring/pod:pod/file",
            "/_all_dbs",
            "/_dbs_info",
        ] {
            let answer = world.get(&who, path).await;
            assert!(matches!(answer.status.as_u16(), 401 | 403), "{path}: {} {}", answer.status, answer.text);
        }
        for (path, body) in [
            ("/_ring/_all_docs", json!({"keys": ["pod:pod"]})),
            ("/_ring/_all_docs/queries", json!({"queries": [{}]})),
            ("/_ring/_bulk_get", json!({"docs": [{"id": "pod:pod"}]})),
            ("/_ring/_revs_diff", json!({"pod:pod": ["1-a"]})),
            ("/_ring/_missing_revs", json!({"pod:pod": ["1-a"]})),
            ("/_ring/_changes", json!({})),
            ("/_ring/_find", json!({"selector": {}})),
            ("/_ring/_purge", json!({"pod:pod": ["1-a"]})),
        ] {
            let answer = world.post(&who, path, body).await;
            assert!(matches!(answer.status.as_u16(), 401 | 403 | 501), "{path}: {} {}", answer.status, answer.text);
            assert!(!answer.text.contains("software"), "{}", answer.text);
        }
    }
}
