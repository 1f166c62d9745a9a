// Mango with the clients that people use: pouchdb-find over HTTP and nano, on plain databases and on those of an app.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import nano from 'nano';
import PouchDB from 'pouchdb';
import memory from 'pouchdb-adapter-memory';
import find from 'pouchdb-find';
import { read } from './lib/clients.mjs';
import { Pod } from './lib/pod.mjs';

PouchDB.plugin(memory);
PouchDB.plugin(find);
let pod, count = 0;

before(async () => {
  pod = await Pod.start();
  await Promise.all(['ann', 'bob'].map((name) => pod.makeUser(name)));
});
after(() => pod?.stop());

const remote = (db, user = 'admin') => {
  const { name, password } = pod.login(user);
  return new PouchDB(`${pod.base}/${db}`, { auth: { username: name, password }, skip_setup: true });
};
const ids = (answer) => answer.docs.map((doc) => doc._id);

const GAMES = [
  { _id: 'mario', name: 'Mario', rank: 5, series: 'Mario', debut: 1981 },
  { _id: 'jigglypuff', name: 'Jigglypuff', rank: 8, series: 'Pokemon', debut: 1996 },
  { _id: 'link', name: 'Link', rank: 10, series: 'Zelda', debut: 1986 },
  { _id: 'dk', name: 'Donkey Kong', rank: 7, series: 'Mario', debut: 1981 },
  { _id: 'pikachu', name: 'Pikachu', rank: 1, series: 'Pokemon', debut: 1996 },
  { _id: 'luigi', name: 'Luigi', rank: 11, series: 'Mario', debut: 1983 },
];

async function games() {
  const db = `games${++count}`;
  await pod.ok('PUT', `/${db}`);
  await pod.ok('POST', `/${db}/_bulk_docs`, { body: { docs: GAMES } });
  return db;
}

test('pouchdb-find makes, lists and deletes indexes, and finds by them', async () => {
  const db = remote(await games());
  const made = await db.createIndex({ index: { fields: ['debut', 'rank'] } });
  assert.equal(made.result, 'created');
  assert.equal((await db.createIndex({ index: { fields: ['debut', 'rank'] } })).result, 'exists');
  const { total_rows: total, indexes } = await db.getIndexes();
  assert.equal(total, 2);
  assert.deepEqual(indexes[1].def, { fields: [{ debut: 'asc' }, { rank: 'asc' }] });
  const sorted = await db.find({ selector: { debut: { $gte: 1981 }, rank: { $gt: 0 } }, sort: [{ debut: 'asc' }, { rank: 'asc' }], fields: ['_id'] });
  assert.deepEqual(ids(sorted), ['mario', 'dk', 'luigi', 'link', 'pikachu', 'jigglypuff']);
  assert.equal(sorted.warning, undefined);
  const down = await db.find({ selector: { debut: { $gt: null } }, sort: [{ debut: 'desc' }, { rank: 'desc' }], limit: 2, skip: 1 });
  assert.deepEqual(ids(down), ['pikachu', 'link']);
  const plan = await db.explain({ selector: { debut: 1981, rank: { $gt: 0 } } });
  assert.equal(plan.index.name, made.name);
  assert.deepEqual(plan.mrargs.start_key, [1981, 0]);
  assert.deepEqual(await db.deleteIndex(indexes[1]), { ok: true });
  assert.equal((await db.getIndexes()).total_rows, 1);
  await assert.rejects(db.find({ selector: { debut: { $gt: 1 } }, sort: ['debut'] }), { status: 400, error: 'no_usable_index' });
});

test('pouchdb-find gives the same from a server as from its own database', async () => {
  const name = await games(), db = remote(name);
  const local = new PouchDB(`find-${process.pid}`, { adapter: 'memory' });
  await local.replicate.from(db);
  for (const fields of [['rank'], ['series', 'rank'], ['name']]) await Promise.all([db, local].map((one) => one.createIndex({ index: { fields } })));
  const queries = [
    { selector: { rank: { $gt: 4 } }, sort: ['rank'] },
    { selector: { rank: { $gte: 5, $lt: 10 } }, sort: [{ rank: 'desc' }] },
    { selector: { series: 'Mario', rank: { $gt: 0 } }, sort: ['series', 'rank'] },
    { selector: { name: { $regex: '^L' } } },
    { selector: { series: { $in: ['Zelda', 'Pokemon'] } } },
    { selector: { $or: [{ rank: 1 }, { debut: 1983 }] } },
    { selector: { series: { $ne: 'Mario' }, debut: { $mod: [2, 0] } } },
    { selector: { $nor: [{ series: 'Mario' }, { rank: 1 }] } },
    { selector: { name: { $gt: 'K' } }, sort: ['name'], fields: ['name', '_id'], limit: 3 },
    { selector: { _id: { $gt: 'k' } }, sort: ['_id'] },
  ];
  for (const query of queries) {
    // PouchDB rewrites the query that it is given.
    const [here, there] = await Promise.all([local.find(structuredClone(query)), db.find(query)]);
    const order = query.sort ? (docs) => docs : (docs) => docs.sort((a, b) => (a._id < b._id ? -1 : 1));
    assert.deepEqual(order(there.docs), order(here.docs), JSON.stringify(query));
  }
});

test('an index that comes by replication serves', async () => {
  const name = `copied${++count}`;
  await pod.ok('PUT', `/${name}`);
  const local = new PouchDB(`index-${process.pid}`, { adapter: 'memory' });
  await local.bulkDocs(GAMES);
  await local.createIndex({ index: { fields: ['rank'], name: 'by-rank', ddoc: 'mine' } });
  const db = remote(name);
  await local.replicate.to(db);
  const { index } = await db.explain({ selector: { rank: { $gt: 1 } } });
  assert.deepEqual([index.ddoc, index.name], ['_design/mine', 'by-rank']);
  assert.deepEqual(ids(await db.find({ selector: { rank: { $gt: 7 } }, sort: ['rank'] })), ['jigglypuff', 'link', 'luigi']);
});

test('nano makes an index and reads all pages by bookmark', async () => {
  const name = await games(), db = nano(pod.url('').replace(/\/$/, '')).use(name);
  const made = await db.createIndex({ index: { fields: ['rank'] }, name: 'by-rank', ddoc: 'idx' });
  assert.deepEqual([made.result, made.id, made.name], ['created', '_design/idx', 'by-rank']);
  const seen = [];
  let bookmark;
  for (;;) {
    const page = await db.find({ selector: { rank: { $gt: 0 } }, sort: [{ rank: 'asc' }], limit: 2, bookmark, execution_stats: true });
    seen.push(...ids(page));
    assert.equal(page.execution_stats.results_returned, page.docs.length);
    if (page.docs.length < 2) break;
    bookmark = page.bookmark;
  }
  assert.deepEqual(seen, ['pikachu', 'mario', 'dk', 'jigglypuff', 'link', 'luigi']);
  await assert.rejects(db.find({ selector: {}, bookmark: `${bookmark}x` }), { statusCode: 400, error: 'invalid_bookmark' });
});

test('two users of an app find by its index what is theirs, and no more after a revocation', async () => {
  const app = `shop${++count}`;
  await pod.makeApp(app);
  const docs = Array.from({ length: 60 }, (_, n) => ({ _id: `d${String(n).padStart(2, '0')}`, n, access: read(...[['ann'], ['bob'], ['ann', 'bob']][n % 3]) }));
  await pod.ok('POST', `/${app}/_bulk_docs`, { body: { docs } });
  await remote(app).createIndex({ index: { fields: ['n'] }, ddoc: 'idx', name: 'by-n' });
  const all = { selector: { n: { $gte: 0 } }, sort: [{ n: 'desc' }], limit: 100 };
  const expected = (user) => docs.filter((doc) => doc.access.read.includes(`user:${user}`)).map((doc) => doc._id).reverse();
  for (const user of ['ann', 'bob']) {
    const db = remote(`${app}--me`, user);
    // An app's client makes its indexes when it starts: they are there.
    assert.equal((await db.createIndex({ index: { fields: ['n'] }, ddoc: 'idx', name: 'by-n' })).result, 'exists');
    await assert.rejects(db.createIndex({ index: { fields: ['zork'] } }), { status: 403 });
    const found = await db.find(all);
    assert.deepEqual(ids(found), expected(user));
    assert.equal(found.warning, undefined);
    assert.deepEqual(ids(await db.find({ ...all, skip: 10, limit: 7 })), expected(user).slice(10, 17));
    const { partials } = await pod.ok('GET', `/${app}/_access`, { as: user });
    for (const { db: name, doc_count: docCount } of partials) assert.equal((await remote(name, user).find(all)).docs.length, docCount);
  }
  const last = await pod.ok('GET', `/${app}/d59`);
  assert.ok(expected('ann').includes('d59'));
  await pod.ok('PUT', `/${app}/d59`, { body: { ...last, access: read('bob') } });
  for (const more of [{}, { update: false }, { stale: 'ok' }]) {
    const { docs: left } = await pod.ok('POST', `/${app}--me/_find`, { as: 'ann', body: { ...all, ...more } });
    assert.deepEqual(left.map((doc) => doc._id), expected('ann').filter((id) => id !== 'd59'), JSON.stringify(more));
  }
});

test('a client that goes away does not hold up others', async () => {
  const db = `large${++count}`;
  await pod.ok('PUT', `/${db}`);
  const text = 'a'.repeat(2_000);
  for (let n = 0; n < 4; n++) await pod.ok('POST', `/${db}/_bulk_docs`, { body: { docs: Array.from({ length: 1_000 }, (_, i) => ({ text, i })) } });
  const body = { selector: { $or: Array.from({ length: 20 }, (_, n) => ({ text: { $regex: `(a|b)*${n}$` } })) } };
  const gone = Array.from({ length: 8 }, () => pod.send('POST', `/${db}/_find`, { body, timeout: 100, agent: false }).catch(() => {}));
  await Promise.all(gone);
  const { docs: one } = await pod.ok('POST', `/${db}/_find`, { body: { selector: { i: 5 }, limit: 1 } });
  assert.equal(one.length, 1);
});
