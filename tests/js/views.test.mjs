// Views with the clients that people use: PouchDB and nano, on a plain database and on personal ones.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import nano from 'nano';
import PouchDB from 'pouchdb';
import { Client, read } from './lib/clients.mjs';
import { Pod } from './lib/pod.mjs';
import { until } from './lib/wait.mjs';

const DOCS = 120;
const VIEWS = {
  n: { map: 'function (doc) { emit(doc.n, doc.team); }' },
  team: { map: 'function (doc) { emit([doc.team, doc.n % 3], doc.n); }', reduce: '_sum' },
  stats: { map: 'function (doc) { emit(doc.team, doc.n); }', reduce: '_stats' },
  count: { map: 'function (doc) { emit(doc.team); }', reduce: '_count' },
  max: { map: 'function (doc) { emit(doc.team, doc.n); }', reduce: 'function (keys, values) { return Math.max.apply(null, values); }' },
  link: { map: 'function (doc) { emit(doc.n, { _id: "d" + String((doc.n + 1) % 120).padStart(3, "0") }); }' },
};
const doc = (n) => ({ _id: `d${String(n).padStart(3, '0')}`, n, team: 'abcde'[n % 5] });
const docs = Array.from({ length: DOCS }, (_, n) => doc(n));
let pod, apps = 0;

before(async () => {
  pod = await Pod.start();
  await Promise.all(['ann', 'bob'].map((name) => pod.makeUser(name)));
});
after(() => pod?.stop());

/** The queries of which every client knows the answer. */
const QUERIES = [
  ['n', {}],
  ['n', { limit: 7, skip: 5 }],
  ['n', { descending: true, limit: 3 }],
  ['n', { startkey: 10, endkey: 20 }],
  ['n', { startkey: 10, endkey: 20, inclusive_end: false }],
  ['n', { startkey: 20, endkey: 10, descending: true, skip: 2 }],
  ['n', { key: 5, include_docs: true }],
  ['n', { keys: [7, 3, 1000, 7], include_docs: true }],
  ['team', {}],
  ['team', { group: true }],
  ['team', { group_level: 1 }],
  ['team', { group_level: 1, limit: 2, skip: 1 }],
  ['team', { group_level: 1, descending: true }],
  ['team', { startkey: ['b'], endkey: ['c', {}], group_level: 2 }],
  ['team', { reduce: false, startkey: ['b'], endkey: ['b', {}] }],
  ['team', { group: true, keys: [['a', 0], ['e', 2]] }],
  ['stats', { group: true }],
  ['count', {}],
  ['count', { key: 'b' }],
  ['max', { group: true }],
  ['max', {}],
  ['link', { limit: 4, include_docs: true }],
];

/** Without revisions, which each database makes by itself, and `access`, which the oracle has not. */
function plain(answer) {
  // A linked document that isn't there: null in CouchDB, nothing in PouchDB.
  const bare = ({ doc, ...row }) => (doc ? { ...row, doc: { _id: doc._id, n: doc.n, team: doc.team } } : row);
  return { total_rows: answer.total_rows, offset: answer.offset, rows: answer.rows.map(bare) };
}

/** PouchDB's own evaluation in memory of the same documents. */
async function oracle(list) {
  const db = new PouchDB(`oracle-${process.pid}-${++apps}`, { adapter: 'memory' });
  await db.bulkDocs(list.map((one) => ({ ...one })));
  await db.put({ _id: '_design/v', views: VIEWS });
  return db;
}

/** That a remote database answers as PouchDB does in memory. */
async function agrees(remote, list, what) {
  const local = await oracle(list);
  for (const [view, options] of QUERIES) {
    const name = `${what}: ${view} ${JSON.stringify(options)}`;
    const [got, wanted] = [plain(await remote.query(`v/${view}`, options)), plain(await local.query(`v/${view}`, options))];
    assert.deepEqual(got.rows, wanted.rows, name);
    assert.equal(got.total_rows, wanted.total_rows, name);
    if (!options.keys && got.rows[0]?.id) {
      // PouchDB gives what was skipped; CouchDB the place of the first row.
      const all = await local.query(`v/${view}`, { reduce: false, descending: options.descending });
      assert.equal(got.offset, all.rows.findIndex((row) => row.id === got.rows[0].id), name);
    }
  }
  await local.destroy();
}

test('PouchDB over HTTP gets what PouchDB makes itself', async () => {
  const db = `plain${++apps}`;
  await pod.ok('PUT', `/${db}`);
  const remote = new PouchDB(pod.url(db));
  await remote.bulkDocs(docs.map((one) => ({ ...one })));
  await remote.put({ _id: '_design/v', views: VIEWS });
  await agrees(remote, docs, 'first');
  const changed = docs.map((one) => (one.n % 7 ? one : { ...one, team: 'f' })).filter((one) => one.n % 11);
  for (const one of docs) {
    const now = await remote.get(one._id);
    if (one.n % 11 === 0) await remote.remove(now);
    else if (one.n % 7 === 0) await remote.put({ ...now, team: 'f' });
  }
  await agrees(remote, changed, 'after changes');
  await remote.viewCleanup();
  await remote.close();
});

test('nano: view with and without keys, several queries, _info', async () => {
  const name = `plain${++apps}`;
  const server = nano({ url: pod.url('').replace(/\/$/, ''), parseUrl: false });
  await server.db.create(name);
  const db = server.use(name);
  await db.bulk({ docs });
  await db.insert({ views: VIEWS }, '_design/v');
  assert.equal((await db.view('v', 'n')).total_rows, DOCS);
  assert.deepEqual((await db.view('v', 'n', { keys: [3, 1] })).rows.map((row) => row.id), ['d003', 'd001']);
  assert.deepEqual((await db.view('v', 'count', { group: true, key: 'a' })).rows, [{ key: 'a', value: 24 }]);
  const several = await db.view('v', 'team', { queries: [{ group_level: 1 }, { reduce: false, limit: 1 }] });
  assert.deepEqual(several.results.map((one) => one.rows.length), [5, 1]);
  const { view_index: index } = await pod.ok('GET', `/${name}/_design/v/_info`);
  assert.equal(index.language, 'javascript');
  await assert.rejects(db.view('v', 'none'), /missing_named_view/);
});

test('personal databases of two users: counts, pages and reductions are over their own documents', async () => {
  const db = `notes${++apps}`;
  await pod.makeApp(db);
  await pod.put(db, '_design/v', { views: VIEWS });
  const readers = (n) => (n % 3 === 0 ? read('ann', 'bob') : n % 3 === 1 ? read('ann') : read('bob'));
  await pod.ok('POST', `/${db}/_bulk_docs`, { body: { docs: docs.map((one) => ({ ...one, access: readers(one.n) })) } });
  const [ann, bob] = ['ann', 'bob'].map((name) => new Client(pod, name, `${db}--me`));
  const own = (rest) => docs.filter((one) => one.n % 3 !== rest);
  await agrees(ann.remote, own(2), 'ann');
  await agrees(bob.remote, own(1), 'bob');
  // What they shared is now ann's alone.
  const shared = docs.filter((one) => one.n % 3 === 0);
  await Promise.all(shared.map(async (one) => pod.put(db, one._id, { ...(await pod.get(db, one._id)), access: read('ann') })));
  await agrees(ann.remote, own(2), 'ann, after');
  await agrees(bob.remote, own(1).filter((one) => one.n % 3 !== 0), 'bob, after');
  for (const stale of ['ok', 'update_after']) {
    const rows = await pod.ok('GET', `/${db}--me/_design/v/_view/n?stale=${stale}`, { as: 'bob' });
    assert.equal(rows.total_rows, 40);
  }
  await ann.close();
  await bob.close();
});

test('the indexer works ahead, tells of it, and the index is there after a restart', async () => {
  const db = `plain${++apps}`;
  await pod.ok('PUT', `/${db}`);
  const many = Array.from({ length: 10_000 }, (_, n) => ({ _id: `m${n}`, n, team: 'abcde'[n % 5] }));
  for (let at = 0; at < many.length; at += 2_000) await pod.ok('POST', `/${db}/_bulk_docs`, { body: { docs: many.slice(at, at + 2_000) } });
  let seen = null;
  const watching = (async () => {
    for (const end = Date.now() + 30_000; !seen && Date.now() < end;) {
      const tasks = await pod.ok('GET', '/_active_tasks');
      seen = tasks.find((task) => task.type === 'indexer' && task.database === db) ?? null;
    }
  })();
  await pod.put(db, '_design/v', { views: VIEWS });
  const stale = () => pod.ok('GET', `/${db}/_design/v/_view/count?update=false`);
  await until(async () => (await stale()).rows[0]?.value === many.length, 'all to be indexed', 60_000);
  await watching;
  assert.ok(seen, 'no task was shown');
  assert.equal(seen.design_document, '_design/v');
  for (const member of ['changes_done', 'total_changes', 'progress', 'started_on', 'updated_on', 'pid', 'node']) assert.ok(member in seen, member);
  await pod.restart();
  assert.equal((await stale()).rows[0].value, many.length);
});

test('a view that never ends costs others nothing', async () => {
  const [slow, quick] = [`plain${++apps}`, `plain${++apps}`];
  for (const db of [slow, quick]) {
    await pod.ok('PUT', `/${db}`);
    await pod.put(db, 'a', { n: 1 });
  }
  await pod.put(slow, '_design/v', { autoupdate: false, views: { v: { map: 'function (doc) { for (;;) {} }' } } });
  await pod.put(quick, '_design/v', { views: { v: { map: 'function (doc) { emit(doc._id, 1); }' } } });
  const asked = Array.from({ length: 8 }, () => pod.send('GET', `/${slow}/_design/v/_view/v`, { timeout: 120_000 }));
  const began = Date.now();
  for (let n = 0; n < 10; n++) {
    await pod.put(quick, `b${n}`, { n });
    assert.equal((await pod.ok('GET', `/${quick}/_design/v/_view/v`)).total_rows, n + 2);
  }
  assert.ok(Date.now() - began < 10_000, `others waited ${Date.now() - began} ms`);
  for (const answer of await Promise.all(asked)) assert.ok([200, 500, 503].includes(answer.status), `${answer.status} ${answer.text}`);
});
