// Import from another server, export to it, backup and restore, with podctl as an operator calls it; and with the tool
// that CouchDB's users back up with.
import couchbackup from '@cloudant/couchbackup';
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import crypto from 'node:crypto';
import { createReadStream, createWriteStream, existsSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Far } from './lib/far.mjs';
import { PROGRAM, Pod } from './lib/pod.mjs';

const LARGE = crypto.randomBytes(3_000_000);
let pod, other, far, folder;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'adea-import-'));
  [pod, other, far] = await Promise.all([Pod.start({ args: ['--couch-cookie'] }), Pod.start(), Far.start({ include: ['routes/security'] })]);
});
after(async () => {
  await Promise.all([pod?.stop(), other?.stop(), far?.vanish()]);
  rmSync(folder, { recursive: true, force: true });
});

/** Runs podctl to its end. */
function podctl(args, { env = {}, kill } = {}) {
  const clean = { ...process.env, ADEA_PASSWORD: undefined, COUCHDB_PASSWORD: undefined, ...env };
  for (const name in clean) if (clean[name] === undefined) delete clean[name];
  const child = spawn(PROGRAM, args, { stdio: ['ignore', 'pipe', 'pipe'], env: clean });
  let out = '', err = '';
  child.stdout.on('data', (data) => { out += data; kill?.(out, child); });
  child.stderr.on('data', (data) => { err += data; });
  return new Promise((resolve) => child.on('close', (code, signal) => {
    const events = out.split('\n').filter((line) => line.startsWith('{')).map((line) => JSON.parse(line));
    resolve({ code, signal, out, err, events });
  }));
}
const at = (which) => ['--data', which.data];

const asks = {
  pod: (which) => (method, path, body, type) => which.send(method, path, { body, headers: type ? { 'content-type': type } : {} }),
  far: (method, path, body, type) => far.send(method, path, body, type),
};

/** A database with documents of all kinds. */
async function fill(ask, db, more = {}) {
  const ok = async (...args) => {
    const answer = await ask(...args);
    assert.ok(answer.status < 300, `${args[0]} ${args[1]}: ${answer.status} ${answer.raw}`);
    return answer.json;
  };
  const docs = Array.from({ length: 700 }, (_, n) => ({ _id: `d${n}`, n, text: 'é'.repeat(n), ...more }));
  const rows = await ok('POST', `/${db}/_bulk_docs`, { docs });
  await ok('DELETE', `/${db}/d0?rev=${rows[0].rev}`);
  await ok('PUT', `/${db}/d1/small.txt?rev=${rows[1].rev}`, Buffer.from('small'), 'text/plain');
  const { rev } = await ok('PUT', `/${db}/big/a%20large%20one`, LARGE, 'application/octet-stream');
  await ok('PUT', `/${db}/big/b.bin?rev=${rev}`, Buffer.alloc(200_000, 1), 'application/octet-stream');
  await ok('PUT', `/${db}/with%2Fslash%20%C3%A9`, { slash: true, ...more });
  const branch = (letter) => {
    const ids = [letter.repeat(32), 'b'.repeat(32)];
    return { _id: 'k', _rev: `2-${ids[0]}`, _revisions: { start: 2, ids }, letter, ...more };
  };
  await ok('POST', `/${db}/_bulk_docs`, { new_edits: false, docs: [branch('a'), branch('c')] });
}

/** What is to be the same on both sides. */
async function content(ask, db) {
  const docs = (await ask('GET', `/${db}/_all_docs?include_docs=true&conflicts=true`)).json.rows.map(({ doc }) => doc);
  // Each side has digests and stubs of its own making.
  for (const doc of docs) doc._attachments &&= Object.entries(doc._attachments).map(([name, { length, content_type: type }]) => [name, length, type]).sort();
  const gone = (await ask('POST', `/${db}/_all_docs`, { keys: ['d0'] })).json.rows[0].value;
  const attachments = await Promise.all(['d1/small.txt', 'big/a%20large%20one', 'big/b.bin'].map(async (path) => (await ask('GET', `/${db}/${path}`)).raw.toString('base64')));
  return { docs, gone, attachments };
}

const pbkdf2 = (password, prf, iterations) => {
  const salt = crypto.randomBytes(16).toString('hex');
  const derived_key = crypto.pbkdf2Sync(password, salt, iterations, prf === 'sha' ? 20 : 32, prf === 'sha' ? 'sha1' : prf).toString('hex');
  return { password_scheme: 'pbkdf2', derived_key, salt, iterations, ...(prf === 'sha' ? {} : { pbkdf2_prf: prf }) };
};
const ACCOUNTS = {
  old: () => pbkdf2('the old one', 'sha', 10),
  new: () => pbkdf2('the new one', 'sha256', 50_000),
  ancient: () => ({ password_sha: crypto.createHash('sha1').update('the ancient one' + 'salt').digest('hex'), salt: 'salt' }),
};

async function account(name, members) {
  await far.send('PUT', '/_users');
  const answer = await far.send('PUT', `/_users/org.couchdb.user:${name}`, { type: 'user', name, roles: ['staff'], ...members });
  assert.equal(answer.status, 201, answer.raw.toString());
}

test('databases and accounts come in, and passwords stay as they were', async () => {
  await far.send('PUT', '/mine');
  await fill(asks.far, 'mine');
  await far.send('PUT', '/mine/_security', { admins: { names: [], roles: [] }, members: { names: [], roles: ['staff'] } });
  // It would refuse everything else if it came first.
  await far.send('PUT', '/mine/_design/strict', { language: 'javascript', validate_doc_update: 'function () { throw({forbidden: "no"}); }' });
  await far.send('PUT', '/two--hyphens');
  await far.send('PUT', '/two--hyphens/x', { a: 1 });
  for (const [name, members] of Object.entries(ACCOUNTS)) await account(name, members());
  await account('odd', { password_scheme: 'pbkdf2', derived_key: 'zz', salt: '', iterations: 10 });

  const refused = await podctl(['import', far.base, ...at(pod)]);
  assert.equal(refused.code, 1, refused.err);
  assert.match(refused.err, /two--hyphens.*OLD=NEW|OLD=NEW.*two--hyphens/s);
  assert.equal((await pod.send('GET', '/mine')).status, 404);

  const all = ['--db', '_users', '--db', 'mine', '--db', 'two--hyphens=two-hyphens'];
  const done = await podctl(['import', far.base, ...all, '--json', ...at(pod)]);
  // The account whose hash can't be one is told of, and all else is there.
  assert.equal(done.code, 1, done.err);
  assert.match(done.err, /1 documents were refused/);
  const event = (name, db) => done.events.find((event) => event.event === name && (!db || event.db === db));
  assert.equal(event('refused').id, 'org.couchdb.user:odd');
  assert.match(event('refused').reason, /pbkdf2/);
  assert.equal(event('done', 'mine').differences, 0, JSON.stringify(done.events));
  assert.equal(event('done', 'mine').refused, 0);
  const { source, target } = event('compared', 'mine');
  assert.equal(target.doc_count, source.doc_count);
  assert.deepEqual(await content(asks.pod(pod), 'mine'), await content(asks.far, 'mine'));
  assert.equal((await pod.get('two-hyphens', 'x')).a, 1);
  assert.deepEqual((await pod.ok('GET', '/mine/_security')).members.roles, ['staff']);

  for (const name of Object.keys(ACCOUNTS)) {
    const right = { name, password: `the ${name} one` };
    assert.equal((await pod.send('GET', '/mine/d5', { as: { ...right, password: 'wrong' } })).status, 401, name);
    const doc = await pod.get('_users', `org.couchdb.user:${name}`);
    assert.notEqual(doc.password_scheme, 'argon2id');
    // A session that is begun with the old hash must not end with it.
    const session = await pod.ok('POST', '/_session', { as: null, body: right });
    assert.ok(session.ok, JSON.stringify(session));
    const hash = await pod.get('_users', `org.couchdb.user:${name}`);
    assert.equal(hash.password_scheme, 'argon2id', name);
    assert.deepEqual([hash.salt, hash.iterations, hash.password_sha, hash.password], [undefined, undefined, undefined, undefined]);
    assert.deepEqual(hash.roles, ['staff']);
    assert.equal((await pod.ok('GET', '/mine/d5', { as: right })).n, 5);
    assert.equal((await pod.send('GET', '/mine/d5', { as: { ...right, password: 'wrong' } })).status, 401, name);
    if (session.session) assert.equal((await pod.send('GET', '/mine/d5', { as: { name: session.session.name, password: session.session.password } })).status, 200);
  }

  // Again: nothing is doubled, and accounts that have logged in since are left alone.
  const again = await podctl(['import', far.base, ...all, ...at(pod)]);
  assert.equal(again.code, 1);
  assert.match(again.err, /--continue/);
  await far.send('PUT', '/two--hyphens/y', { b: 2 });
  const more = await podctl(['import', far.base, '--db', 'two--hyphens=two-hyphens', '--continue', ...at(pod)]);
  assert.equal(more.code, 0, more.err);
  assert.equal((await pod.get('two-hyphens', 'y')).b, 2);
  const users = await podctl(['import', far.base, '--db', '_users', '--continue', '--json', ...at(pod)]);
  assert.deepEqual(users.events.filter(({ event }) => event === 'refused').map(({ id }) => id), ['org.couchdb.user:odd']);
  assert.equal((await pod.get('_users', 'org.couchdb.user:old')).password_scheme, 'argon2id');
  for (const name of ['new', 'old']) assert.equal((await pod.send('GET', '/mine/d5', { as: { name, password: `the ${name} one` } })).status, 200);
});

test('documents come into an app by their access, and those that cannot are told of', async () => {
  await pod.makeUser('ann');
  await far.send('PUT', '/shared');
  await far.send('PUT', '/shared/hers', { access: { read: ['user:ann'] }, n: 1 });
  await far.send('PUT', '/shared/nobodys', { n: 2 });
  await far.send('PUT', '/shared/odd', { access: { read: 'everyone' } });
  const done = await podctl(['import', far.base, '--db', 'shared', '--access', '--json', ...at(pod)]);
  assert.equal(done.code, 1, done.err);
  assert.deepEqual(done.events.filter(({ event }) => event === 'refused').map(({ id }) => id), ['odd']);
  const mine = await pod.ok('GET', '/shared--me/_all_docs', { as: 'ann' });
  assert.deepEqual(mine.rows.map(({ id }) => id), ['hers']);

  const out = await podctl(['export', far.base, '--db', 'shared=back', ...at(pod)]);
  assert.equal(out.code, 0, out.err);
  const back = (await far.send('GET', '/back/_all_docs?include_docs=true')).json.rows.map(({ doc }) => doc);
  assert.deepEqual(back.map(({ _id }) => _id), ['hers', 'nobodys']);
  assert.deepEqual(back[0].access, { read: ['user:ann'] });
  const personal = await podctl(['export', far.base, '--from', `http://ann@127.0.0.1:${pod.port}`, '--db', 'shared--me=anns'], { env: { ADEA_PASSWORD: pod.users.ann } });
  assert.equal(personal.code, 0, personal.err);
  assert.deepEqual((await far.send('GET', '/anns/_all_docs')).json.rows.map(({ id }) => id), ['hers']);
});

test('one pod is another one\'s CouchDB: replications come at rest, an import that was killed goes on', async () => {
  await other.ok('PUT', '/many');
  for (let n = 0; n < 20; n += 1) {
    const docs = Array.from({ length: 1_000 }, (_, at) => ({ _id: `${n}-${at}`, text: 'x'.repeat(500) }));
    await other.ok('POST', '/many/_bulk_docs', { body: { docs } });
  }
  await other.ok('PUT', '/many/_revs_limit', { body: '17' });
  await other.ok('PUT', '/_replicator/r', { body: { source: `${far.base}/nowhere`, target: `${far.base}/nowhere-else`, continuous: true } });
  const from = `http://admin@127.0.0.1:${other.port}`, env = { COUCHDB_PASSWORD: other.admin.password };
  const wrong = await podctl(['import', from, ...at(pod)], { env: { COUCHDB_PASSWORD: 'wrong' } });
  assert.equal(wrong.code, 1);
  assert.match(wrong.err, /name or password is incorrect/i);
  const open = await podctl(['import', `http://admin:secret@127.0.0.1:${other.port}`, ...at(pod)]);
  assert.ok(open.code === 1 && /password/.test(open.err) && !open.err.includes('secret'), open.err);
  const nobody = await podctl(['import', from, ...at(pod)]);
  assert.match(nobody.err, /COUCHDB_PASSWORD/);

  let killed = false;
  await podctl(['import', from, '--db', 'many', '--json', ...at(pod)], { env, kill: (out, child) => { killed ||= out.includes('"begin"') && child.kill('SIGKILL'); } });
  const done = await podctl(['import', from, '--db', 'many', '--db', '_replicator', '--continue', '--json', ...at(pod)], { env });
  assert.equal(done.code, 0, done.err);
  assert.equal((await pod.ok('GET', '/many')).doc_count, 20_000);
  assert.equal(await pod.ok('GET', '/many/_revs_limit'), 17);
  const r = await pod.get('_replicator', 'r');
  assert.equal(r._replication_state, 'failed');
  assert.match(r._replication_state_reason, /not begun/);
  assert.equal((await pod.ok('GET', '/_scheduler/jobs')).total_rows, 0);
  const same = await podctl(['import', `http://admin@127.0.0.1:${pod.port}`, ...at(pod)], { env: { COUCHDB_PASSWORD: pod.admin.password } });
  assert.match(same.err, /same server/);
});

test('sources that are not there, are no CouchDB or lie are told of', async () => {
  const nowhere = await podctl(['import', 'http://127.0.0.1:1', ...at(pod)]);
  assert.ok(nowhere.code === 1 && /127\.0\.0\.1:1/.test(nowhere.err), nowhere.err);
  const lies = {
    '/': '{"hello":"world"}',
    '/round/': '{"couchdb":"Welcome","version":"3"}',
    '/round/db': '{"doc_count":1}',
    '/round/db/_changes': '{"results":[{"seq":0,"id":"a","changes":[{"rev":"1-a"}]}],"last_seq":0,"pending":1}',
    '/round/db/_bulk_get': '{"results":[]}',
    '/torn/': '{"couchdb":"Welcome","version":"3"}',
    '/torn/db': '{"doc_count":1}',
    '/torn/db/_changes': '{"results":[{"seq":1,"id":"a","ch',
  };
  const server = http.createServer((request, response) => {
    const text = lies[request.url.split('?')[0]];
    response.writeHead(text ? 200 : 404, { 'content-type': 'application/json' });
    response.end(text ?? '{"error":"not_found","reason":"missing"}');
  });
  await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
  const base = `http://127.0.0.1:${server.address().port}`;
  try {
    assert.match((await podctl(['import', base, ...at(pod)])).err, /no CouchDB/);
    const round = await podctl(['import', `${base}/round`, '--db', 'db=lie-1', ...at(pod)]);
    assert.ok(round.code === 1 && /don't go on/.test(round.err), round.err);
    const torn = await podctl(['import', `${base}/torn`, '--db', 'db=lie-2', ...at(pod)]);
    assert.ok(torn.code === 1 && /broke off/.test(torn.err) && /--continue/.test(torn.err), torn.err);
  } finally {
    server.close();
  }
});

test('a backup is one file of one moment, and what is restored from it is the same', async () => {
  for (const each of [pod, other]) await each.send('PUT', '/many');
  await pod.makeUser('bea', ['staff']);
  await pod.makeApp('notes', { create: ['role:staff'] });
  await fill(asks.pod(pod), 'notes', { access: { read: ['user:bea'] } });
  await pod.ok('PUT', '/notes/_design/d', { body: { language: 'javascript', views: {} } });
  await pod.ok('PUT', '/plain');
  await fill(asks.pod(pod), 'plain');
  await pod.ok('PUT', '/plain/_security', { body: { members: { roles: ['staff'] } } });
  await pod.ok('PUT', '/_replicator/r2', { body: { source: `${far.base}/nowhere`, target: `${far.base}/else`, continuous: true } });

  // While it is made, documents are written, moved and deleted.
  let stop = false, n = 0;
  const writing = (async () => {
    while (!stop) {
      n += 1;
      const rev = await pod.put('notes', `w${n}`, { access: { read: ['user:bea'] }, n });
      if (n % 3 === 0) await pod.ok('DELETE', `/notes/w${n}?rev=${rev}`);
    }
  })();
  const file = join(folder, 'pod.adea');
  const kept = await podctl(['backup', '--out', file, '--json', ...at(pod)]);
  stop = true;
  await writing;
  assert.equal(kept.code, 0, kept.err);
  assert.equal(statSync(file).mode & 0o777, 0o600);
  assert.ok(!existsSync(`${file}.part`));
  const { databases } = kept.events.find(({ event }) => event === 'backup');
  const inBackup = databases.find(({ name }) => name === 'notes');
  assert.ok(inBackup.app && databases.some(({ name }) => name === '_users') && !databases.some(({ name }) => name === '_ring'), JSON.stringify(databases));
  assert.match((await podctl(['backup', '--out', file, ...at(pod)])).err, /--force/);
  assert.ok(!readFileSync(file).includes('ring_secret'));

  const back = await podctl(['restore', file, '--json', ...at(other)]);
  // `many` is there on both; nothing is written then.
  assert.ok(back.code === 1 && /many/.test(back.err), back.err);
  assert.equal((await other.send('GET', '/notes')).status, 404);
  await other.ok('DELETE', '/many');
  const done = await podctl(['restore', file, '--json', ...at(other)]);
  assert.equal(done.code, 0, done.err + done.out);
  const info = await other.ok('GET', '/notes');
  assert.deepEqual([info.doc_count, info.doc_del_count], [inBackup.doc_count, inBackup.doc_del_count]);
  assert.deepEqual(await content(asks.pod(other), 'plain'), await content(asks.pod(pod), 'plain'));
  const strip = ({ docs, ...rest }) => ({ ...rest, docs: docs.filter(({ _id }) => !/^w\d/.test(_id)) });
  assert.deepEqual(strip(await content(asks.pod(other), 'notes')), strip(await content(asks.pod(pod), 'notes')));
  assert.deepEqual((await other.get('_ring', 'app:notes')).create, ['role:staff']);
  assert.deepEqual((await other.ok('GET', '/plain/_security')).members, { roles: ['staff'] });
  assert.equal((await other.get('_replicator', 'r2'))._replication_state, 'failed');

  // Accounts and rights are as they were: bea has her documents, the deleted ones too, and nobody else has any.
  other.users.bea = pod.users.bea;
  const changes = await other.ok('GET', '/notes--me/_changes', { as: 'bea' });
  assert.ok(changes.results.some(({ id, deleted }) => id === 'd0' && deleted));
  assert.equal((await other.get('notes--me', 'd5', 'bea')).n, 5);
  await other.makeUser('cy');
  assert.equal((await other.ok('GET', '/notes--me/_changes', { as: 'cy' })).results.length, 0);

  // One app under another name; over the same only when asked to, as a new database.
  const before = (await other.ok('GET', '/notes')).update_seq;
  const named = await podctl(['restore', file, '--app', 'notes=copy', ...at(other)]);
  assert.equal(named.code, 0, named.err);
  assert.equal((await other.get('copy--me', 'd5', 'bea')).n, 5);
  await other.put('plain', 'extra', {});
  const forced = await podctl(['restore', file, '--app', 'plain', '--force', ...at(other)]);
  assert.equal(forced.code, 0, forced.err);
  assert.equal((await other.send('GET', '/plain/extra')).status, 404);
  assert.equal((await other.ok('GET', '/notes')).update_seq, before);

  // An account that was taken away stays away.
  const { _rev } = await other.get('_users', 'org.couchdb.user:bea');
  await other.ok('DELETE', `/_users/org.couchdb.user:bea?rev=${_rev}`);
  const users = await podctl(['restore', file, '--app', '_users', ...at(other)]);
  assert.ok(users.code === 0 && /was deleted/.test(users.err), users.err);
  assert.equal((await other.send('GET', '/_users/org.couchdb.user:bea')).status, 404);
  await podctl(['restore', file, '--app', '_users', '--force', ...at(other)]);
  assert.equal((await other.get('notes--me', 'd5', 'bea')).n, 5);

  // A file that isn't whole is refused before anything is written.
  await other.ok('DELETE', '/notes');
  const damaged = join(folder, 'damaged.adea'), bytes = readFileSync(file);
  bytes[bytes.length >> 1] ^= 1;
  writeFileSync(damaged, bytes);
  const cut = join(folder, 'cut.adea');
  writeFileSync(cut, readFileSync(file));
  truncateSync(cut, bytes.length - 10);
  for (const [bad, what] of [[damaged, /damaged in the block at byte \d+/], [cut, /cut off at byte \d+/]]) {
    const told = await podctl(['restore', bad, '--app', 'notes', ...at(other)]);
    assert.ok(told.code === 1 && what.test(told.err), told.err);
    assert.equal((await other.send('GET', '/notes')).status, 404);
  }
});

test('a backup is for administrators', async () => {
  for (const as of ['bea', null]) assert.equal((await pod.send('GET', '/_backup', { as })).status, 401);
  assert.equal((await pod.send('GET', '/_backup?db=zork')).status, 404);
  const one = await pod.send('GET', '/_backup?db=plain');
  assert.equal(one.raw.subarray(0, 6).toString(), 'ADEABK');
});

test('couchbackup backs up from a pod and restores to it', async () => {
  const log = join(folder, 'couchbackup');
  const run = (work) => new Promise((resolve, reject) => { work((error, data) => (error ? reject(error) : resolve(data))); });
  for (const [db, query] of [['plain', ''], ['notes', '?access=true']]) {
    const file = `${log}-${db}`;
    const url = pod.url(db);
    await run((done) => couchbackup.backup(url, createWriteStream(file), { log: `${file}.log`, attachments: true }, done));
    await pod.ok('PUT', `/restored-${db}${query}`);
    await run((done) => couchbackup.restore(createReadStream(file), pod.url(`restored-${db}`), { attachments: true }, done));
    const docs = async (name) => (await pod.ok('GET', `/${name}/_all_docs`)).rows.map(({ id, value }) => [id, value.rev]);
    assert.deepEqual(await docs(`restored-${db}`), await docs(db));
  }
  assert.equal((await pod.get('restored-notes--me', 'd5', 'bea')).n, 5);
});

test('a partitioned database is one wherever it is carried', async () => {
  await other.ok('PUT', '/parts?partitioned=true');
  await other.ok('POST', '/parts/_bulk_docs', { body: { docs: ['a:1', 'a:2', 'b:1'].map((_id) => ({ _id })) }, status: 201 });
  await other.ok('PUT', '/parts/_design/d', { body: { views: {} }, status: 201 });
  const is = async (which, db) => [(await which.ok('GET', `/${db}`)).props, (await which.ok('GET', `/${db}/_partition/a`)).doc_count];
  const carried = [{ partitioned: true }, 2];
  const from = `http://${other.admin.name}@127.0.0.1:${other.port}`;
  const done = await podctl(['import', from, '--db', 'parts=brought', ...at(pod)], { env: { COUCHDB_PASSWORD: other.admin.password } });
  assert.equal(done.code, 0, done.err);
  assert.deepEqual(await is(pod, 'brought'), carried);
  const file = join(folder, 'parts.backup');
  assert.equal((await podctl(['backup', '--out', file, ...at(other)])).code, 0);
  const back = await podctl(['restore', file, '--app', 'parts=back', ...at(pod)]);
  assert.equal(back.code, 0, back.err);
  assert.deepEqual(await is(pod, 'back'), carried);
});
