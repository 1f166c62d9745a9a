// Documents that change their readers, seen by PouchDB clients that sync both ways.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Client, read } from './lib/clients.mjs';
import { Pod } from './lib/pod.mjs';
import { signature } from './lib/signature.mjs';
import { until } from './lib/wait.mjs';

let pod, apps = 0;
const clients = [];

before(async () => {
  pod = await Pod.start();
  await Promise.all(['ann', 'bob', 'cat', 'dan'].map((name) => pod.makeUser(name)));
});
after(async () => {
  await Promise.all(clients.map((client) => client.close()));
  await pod?.stop();
});

async function app(settings) {
  const name = `notes${++apps}`;
  await pod.makeApp(name, settings);
  return name;
}
/** Clients of these users: one each. */
function clientsOf(db, ...users) {
  const made = users.map((user) => new Client(pod, user, `${db}--me`));
  clients.push(...made);
  return made;
}
const closeAll = (...made) => Promise.all(made.map((client) => client.offline()));

/** What must hold for a document whatever happened: one leaf, and it is in the one partial database of its readers. */
async function isWhole(db, id) {
  const doc = await pod.get(db, id, 'admin', '?conflicts=true&deleted_conflicts=true');
  assert.equal(doc._conflicts, undefined, `${id} has conflicts`);
  assert.equal(doc._deleted_conflicts, undefined, `${id} has deleted conflicts`);
  const at = await partsOf(db, id);
  assert.deepEqual(at, [`${db}--${signature(doc.access.read)}`], `${id} is in the partial database of its readers`);
  return doc;
}
async function partsOf(db, id) {
  const { partials } = await pod.ok('GET', `/${db}/_access`);
  const found = [];
  for (const { db: part } of partials) {
    const { rows } = await pod.ok('POST', `/${part}/_all_docs`, { body: { keys: [id] } });
    if (rows[0].value && !rows[0].value.deleted) found.push(part);
  }
  return found;
}

test('a revoked document goes from those who lost it, and from nobody else', async () => {
  const db = await app();
  const [ann, bob, cat] = clientsOf(db, 'ann', 'bob', 'cat').map((c) => c.online());
  await ann.local.put({ _id: 'x', text: 'one', access: read('ann', 'bob', 'cat') });
  await Promise.all([bob.has('x', 'one'), cat.has('x', 'one')]);
  await ann.edit('x', { text: 'two', access: read('ann', 'cat') });
  await Promise.all([bob.gone('x'), cat.has('x', 'two')]);
  // Bob's client has pushed all that it holds when its next document is there: the tombstone too.
  await bob.local.put({ _id: 'after', text: 'bob', access: read('ann', 'bob') });
  await ann.has('after', 'bob');
  assert.equal((await ann.get('x')).text, 'two');
  assert.equal((await cat.get('x')).text, 'two');
  assert.equal((await isWhole(db, 'x')).text, 'two');
  assert.deepEqual([ann, bob, cat].flatMap((c) => [...c.denied, ...c.errors]), []);
  await closeAll(ann, bob, cat);
});

test('a document that is given back is there again, with its content, and can be edited', async () => {
  const db = await app();
  const [ann, bob] = clientsOf(db, 'ann', 'bob').map((c) => c.online());
  await ann.local.put({ _id: 'x', text: '0', access: read('ann', 'bob') });
  await bob.has('x', '0');
  for (let round = 1; round <= 4; round++) {
    await ann.edit('x', { text: `hidden ${round}`, access: read('ann') });
    await bob.gone('x');
    await ann.edit('x', { text: `${round}`, access: read('ann', 'bob') });
    await bob.has('x', `${round}`);
  }
  await bob.edit('x', { text: 'from bob' });
  await ann.has('x', 'from bob');
  assert.equal((await isWhole(db, 'x')).text, 'from bob');
  assert.deepEqual([...ann.denied, ...bob.denied], []);
  await closeAll(ann, bob);
});

test('one-shot syncs, in any order, end in the same state', async () => {
  const db = await app();
  const [ann, bob] = clientsOf(db, 'ann', 'bob');
  await ann.local.put({ _id: 'x', text: '0', access: read('ann', 'bob') });
  await ann.sync(); await bob.sync();
  assert.equal((await bob.get('x')).text, '0');
  // Gone and back while bob is away: he never hears of the time between.
  await ann.edit('x', { text: '1', access: read('ann') }); await ann.sync();
  await ann.edit('x', { text: '2', access: read('ann', 'bob') }); await ann.sync();
  await bob.sync();
  assert.equal((await bob.get('x')).text, '2');
  // Gone, heard of, back.
  await ann.edit('x', { text: '3', access: read('ann') }); await ann.sync();
  await bob.sync(); await bob.sync();
  assert.equal(await bob.get('x'), null);
  await ann.sync();
  assert.equal((await ann.get('x')).text, '3');
  await ann.edit('x', { text: '4', access: read('ann', 'bob') }); await ann.sync();
  await bob.sync();
  assert.equal((await bob.get('x')).text, '4');
  assert.equal((await isWhole(db, 'x')).text, '4');
});

test('a right that is lost while offline, with edits waiting: they are denied and disturb nobody', async () => {
  const db = await app();
  const [ann, bob, cat] = clientsOf(db, 'ann', 'bob', 'cat').map((c) => c.online());
  await ann.local.put({ _id: 'x', text: 'one', access: read('ann', 'bob', 'cat') });
  await Promise.all([bob.has('x', 'one'), cat.has('x', 'one')]);
  await bob.offline();
  await bob.edit('x', { text: 'from bob, too late' });
  await bob.local.put({ _id: 'mine', text: 'also from bob', access: read('ann', 'bob') });
  const rev = (await ann.edit('x', { text: 'two', access: read('ann', 'cat') })).rev;
  await cat.has('x', 'two');
  bob.online();
  await until(() => bob.denied.length, "bob's edit to be denied");
  await ann.has('mine', 'also from bob');
  assert.equal((await isWhole(db, 'x'))._rev, rev);
  assert.equal((await ann.get('x'))._rev, rev);
  assert.equal((await cat.get('x'))._rev, rev);
  assert.deepEqual(bob.errors, [], 'the sync goes on');
  await closeAll(ann, bob, cat);
});

test('a deletion reaches all readers, and a document made anew under its id too', async () => {
  const db = await app();
  const [ann, bob] = clientsOf(db, 'ann', 'bob').map((c) => c.online());
  await ann.local.put({ _id: 'x', text: 'one', access: read('ann', 'bob') });
  await bob.has('x', 'one');
  await ann.local.remove(await ann.get('x'));
  await bob.gone('x');
  await ann.local.put({ _id: 'x', text: 'anew', access: read('ann', 'bob') });
  await bob.has('x', 'anew');
  await bob.local.remove(await bob.get('x'));
  await ann.gone('x');
  // Made anew for other readers: bob learns nothing of it.
  await ann.local.put({ _id: 'x', text: 'private', access: read('ann') });
  await until(async () => (await pod.send('GET', `/${db}/x`)).json?.text === 'private', 'the private one to arrive');
  await bob.local.put({ _id: 'after', access: read('ann', 'bob') });
  await ann.has('after');
  assert.equal(await bob.get('x'), null);
  assert.equal((await isWhole(db, 'x')).text, 'private');
  await closeAll(ann, bob);
});

test('two users swap documents, again and again', async () => {
  const db = await app();
  const [ann, bob] = clientsOf(db, 'ann', 'bob').map((c) => c.online());
  let revs = {};
  for (const [id, owner] of [['x', 'ann'], ['y', 'bob']]) revs[id] = await pod.put(db, id, { text: `${id}0`, access: read(owner) });
  await Promise.all([ann.has('x', 'x0'), bob.has('y', 'y0')]);
  for (let round = 1; round <= 6; round++) {
    const [x, y] = round % 2 ? ['bob', 'ann'] : ['ann', 'bob'];
    const docs = [
      { _id: 'x', _rev: revs.x, text: `x${round}`, access: read(x) },
      { _id: 'y', _rev: revs.y, text: `y${round}`, access: read(y) },
    ];
    for (const row of await pod.ok('POST', `/${db}/_bulk_docs`, { body: { docs } })) revs[row.id] = row.rev;
    const [hasX, hasY] = x === 'ann' ? [ann, bob] : [bob, ann];
    await Promise.all([hasX.has('x', `x${round}`), hasY.has('y', `y${round}`), hasX.gone('y'), hasY.gone('x')]);
  }
  assert.equal((await isWhole(db, 'x'))._rev, revs.x);
  assert.equal((await isWhole(db, 'y'))._rev, revs.y);
  await closeAll(ann, bob);
});

test('to and fro many times, faster than the clients look', async () => {
  const db = await app();
  const [ann, bob, cat] = clientsOf(db, 'ann', 'bob', 'cat').map((c) => c.online());
  const sets = [['ann'], ['ann', 'bob'], ['bob', 'cat'], ['cat'], ['ann', 'cat']];
  let rev;
  for (let turn = 0; turn < 60; turn++) {
    rev = await pod.put(db, 'x', { _rev: rev, text: `${turn}`, access: read(...sets[turn % sets.length]) });
  }
  rev = await pod.put(db, 'x', { _rev: rev, text: 'last', access: read('ann', 'bob') });
  await Promise.all([ann.has('x', 'last'), bob.has('x', 'last'), cat.gone('x')]);
  await cat.local.put({ _id: 'after', access: read('ann', 'cat') });
  await ann.has('after');
  assert.equal((await isWhole(db, 'x'))._rev, rev);
  await closeAll(ann, bob, cat);
});

test('a role that is taken and given back takes its documents along', async () => {
  const db = await app();
  await pod.makeUser('eva', ['staff']);
  const [eva, ann] = clientsOf(db, 'eva', 'ann').map((c) => c.online());
  const docs = Array.from({ length: 20 }, (_, n) => ({ _id: `s${n}`, text: `s${n}`, access: { read: ['role:staff', 'user:ann'] } }));
  await pod.ok('POST', `/${db}/_bulk_docs`, { body: { docs } });
  await pod.put(db, 'own', { text: 'own', access: read('eva') });
  const count = async (client) => (await client.local.allDocs()).rows.length;
  await until(async () => await count(eva) === 21 && await count(ann) === 20, 'all to have their documents');
  for (let round = 1; round <= 4; round++) {
    await pod.makeUser('eva', []);
    await until(async () => await count(eva) === 1, `eva to have lost the documents (${round})`, 20_000);
    assert.equal(await count(ann), 20);
    await pod.makeUser('eva', ['staff']);
    await until(async () => await count(eva) === 21, `eva to have the documents again (${round})`, 20_000);
    assert.equal((await eva.get('s7')).text, 's7');
  }
  await eva.edit('s3', { text: 'from eva' });
  await ann.has('s3', 'from eva');
  await ann.edit('s3', { text: 'from ann' });
  await eva.has('s3', 'from ann');
  assert.deepEqual([...eva.denied, ...ann.denied], []);
  for (const id of ['s3', 's4']) await isWhole(db, id);
  await closeAll(eva, ann);
});

test('a role that is given while its holder is offline shows at the next sync', async () => {
  const db = await app();
  await pod.makeUser('fay', []);
  const [fay] = clientsOf(db, 'fay');
  await pod.put(db, 'old', { text: 'old', access: { read: ['role:crew'] } });
  await pod.put(db, 'own', { text: 'own', access: read('fay') });
  await fay.sync();
  assert.deepEqual(Object.keys(await fay.all()), ['own']);
  await pod.makeUser('fay', ['crew']);
  await fay.sync();
  assert.deepEqual(Object.keys(await fay.all()), ['old', 'own'], 'an old document of a new role is filled in');
  await pod.makeUser('fay', []);
  await fay.sync();
  assert.deepEqual(Object.keys(await fay.all()), ['own']);
});

test('new rules of the app move the documents that they concern, with progress shown', async () => {
  const rule = (...who) => ({ rules: [{ selector: { type: 'note' }, read: who, write: ['user:${owner}'] }] });
  const db = await app(rule('user:${owner}'));
  const count = 10_000;
  for (let from = 0; from < count; from += 1000) {
    const docs = Array.from({ length: 1000 }, (_, n) => ({ _id: `n${from + n}`, type: 'note', owner: n % 2 ? 'ann' : 'bob', text: 'x'.repeat(50) }));
    await pod.ok('POST', `/${db}/_bulk_docs`, { body: { docs } });
  }
  await pod.put(db, 'fixed', { type: 'note', owner: 'ann', access: read('cat') });
  const total = async (user) => (await pod.ok('GET', `/${db}--me`, { as: user })).doc_count;
  assert.deepEqual([await total('ann'), await total('bob'), await total('cat')], [count / 2, count / 2, 1]);
  const seen = [];
  await pod.settings(db, rule('user:${owner}', 'user:cat'));
  await until(async () => {
    const task = (await pod.ok('GET', '/_active_tasks')).find((t) => t.type === 'access_repartition' && t.database === db);
    if (task) seen.push(task);
    return await total('cat') === count + 1;
  }, 'cat to have all notes', 60_000);
  assert.ok(seen.length > 0, 'the task was shown');
  for (const task of seen) assert.ok(task.progress >= 0 && task.progress <= 100 && task.changes_done <= task.total_changes, JSON.stringify(task));
  assert.deepEqual([await total('ann'), await total('bob')], [count / 2, count / 2]);
  assert.deepEqual(await partsOf(db, 'n1'), [`${db}--${signature(['user:ann', 'user:cat'])}`]);
  await pod.settings(db, rule('user:cat'));
  await until(async () => await total('ann') === 0 && await total('bob') === 0, 'ann and bob to have lost all', 60_000);
  assert.equal(await total('cat'), count + 1);
  const bad = await pod.send('PUT', `/_ring/app:${db}`, { body: { ...(await pod.get('_ring', `app:${db}`)), rules: [{ selector: {}, read: ['everyone'] }] } });
  assert.equal(bad.status, 400);
  assert.match(bad.json.reason, /rules/);
});

test("new rules reach a client as moves do: gone, and back again with the content", async () => {
  const rule = (...who) => ({ rules: [{ selector: { type: 'note' }, read: who, write: ['user:${owner}'] }] });
  const db = await app(rule('user:${owner}', 'user:bob'));
  const [ann, bob] = clientsOf(db, 'ann', 'bob').map((c) => c.online());
  await ann.local.put({ _id: 'x', type: 'note', owner: 'ann', text: 'by rule' });
  await bob.has('x', 'by rule');
  for (let round = 0; round < 3; round++) {
    await pod.settings(db, rule('user:${owner}'));
    await bob.gone('x');
    await pod.settings(db, rule('user:${owner}', 'user:bob'));
    await bob.has('x', 'by rule');
    assert.equal((await ann.get('x')).text, 'by rule');
  }
  await ann.edit('x', { text: 'later' });
  await bob.has('x', 'later');
  await bob.offline();
  assert.deepEqual(ann.denied, []);
  await closeAll(ann);
});

test("a move's tombstone that a client pushes is known, and changes nothing for others", async () => {
  const db = await app();
  let rev = await pod.put(db, 'x', { text: 'one', access: read('ann', 'bob') }, 'ann');
  const since = (await pod.ok('GET', `/${db}--me/_changes`, { as: 'bob' })).last_seq;
  rev = await pod.put(db, 'x', { _rev: rev, text: 'two', access: read('ann') }, 'ann');
  const { results: [row] } = await pod.ok('GET', `/${db}--me/_changes?since=${encodeURIComponent(since)}`, { as: 'bob' });
  assert.equal(row.id, 'x');
  assert.equal(row.deleted, true);
  const tomb = row.changes[0].rev;
  assert.match(tomb, /^2-/);
  const doc = await pod.get(`${db}--me`, 'x', 'bob', `?rev=${tomb}&revs=true`);
  assert.deepEqual(Object.keys(doc).sort(), ['_deleted', '_id', '_rev', '_revisions']);
  assert.equal(doc._revisions.start, 2);
  for (const as of ['bob', 'cat', 'ann']) {
    for (const path of [`/${db}--me`, `/${db}`]) {
      const diff = await pod.send('POST', `/${db}--me/_revs_diff`, { as, body: { x: [tomb] } });
      assert.equal(diff.status, 200);
      const push = await pod.send('POST', `${path}/_bulk_docs`, { as, body: { docs: [doc], new_edits: false } });
      assert.equal(push.status, 201, push.text);
    }
  }
  const diff = await pod.ok('POST', `/${db}--me/_revs_diff`, { as: 'bob', body: { x: [tomb] } });
  assert.deepEqual(diff, {}, 'bob need not push it');
  assert.equal((await isWhole(db, 'x'))._rev, rev);
  assert.equal((await pod.get(`${db}--me`, 'x', 'ann'))._rev, rev);
  const leaves = await pod.ok('GET', `/${db}/x?open_revs=all`);
  assert.equal(leaves.length, 1);
});

test('two users edit the same document offline: the second is denied, and nothing forks', async () => {
  const db = await app();
  const [ann, bob] = clientsOf(db, 'ann', 'bob');
  await ann.local.put({ _id: 'x', text: 'base', access: read('ann', 'bob') });
  await ann.sync(); await bob.sync();
  await ann.edit('x', { text: 'by ann' });
  const bobRev = (await bob.edit('x', { text: 'by bob' })).rev;
  await ann.sync();
  await bob.sync();
  assert.equal(bob.denied.length, 1);
  assert.equal((await isWhole(db, 'x')).text, 'by ann');
  assert.equal((await ann.get('x')).text, 'by ann');
  // Bob has both locally, as with any CouchDB; his app keeps one, and goes on from there.
  const here = await bob.get('x', { conflicts: true });
  const all = [here._rev, ...(here._conflicts ?? [])].sort();
  assert.deepEqual(all.map((r) => r.split('-')[0]), ['2', '2']);
  assert.ok(all.includes(bobRev));
  await bob.local.remove('x', bobRev);
  await bob.edit('x', { text: 'by both' });
  await bob.sync(); await ann.sync();
  assert.equal((await ann.get('x')).text, 'by both');
  assert.equal((await isWhole(db, 'x')).text, 'by both');
});

test('a first read by somebody else does not turn an edit into a conflict', async () => {
  const db = await app();
  const [ann, phone] = clientsOf(db, 'ann', 'ann');
  await ann.local.put({ _id: 'x', text: 'one', access: read('ann') }); await ann.sync();
  await ann.edit('x', { text: 'two', access: read('ann', 'bob') }); await ann.sync();
  // While ann edits offline, her new phone and bob read everything from the start.
  await ann.edit('x', { text: 'three' });
  await phone.sync();
  await pod.ok('GET', `/${db}--me/_changes`, { as: 'bob' });
  await ann.sync();
  assert.deepEqual(ann.denied, []);
  // The revision that the first reads brought about is closed: that leaves a dead leaf, and no live one beside ann's.
  const doc = await pod.get(db, 'x', 'admin', '?conflicts=true');
  assert.deepEqual([doc.text, doc._conflicts], ['three', undefined]);
  await phone.sync();
  assert.equal((await phone.get('x')).text, 'three');
  const rev = await pod.put(db, 'y', { text: 'one', access: read('ann') }, 'ann');
  const moved = await pod.put(db, 'y', { _rev: rev, text: 'two', access: read('ann', 'bob') }, 'ann');
  await pod.ok('GET', `/${db}--me/_changes`, { as: 'bob' });
  await pod.put(db, 'y', { _rev: moved, text: 'three', access: read('ann', 'bob') }, 'ann');
});

/** One pull that leaves no checkpoint, as when the connection goes before one is written: the next begins at the start again. */
async function pull(client) { await client.local.replicate.from(client.remote, { checkpoint: false }); }
const idsOf = async (db, user) => (await pod.ok('GET', `/${db}--me/_changes`, { as: user })).results.map((row) => row.id);

test('a device that begins anew is told what has left since, and nobody is told of what they were never given', async () => {
  const db = await app();
  await Promise.all([pod.makeUser('eve', ['staff']), pod.makeUser('fay', ['staff'])]);
  const [bob, eve] = clientsOf(db, 'bob', 'eve');
  const named = await pod.put(db, 'named', { text: 'one', access: read('ann', 'bob', 'dan') }, 'ann');
  await pod.put(db, 'early', { text: 'one', access: read('role:staff') }, 'admin');
  await Promise.all([pull(bob), pull(eve)]);
  assert.deepEqual([(await bob.get('named')).text, (await eve.get('early')).text], ['one', 'one']);
  // The pod forgets nothing when it dies: the next commit takes along what it has to remember.
  await pod.put(db, 'another', { access: read('ann') }, 'ann');
  const killed = pod.kill('rean');
  await until(() => pod.pid('rean') && pod.pid('rean') !== killed, 'rean to be started again');
  await pod.up();
  const hide = () => pod.send('PUT', `/${db}/named`, { as: 'ann', body: { _rev: named, text: 'two', access: read('ann') } });
  await until(async () => [201, 409].includes((await hide()).status), 'a write to be taken');
  await pod.makeUser('eve', []);
  await pod.put(db, 'late', { text: 'one', access: read('role:staff') }, 'admin');
  await Promise.all([pull(bob), pull(eve)]);
  assert.deepEqual([await bob.get('named'), await eve.get('early')], [null, null]);
  // Dan was among the readers and never read; what came after eve's time, and what staff lost before gil's, isn't theirs.
  const early = await pod.get(db, 'early', 'admin');
  await pod.put(db, 'early', { ...early, access: read('ann') }, 'admin');
  await pod.makeUser('gil', ['staff']);
  assert.deepEqual(await idsOf(db, 'dan'), []);
  assert.deepEqual((await idsOf(db, 'eve')), ['early']);
  assert.deepEqual(await idsOf(db, 'gil'), ['late']);
  assert.deepEqual(await idsOf(db, 'fay'), ['late']);
  // An administrator's look at a partial database is nobody's reading: it is shown as to somebody whom it names.
  await pod.put(db, 'both', { access: read('dan', 'role:staff') }, 'admin');
  const { partials } = await pod.ok('GET', `/${db}/_access`);
  for (const partial of partials) await pod.ok('GET', `/${partial.db}/_changes`);
  assert.deepEqual(await idsOf(db, 'dan'), ['both']);
  // Who has the role again has the documents again, on the old device too.
  await pod.makeUser('eve', ['staff']);
  await pod.put(db, 'early', { ...(await pod.get(db, 'early', 'admin')), text: 'two', access: read('role:staff') }, 'admin');
  await pull(eve);
  assert.deepEqual([(await eve.get('early')).text, (await eve.get('late')).text], ['two', 'one']);
  assert.deepEqual([...bob.denied, ...eve.denied], []);
});

test('a new account with the name of one that was removed is told nothing of what that one was given', async () => {
  const db = await app();
  await pod.makeUser('hal');
  const rev = await pod.put(db, 'x', { text: 'one', access: read('ann', 'hal') }, 'ann');
  assert.deepEqual(await idsOf(db, 'hal'), ['x']);
  await pod.put(db, 'x', { _rev: rev, text: 'two', access: read('ann') }, 'ann');
  assert.deepEqual(await idsOf(db, 'hal'), ['x']);
  const account = await pod.ok('GET', '/_users/org.couchdb.user:hal');
  await pod.ok('DELETE', `/_users/org.couchdb.user:hal?rev=${account._rev}`);
  await pod.makeUser('hal');
  await until(async () => (await idsOf(db, 'hal')).length === 0, 'hal to be somebody else');
});

test('attachments move with their document', async () => {
  const db = await app();
  const [ann, bob] = clientsOf(db, 'ann', 'bob').map((c) => c.online());
  const data = Buffer.from('a picture '.repeat(5000));
  await ann.local.put({ _id: 'x', text: 'one', access: read('ann', 'bob'), _attachments: { 'p.bin': { content_type: 'application/x', data: data.toString('base64') } } });
  await bob.has('x', 'one');
  assert.ok(data.equals(await bob.local.getAttachment('x', 'p.bin')));
  await ann.edit('x', { access: read('ann') });
  await bob.gone('x');
  assert.equal((await pod.send('GET', `/${db}--me/x/p.bin`, { as: 'bob' })).status, 404);
  await ann.edit('x', { text: 'back', access: read('ann', 'bob') });
  await bob.has('x', 'back');
  assert.ok(data.equals(await bob.local.getAttachment('x', 'p.bin')));
  await closeAll(ann, bob);
});
