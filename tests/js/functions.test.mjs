// Functions of design documents with the clients that apps use: validators, filters of feeds and of replications, update handlers.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Client, read } from './lib/clients.mjs';
import { Pod } from './lib/pod.mjs';
import { until } from './lib/wait.mjs';

let pod, count = 0;
const text = (functions) => Object.fromEntries(Object.entries(functions).map(([name, f]) => [name, f.toString()]));

before(async () => {
  pod = await Pod.start();
  await Promise.all([pod.makeUser('ann', ['staff']), pod.makeUser('bob')]);
});
after(() => pod?.stop());

/** An app with one design document. */
async function app(design) {
  const db = `notes${++count}`;
  await pod.makeApp(db, { create: ['users'] });
  await pod.put(db, '_design/d', design);
  return db;
}

/** A plain database that everyone may use, with one design document. */
async function plain(design) {
  const db = `plain${++count}`;
  await pod.ok('PUT', `/${db}`);
  await pod.ok('PUT', `/${db}/_security`, { body: { members: { names: [], roles: [] } } });
  await pod.put(db, '_design/d', design);
  return db;
}

/** An app whose documents need a title, and keep their owner. */
const guard = function (newDoc, oldDoc, userCtx) {
  if (newDoc._deleted) return;
  if (!newDoc.title) throw ({ forbidden: 'a title' });
  if (oldDoc && oldDoc.owner !== newDoc.owner) throw ({ forbidden: 'still ' + oldDoc.owner });
  if (newDoc.owner !== userCtx.name && userCtx.roles.indexOf('_admin') < 0) throw ({ unauthorized: 'you are ' + userCtx.name });
}.toString();

test('a live sync goes on past what a validator refuses, and what is mended comes through', async () => {
  const db = await app({ validate_doc_update: guard });
  const ann = new Client(pod, 'ann', `${db}--me`);
  try {
    ann.online();
    for (const [id, doc] of [['a', { title: 'a' }], ['bad', {}], ['b', { title: 'b' }]]) await ann.local.put({ _id: id, owner: 'ann', access: read('ann'), ...doc });
    const has = (id) => async () => (await pod.send('GET', `/${db}--me/${id}`, { as: 'ann' })).status === 200;
    await until(has('a'), 'a'); await until(has('b'), 'b');
    await until(() => ann.denied.length === 1, 'the refusal to be told');
    assert.equal(ann.denied[0].doc.id, 'bad');
    assert.deepEqual([ann.denied[0].doc.name, ann.denied[0].doc.reason], ['forbidden', 'a title']);
    assert.equal(await has('bad')(), false);
    await ann.edit('bad', { title: 'mended' });
    await until(has('bad'), 'the mended one');
    await ann.edit('a', { owner: 'bob' });
    await until(() => ann.denied.length === 2, 'the second refusal');
    assert.equal(ann.denied[1].doc.reason, 'still ann');
    await ann.local.remove(await ann.local.get('b'));
    await until(async () => (await pod.send('GET', `/${db}--me/b`, { as: 'ann' })).status === 404, 'the deletion');
    assert.deepEqual(ann.errors, []);
  } finally { await ann.close(); }
});

test('a tombstone that a move left is no write, whatever the validator thinks of it', async () => {
  const db = await app({ validate_doc_update: 'function (n, o, userCtx) { if (userCtx.roles.indexOf("_admin") < 0) throw({forbidden: "read only"}); }' });
  const rev = await pod.put(db, 'moved', { title: 'x', access: read('ann') });
  const ann = new Client(pod, 'ann', `${db}--me`);
  try {
    await ann.sync();
    assert.ok(await ann.get('moved'));
    await pod.put(db, 'moved', { _rev: rev, title: 'y', access: read('bob') });
    for (let n = 0; n < 3; n++) await ann.sync();
    assert.equal(await ann.get('moved'), null);
    assert.deepEqual(ann.denied, []);
    assert.equal((await pod.get(db, 'moved')).title, 'y');
  } finally { await ann.close(); }
});

test('replication is filtered by a function with parameters, once and live, and by a view', async () => {
  const design = {
    filters: text({ kind: function (doc, req) { return doc._deleted || doc.kind === req.query.kind; } }),
    views: { odd: { map: 'function (doc) { if (doc.n % 2) emit(doc.n); }' } },
  };
  const db = await app(design);
  const docs = Array.from({ length: 500 }, (_, n) => ({ _id: `d${n}`, n, kind: n % 5 ? 'b' : 'a', access: read(n % 2 ? 'ann' : 'bob', 'role:staff') }));
  await pod.ok('POST', `/${db}/_bulk_docs`, { body: { docs } });
  const ann = new Client(pod, 'ann', `${db}--me`), bob = new Client(pod, 'bob', `${db}--me`);
  try {
    await bob.local.replicate.from(bob.remote, { filter: 'd/kind', query_params: { kind: 'a' } });
    assert.equal(Object.keys(await bob.all()).length, 50);
    await bob.local.replicate.from(bob.remote, { filter: '_view', view: 'd/odd' });
    assert.equal(Object.keys(await bob.all()).length, 50, 'bob reads no odd ones');
    const live = ann.local.replicate.from(ann.remote, { filter: 'd/kind', query_params: { kind: 'a' }, live: true, retry: true });
    live.catch(() => { /* it is cancelled at the end */ });
    await until(async () => Object.keys(await ann.all()).length === 100, 'what is there');
    for (const kind of ['b', 'a']) await pod.put(db, `late-${kind}`, { kind, access: read('role:staff') });
    await ann.has('late-a');
    assert.equal(await ann.get('late-b'), null);
    const { _rev } = await pod.get(db, 'late-a');
    await pod.ok('DELETE', `/${db}/late-a?rev=${_rev}`);
    await ann.gone('late-a');
    live.cancel();
  } finally { await ann.close(); await bob.close(); }
});

test('changes() of a remote database takes functions, live and with documents', async () => {
  const db = await plain({ filters: text({ big: function (doc, req) { return doc.n >= Number(req.query.least); } }) });
  const ann = new Client(pod, 'ann', db);
  try {
    await ann.remote.bulkDocs(Array.from({ length: 10 }, (_, n) => ({ _id: `d${n}`, n })));
    const some = await ann.remote.changes({ filter: 'd/big', query_params: { least: 7 }, include_docs: true });
    assert.deepEqual(some.results.map(({ doc }) => doc.n), [7, 8, 9]);
    const seen = [];
    const feed = ann.remote.changes({ filter: 'd/big', query_params: { least: 7 }, since: some.last_seq, live: true }).on('change', ({ id }) => seen.push(id));
    await ann.remote.bulkDocs([{ _id: 'small', n: 1 }, { _id: 'large', n: 100 }]);
    await until(() => seen.length, 'a change');
    assert.deepEqual(seen, ['large']);
    feed.cancel();
    await assert.rejects(async () => ann.remote.changes({ filter: 'd/none' }), (error) => error.status === 404);
  } finally { await ann.close(); }
});

test('a changed filter function makes _replicate look at the documents anew', async () => {
  const filter = (wanted) => ({ filters: { f: `function (doc) { return doc.kind === ${JSON.stringify(wanted)}; }` } });
  const db = await plain(filter('a'));
  await pod.ok('POST', `/${db}/_bulk_docs`, { body: { docs: ['a', 'b', 'b'].map((kind) => ({ kind })) } });
  const replicate = () => pod.ok('POST', '/_replicate', { body: { source: db, target: `${db}-copy`, create_target: true, filter: 'd/f' }, timeout: 60_000 });
  await replicate();
  assert.equal((await pod.ok('GET', `/${db}-copy`)).doc_count, 1);
  const { _rev } = await pod.get(db, '_design/d');
  await pod.put(db, '_design/d', { _rev, ...filter('b') });
  await replicate();
  assert.equal((await pod.ok('GET', `/${db}-copy`)).doc_count, 3);
});

test('a validator at the target of _replicate refuses, and the rest arrives', async () => {
  const [source, target] = [await plain({}), await plain({ validate_doc_update: guard })];
  await pod.ok('POST', `/${source}/_bulk_docs`, { body: { docs: [{ title: 1 }, { none: 1 }, { title: 2 }] } });
  const report = await pod.ok('POST', '/_replicate', { body: { source, target, filter: '_view', query_params: { view: 'd/none' } }, timeout: 60_000 }).catch((error) => error);
  assert.match(String(report), /404|missing/, 'a filter that is not there');
  const done = await pod.ok('POST', '/_replicate', { body: { source, target }, timeout: 60_000 });
  assert.equal(done.history[0].doc_write_failures, 1);
  assert.equal((await pod.ok('GET', `/${target}`)).doc_count, 3, 'two documents and the design document');
});

test('update handlers write as their caller, through the proxy', async () => {
  const db = await app({
    validate_doc_update: guard,
    updates: text({
      title: function (doc, req) {
        if (!doc) return [null, { code: 404, body: 'none' }];
        doc.title = JSON.parse(req.body).title;
        return [doc, { json: { was: doc._rev }, headers: { 'X-Title': doc.title } }];
      },
    }),
  });
  const rev = await pod.put(db, 'a', { title: 'old', owner: 'ann', access: read('ann') });
  const call = (as, title) => pod.send('POST', `/${db}--me/_design/d/_update/title/a`, { as, body: { title } });
  const done = await call('ann', 'new');
  assert.deepEqual([done.status, done.json, done.headers['x-title']], [201, { was: rev }, 'new']);
  assert.equal(done.headers['x-couch-update-newrev'], (await pod.get(db, 'a'))._rev);
  const none = await call('bob', 'mine');
  assert.deepEqual([none.status, none.text], [404, 'none']);
  const refused = await call('ann', '');
  assert.deepEqual([refused.status, refused.json], [403, { error: 'forbidden', reason: 'a title' }]);
  assert.equal((await pod.get(db, 'a')).title, 'new');
});

test('fifty feeds with a function each are told what is theirs', async () => {
  const db = await plain({ filters: text({ mine: function (doc, req) { return doc.n % 50 === Number(req.query.n); } }) });
  const feeds = Array.from({ length: 50 }, (_, n) => pod.follow(`/${db}/_changes?feed=continuous&since=now&heartbeat=10000&filter=d/mine&n=${n}`));
  try {
    await until(() => feeds.every(({ status }) => status === 200), 'the feeds to be open');
    const docs = Array.from({ length: 500 }, (_, n) => ({ _id: `d${n}`, n }));
    for (let from = 0; from < 500; from += 100) await pod.ok('POST', `/${db}/_bulk_docs`, { body: { docs: docs.slice(from, from + 100) } });
    await until(() => feeds.every(({ lines }) => lines.length >= 10), 'ten changes each', 30_000);
    feeds.forEach(({ lines }, n) => assert.deepEqual(lines.map(({ id }) => Number(id.slice(1)) % 50), Array(10).fill(n)));
  } finally { for (const feed of feeds) feed.close(); }
});
