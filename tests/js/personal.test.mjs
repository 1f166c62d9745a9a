// `notes--me`: one URL for all that a user may read, whatever the number of partial databases behind it.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import nano from 'nano';
import { Client, read } from './lib/clients.mjs';
import { Pod } from './lib/pod.mjs';
import { until } from './lib/wait.mjs';

const SIGNATURES = 30, DOCS = 300;
const ids = Array.from({ length: DOCS }, (_, n) => `d${String(n).padStart(3, '0')}`);
const enc = encodeURIComponent;
let pod, apps = 0;

before(async () => {
  pod = await Pod.start();
  await Promise.all(['ann', 'bob', 'cat'].map((name) => pod.makeUser(name)));
});
after(() => pod?.stop());

/** An app with 300 documents of ann over 30 partial databases, and as many that she can't read. */
async function filled() {
  const db = `notes${++apps}`;
  await pod.makeApp(db);
  const docs = ids.flatMap((id, n) => [
    { _id: id, n, access: { read: ['user:ann', `role:r${n % SIGNATURES}`] } },
    { _id: `x${id}`, access: { read: ['user:cat', `role:r${n % 7}`] } },
  ]);
  await pod.ok('POST', `/${db}/_bulk_docs`, { body: { docs } });
  return db;
}
const keys = (answer) => answer.rows.map((row) => row.id);

test('counts are those of what the user may read', async () => {
  const db = await filled();
  const info = await pod.ok('GET', `/${db}--me`, { as: 'ann' });
  assert.equal(info.doc_count, DOCS);
  assert.equal(info.db_name, `${db}--me`);
  assert.equal((await pod.ok('GET', `/${db}--me/_all_docs?limit=0`, { as: 'ann' })).total_rows, DOCS);
  assert.equal((await pod.ok('GET', `/${db}--me`, { as: 'bob' })).doc_count, 0);
  const { personal, partials } = await pod.ok('GET', `/${db}/_access`, { as: 'ann' });
  assert.equal(personal, `${db}--me`);
  assert.equal(partials.length, SIGNATURES);
  assert.equal(partials.reduce((sum, part) => sum + part.doc_count, 0), DOCS);
  for (const part of partials) {
    assert.ok(part.readers.includes('user:ann'));
    assert.equal((await pod.ok('GET', `/${part.db}`, { as: 'ann' })).doc_count, part.doc_count);
  }
  await pod.ok('DELETE', `/${db}--me/d000?rev=${(await pod.get(`${db}--me`, 'd000', 'ann'))._rev}`, { as: 'ann' });
  const less = await pod.ok('GET', `/${db}--me`, { as: 'ann' });
  assert.deepEqual([less.doc_count, less.doc_del_count], [DOCS - 1, 1]);
});

test('_all_docs is one sorted list over the partial databases', async () => {
  const db = await filled();
  const list = async (query) => pod.ok('GET', `/${db}--me/_all_docs${query.replaceAll('"', '%22')}`, { as: 'ann' });
  assert.deepEqual(keys(await list('')), ids);
  assert.deepEqual(keys(await list('?descending=true')), ids.toReversed());
  assert.deepEqual(keys(await list('?limit=7&skip=40')), ids.slice(40, 47));
  assert.deepEqual(keys(await list('?descending=true&limit=7&skip=40')), ids.toReversed().slice(40, 47));
  assert.deepEqual(keys(await list('?startkey="d100"&endkey="d120"')), ids.slice(100, 121));
  assert.deepEqual(keys(await list('?startkey="d100"&endkey="d120"&inclusive_end=false')), ids.slice(100, 120));
  assert.deepEqual(keys(await list('?startkey="d120"&endkey="d100"&descending=true&limit=5')), ids.slice(116, 121).toReversed());
  assert.deepEqual(keys(await list('?startkey="d2999"')), []);
  assert.deepEqual((await list('?keys=["d001","xd001","nosuch"]')).rows.map((row) => row.value ? row.id : row.error), ['d001', 'not_found', 'not_found']);
  const full = await list('?include_docs=true');
  assert.deepEqual(full.rows.map((row) => row.doc.n), ids.map((_, n) => n));
  // Page by page, as apps do.
  const seen = [];
  for (let start = '', page; ; start = `?startkey=${enc(JSON.stringify(page.at(-1)))}&skip=1`) {
    page = keys(await list(`${start || '?'}&limit=64`));
    seen.push(...page);
    if (page.length < 64) break;
  }
  assert.deepEqual(seen, ids);
});

test('_changes can be read page by page, and each document comes once', async () => {
  const db = await filled();
  for (const limit of [1, 7, 50, 299, 300, 301]) {
    const seen = [];
    let since = '0';
    for (let turn = 0; ; turn++) {
      assert.ok(turn <= DOCS + 1, 'it comes to an end');
      const page = await pod.ok('GET', `/${db}--me/_changes?limit=${limit}&since=${enc(since)}`, { as: 'ann' });
      seen.push(...page.results.map((row) => row.id));
      assert.equal(page.pending, DOCS - seen.length, 'what is still to come');
      since = page.last_seq;
      if (page.results.length < limit) break;
      if (limit === 1 && seen.length === 20) break;
    }
    assert.equal(new Set(seen).size, seen.length, 'no document twice');
    if (limit > 1) assert.deepEqual(seen.toSorted(), ids);
  }
  const back = await pod.ok('GET', `/${db}--me/_changes?descending=true&limit=5`, { as: 'ann' });
  const forth = await pod.ok('GET', `/${db}--me/_changes`, { as: 'ann' });
  assert.deepEqual(back.results.map((row) => row.id), forth.results.map((row) => row.id).toReversed().slice(0, 5));
  // From any place on, all that came after it.
  for (const at of [0, 17, 150, 298]) {
    const rest = await pod.ok('GET', `/${db}--me/_changes?since=${enc(forth.results[at].seq)}`, { as: 'ann' });
    assert.deepEqual(rest.results.map((row) => row.id), forth.results.slice(at + 1).map((row) => row.id));
  }
});

test("every row's seq is a place after that row, also where documents have moved", async () => {
  const db = `notes${++apps}`;
  await pod.makeApp(db);
  // Moves within ann's sight, to and fro between partial databases that were made in either order.
  const sets = [['ann'], ['ann', 'bob'], ['ann', 'cat'], ['users', 'ann'], ['anyone', 'ann']];
  for (const [n, from] of sets.entries()) await pod.put(db, `made${n}`, { access: read(...from) }, 'ann');
  const first = (await pod.ok('GET', `/${db}--me/_changes`, { as: 'ann' })).last_seq;
  for (const from of sets) {
    for (const to of sets) {
      const id = `from-${from.at(0)}${from.at(1)}-to-${to.at(0)}${to.at(1)}`;
      const rev = await pod.put(db, id, { access: read(...from) }, 'ann');
      await pod.put(db, id, { _rev: rev, access: read(...to) }, 'ann');
    }
  }
  for (const [as, since] of [['ann', '0'], ['ann', first], ['bob', '0'], ['cat', '0']]) {
    const { results } = await pod.ok('GET', `/${db}--me/_changes?since=${enc(since)}`, { as });
    for (const row of results) {
      const next = await pod.ok('GET', `/${db}--me/_changes?limit=3&since=${enc(row.seq)}`, { as });
      assert.ok(!next.results.some((later) => later.seq === row.seq), `${as}: the place of ${row.id} gives rows after it`);
      assert.ok(!next.results.some((later) => later.id === row.id && later.changes[0].rev === row.changes[0].rev), `${as}: the place of ${row.id} gives it again`);
    }
    // As PouchDB goes on: from the last row's seq until there are none.
    let place = results.at(-1)?.seq ?? '0', turns = 0;
    for (let page; (page = await pod.ok('GET', `/${db}--me/_changes?limit=10&since=${enc(place)}`, { as })).results.length; place = page.results.at(-1).seq) {
      assert.ok(++turns < 20, `${as}: it comes to an end`);
    }
  }
  // Moves one after the other, each looked at on its own.
  let rev, place = '0';
  for (let turn = 0; turn < 20; turn++) {
    rev = await pod.put(db, 'walker', { _rev: rev, turn, access: read(...sets[turn % sets.length]) }, 'ann');
    const page = await pod.ok('GET', `/${db}--me/_changes?since=${enc(place)}`, { as: 'ann' });
    place = page.results.at(-1).seq;
    assert.deepEqual((await pod.ok('GET', `/${db}--me/_changes?since=${enc(place)}`, { as: 'ann' })).results, [], `turn ${turn}`);
    rev = (await pod.get(`${db}--me`, 'walker', 'ann'))._rev;
  }
});

test('live feeds tell within a second, in each form', async () => {
  const db = await filled();
  const since = (await pod.ok('GET', `/${db}--me/_changes?since=now`, { as: 'ann' })).last_seq;
  const feed = pod.follow(`/${db}--me/_changes?feed=continuous&heartbeat=500&include_docs=true&since=${enc(since)}`, { as: 'ann' });
  await until(() => feed.status === 200, 'the feed');
  const long = pod.send('GET', `/${db}--me/_changes?feed=longpoll&since=${enc(since)}`, { as: 'ann', agent: false });
  for (let n = 0; n < 5; n++) {
    await pod.put(db, `new${n}`, { n, access: { read: [`role:new${n}`, 'user:ann'] } });
    await until(() => feed.lines.length === n + 1, `row ${n}`, 1000);
    assert.equal(feed.lines[n].id, `new${n}`);
    assert.equal(feed.lines[n].doc.n, n);
  }
  assert.deepEqual((await long).json.results.map((row) => row.id), ['new0']);
  feed.close();
  const events = await pod.send('GET', `/${db}--me/_changes?feed=eventsource&timeout=100&since=${enc(since)}`, { as: 'ann' });
  assert.equal(events.text.match(/^data: \{/gm).length, 5);
  assert.match(events.headers['content-type'], /^text\/event-stream/);
});

test('PouchDB pulls it in small batches, and goes on from its checkpoint', async () => {
  const db = await filled();
  const ann = new Client(pod, 'ann', `${db}--me`);
  const first = await ann.local.replicate.from(ann.remote, { batch_size: 10 });
  assert.deepEqual([first.ok, first.docs_written], [true, DOCS]);
  assert.deepEqual(Object.keys(await ann.all()), ids);
  const again = await ann.local.replicate.from(ann.remote, { batch_size: 10 });
  assert.equal(again.docs_read, 0, 'the checkpoint holds');
  await pod.put(db, 'one-more', { access: { read: ['user:ann', 'role:r3'] } });
  const third = await ann.local.replicate.from(ann.remote, { batch_size: 10 });
  assert.equal(third.docs_written, 1);
  // And after the pod was stopped and started.
  await pod.restart();
  const fourth = await ann.local.replicate.from(ann.remote, { batch_size: 10 });
  assert.equal(fourth.docs_read, 0, 'the checkpoint holds over a restart');
  await ann.close();
});

test('two users who sync against the same URL have checkpoints of their own', async () => {
  const db = await filled();
  const [ann, cat] = ['ann', 'cat'].map((user) => new Client(pod, user, `${db}--me`));
  await ann.sync(); await cat.sync();
  assert.deepEqual(Object.keys(await ann.all()), ids);
  assert.deepEqual(Object.keys(await cat.all()), ids.map((id) => `x${id}`));
  assert.equal((await ann.local.replicate.from(ann.remote)).docs_read, 0);
  assert.equal((await cat.local.replicate.from(cat.remote)).docs_read, 0);
  const locals = async (user) => (await pod.ok('GET', `/${db}--me/_local_docs`, { as: user })).rows.map((row) => row.id);
  assert.ok((await locals('ann')).length >= 1);
  assert.deepEqual(await locals('bob'), []);
  await ann.close(); await cat.close();
});

test('attachments go both ways', async () => {
  const db = `notes${++apps}`;
  await pod.makeApp(db);
  const [ann, bob] = ['ann', 'bob'].map((user) => new Client(pod, user, `${db}--me`));
  const bytes = Buffer.from(Array.from({ length: 300_000 }, (_, n) => (n * 7919) & 255));
  await ann.local.put({ _id: 'x', access: read('ann', 'bob'), _attachments: { 'a/b c.bin': { content_type: 'image/png', data: bytes.toString('base64') }, empty: { content_type: 'text/plain', data: '' } } });
  await ann.sync(); await bob.sync();
  assert.ok(bytes.equals(await bob.local.getAttachment('x', 'a/b c.bin')));
  const doc = await bob.get('x');
  await bob.local.putAttachment('x', 'note.txt', doc._rev, Buffer.from('hello'), 'text/plain');
  await bob.sync(); await ann.sync();
  assert.equal((await ann.local.getAttachment('x', 'note.txt')).toString(), 'hello');
  assert.ok(bytes.equals(await ann.local.getAttachment('x', 'a/b c.bin')));
  const part = await pod.send('GET', `/${db}--me/x/a/b%20c.bin`, { as: 'bob', headers: { range: 'bytes=1000-1999' } });
  assert.equal(part.status, 206);
  assert.ok(part.raw.equals(bytes.subarray(1000, 2000)));
  const rev = (await pod.get(`${db}--me`, 'x', 'bob'))._rev;
  await pod.ok('DELETE', `/${db}--me/x/note.txt?rev=${rev}`, { as: 'bob' });
  await ann.sync();
  assert.deepEqual(Object.keys((await ann.get('x'))._attachments).sort(), ['a/b c.bin', 'empty']);
  await ann.close(); await bob.close();
});

test('nano works on it', async () => {
  const db = `notes${++apps}`;
  await pod.makeApp(db);
  const notes = nano({ url: pod.url('', 'ann') }).use(`${db}--me`);
  const { rev } = await notes.insert({ text: 'hi', access: read('ann', 'bob') }, 'x');
  assert.equal((await notes.get('x')).text, 'hi');
  assert.equal((await nano({ url: pod.url('', 'bob') }).use(`${db}--me`).list()).rows.length, 1);
  const results = await notes.bulk({ docs: [{ _id: 'x', _rev: rev, text: 'ho', access: read('ann') }, { _id: 'y', access: read('ann') }] });
  assert.deepEqual(results.map((row) => row.error), [undefined, undefined]);
  assert.equal((await nano({ url: pod.url('', 'bob') }).use(`${db}--me`).list()).rows.length, 0);
  await assert.rejects(notes.insert({ text: 'again', access: read('ann') }, 'x'), { statusCode: 409 });
  await notes.destroy('x', results[0].rev);
  await assert.rejects(notes.get('x'), { statusCode: 404 });
  await assert.rejects(nano({ url: pod.url('', 'bob') }).use(db).list(), { statusCode: 403 });
});

test('curl sends quotes as they are, and is understood', async () => {
  const db = `notes${++apps}`;
  await pod.makeApp(db);
  for (const id of ['a', 'b', 'c']) await pod.put(`${db}--me`, id, { access: read('ann') }, 'ann');
  const { stdout } = await promisify(execFile)('curl', ['-s', `${pod.url(`${db}--me`, 'ann').replace("'", '%27')}/_all_docs?startkey="b"`]);
  assert.deepEqual(keys(JSON.parse(stdout)), ['b', 'c']);
});

test('it is there for someone who has nothing, and for nobody where there is no app', async () => {
  const db = `notes${++apps}`;
  await pod.makeApp(db);
  for (const as of ['bob', null]) {
    assert.deepEqual((await pod.ok('GET', `/${db}--me/_all_docs`, { as })).rows, []);
    assert.deepEqual((await pod.ok('GET', `/${db}--me/_changes`, { as })).results, []);
    assert.equal((await pod.send('GET', '/nosuch--me', { as })).status, 404);
    assert.equal((await pod.send('GET', '/_users--me', { as })).status, 404);
  }
  await pod.ok('PUT', `/plain${apps}`);
  assert.equal((await pod.send('GET', `/plain${apps}--me`)).status, 404);
});
