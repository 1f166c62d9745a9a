// The server's own resources through the whole pod: settings that are in force at once and survive a restart, administrators,
// CouchDB's cookie, _db_updates.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import Nano from 'nano';
import { Pod } from './lib/pod.mjs';
import { Ring } from './lib/ring.mjs';
import { until } from './lib/wait.mjs';

const CONFIG = '/_node/_local/_config';
let pod;

before(async () => { pod = await Pod.start({ args: ['--couch-cookie'] }); await pod.makeUser('ann', ['staff']); });
after(() => pod?.stop());

const setting = (path, value) => value === null ? pod.ok('DELETE', CONFIG + path) : pod.ok('PUT', CONFIG + path, { body: JSON.stringify(value) });

describe('single requests', () => {
  test('Location is a whole address, also behind another proxy, and a client may name its request', async () => {
    const at = `http://${pod.host}:${pod.port}`;
    assert.equal((await pod.send('PUT', '/whole')).headers.location, `${at}/whole`);
    assert.equal((await pod.send('PUT', '/whole/a%2Fb', { body: {} })).headers.location, `${at}/whole/a%2Fb`);
    assert.equal((await pod.send('PUT', '/whole/f/g.txt', { body: 'x', headers: { 'content-type': 'text/plain' } })).headers.location, `${at}/whole/f/g.txt`);
    const headers = { 'x-forwarded-host': 'db.example', 'x-forwarded-proto': 'https', 'x-couch-request-id': 'mine-1' };
    const made = await pod.send('PUT', '/whole/c', { body: {}, headers });
    assert.deepEqual([made.headers.location, made.headers['x-couch-request-id']], ['https://db.example/whole/c', 'mine-1']);
  });

  test('a POST may stand for PUT and DELETE, and is then held to the rights of these', async () => {
    const override = (method, path, more = {}) => pod.send('POST', path, { ...more, headers: { 'x-http-method-override': method, ...more.headers } });
    await pod.ok('PUT', '/stands');
    const { rev } = JSON.parse((await override('PUT', '/stands/a', { body: { n: 1 } })).text);
    assert.equal((await pod.ok('GET', '/stands/a')).n, 1);
    assert.equal((await override('DELETE', '/stands', { as: 'ann' })).status, 401);
    assert.equal((await override('DELETE', `/stands/a?rev=${rev}`, { headers: { origin: 'http://a.example' } })).status, 415);
    assert.equal((await override('DELETE', `/stands/a?rev=${rev}`)).status, 200);
    assert.equal((await pod.send('GET', '/stands/a')).status, 404);
    await pod.ok('DELETE', '/stands');
  });
});

describe('settings', () => {
  test('cross-origin rules hold at the very next request', async () => {
    const headers = { origin: 'http://b.example' };
    const allowed = async () => (await pod.send('GET', '/', { headers })).headers['access-control-allow-origin'];
    assert.equal(await pod.ok('GET', `${CONFIG}/cors/origins`), '*');
    assert.equal(await allowed(), 'http://b.example');
    assert.equal(await setting('/cors/origins', 'http://a.example'), '*');
    assert.equal(await allowed(), undefined);
    assert.equal(await setting('/cors/origins', 'http://a.example, http://b.example'), 'http://a.example');
    assert.equal(await allowed(), 'http://b.example');
    assert.equal(await setting('/chttpd/enable_cors', 'false'), 'true');
    assert.equal(await allowed(), undefined);
    await setting('/chttpd/enable_cors', null);
    await setting('/cors/credentials', 'false');
    assert.equal((await pod.send('GET', '/', { headers })).headers['access-control-allow-credentials'], undefined);
    await setting('/cors/credentials', null);
    await setting('/cors/origins', null);
    assert.equal(await allowed(), 'http://b.example');
  });

  test('nobody in particular can be shut out, but for _session and _up', async () => {
    await setting('/chttpd/require_valid_user', 'true');
    assert.equal((await pod.send('GET', '/', { as: null })).status, 401);
    assert.equal((await pod.send('GET', '/', { as: 'ann' })).status, 200);
    assert.equal((await pod.send('GET', '/_session', { as: null })).status, 200);
    assert.equal((await pod.send('GET', '/_up', { as: null })).status, 200);
    assert.equal((await pod.send('GET', '/_all_dbs', { as: 'ann' })).status, 401);
    await setting('/chttpd/require_valid_user', null);
    assert.equal((await pod.send('GET', '/', { as: null })).status, 200);
  });

  test('an administrator is made, changed and removed; the password is shown in no form', async () => {
    const as = (password) => ({ name: 'boss', password });
    assert.equal(await setting('/admins/boss', 'one password'), '');
    assert.deepEqual((await pod.ok('GET', '/_session', { as: as('one password') })).userCtx, { name: 'boss', roles: ['_admin'] });
    await pod.ok('PUT', '/of-the-boss', { as: as('one password') });
    const all = (await pod.send('GET', CONFIG)).text;
    assert.ok(!all.includes('one password') && !all.includes('$argon2id'), all);
    assert.deepEqual(Object.keys(JSON.parse(all).admins).sort(), ['admin', 'boss']);
    await setting('/admins/boss', 'another');
    assert.equal((await pod.send('GET', '/', { as: as('one password') })).status, 401);
    assert.equal((await pod.send('GET', '/_all_dbs', { as: as('another') })).status, 200);
    assert.equal((await pod.send('PUT', `${CONFIG}/admins/admin`, { body: '"x"' })).status, 403);
    await setting('/admins/boss', null);
    assert.equal((await pod.send('GET', '/', { as: as('another') })).status, 401);
    for (const path of [CONFIG, `${CONFIG}/admins`, '/_node/_local/_prometheus', '/_ring/node_config'])
      assert.ok([401, 403].includes((await pod.send('GET', path, { as: 'ann' })).status), path);
    assert.equal((await pod.send('PUT', `${CONFIG}/admins/ann`, { as: 'ann', body: '"x"' })).status, 401);
  });

  test('_prometheus, _stats, _system, _versions tell figures', async () => {
    assert.match((await pod.send('GET', '/_node/_local/_prometheus')).text, /^# (HELP|TYPE) /m);
    for (const path of ['_stats', '_system', '_versions']) assert.equal(typeof await pod.ok('GET', `/_node/_local/${path}`), 'object', path);
  });
});

describe('the cookie', () => {
  const login = async (options) => pod.send('POST', '/_session', { as: null, body: { name: 'ann', password: pod.users.ann }, ...options });
  const cookieOf = (answer) => answer.headers['set-cookie']?.[0];

  test('logs in, is renewed while it is used, and ends with the log-out or a new password', async () => {
    const set = cookieOf(await login());
    assert.match(set, /^AuthSession=[\w-]{64}; Version=1; Expires=[^;]+; Max-Age=600; Path=\/; HttpOnly; SameSite=Strict$/);
    const cookie = set.split(';')[0];
    const me = async () => (await pod.ok('GET', '/_session', { as: null, headers: { cookie } })).userCtx.name;
    assert.equal(await me(), 'ann');
    // Shorter, so that more than half of its time would be over: every request renews it then.
    await setting('/chttpd_auth/timeout', '1300');
    const renewed = await pod.send('GET', '/', { as: null, headers: { cookie } });
    assert.match(cookieOf(renewed) ?? '', /Max-Age=1300/);
    assert.equal(cookieOf(renewed).split(';')[0], cookie);
    await setting('/chttpd_auth/timeout', null);
    assert.equal(await me(), 'ann');
    const out = await pod.send('DELETE', '/_session', { as: null, headers: { cookie } });
    assert.match(cookieOf(out), /^AuthSession=;/);
    assert.equal(await me(), null);
  });

  test('is of no use to a foreign page', async () => {
    const cookie = cookieOf(await login()).split(';')[0];
    const name = async (headers) => (await pod.ok('GET', '/_session', { as: null, headers: { cookie, ...headers } })).userCtx.name;
    assert.equal(await name({ origin: pod.base }), 'ann');
    assert.equal(await name({ origin: 'http://evil.example' }), null);
    const form = 'name=ann&password=' + encodeURIComponent(pod.users.ann);
    const forced = await login({ body: form, headers: { origin: 'http://evil.example', 'content-type': 'application/x-www-form-urlencoded' } });
    assert.equal(cookieOf(forced), undefined);
  });

  test('serves nano as it stands', async () => {
    const nano = Nano({ url: pod.base, requestDefaults: { jar: true } });
    await nano.auth('ann', pod.users.ann);
    assert.equal((await nano.session()).userCtx.name, 'ann');
  });
});

describe('_db_updates', () => {
  test('a place holds across a restart, and settings do', async () => {
    await setting('/zork/kept', 'yes');
    await pod.ok('PUT', '/before-it');
    const { last_seq: since } = await pod.ok('GET', '/_db_updates');
    await pod.put('before-it', 'a', {});
    await pod.ok('PUT', '/after-it');
    await pod.restart();
    assert.equal(await pod.ok('GET', `${CONFIG}/zork/kept`), 'yes');
    const { results } = await pod.ok('GET', `/_db_updates?since=${since}`);
    const told = results.map((row) => `${row.type} ${row.db_name}`);
    assert.ok(told.includes('updated before-it') && told.includes('created after-it'), told.join(', '));
    assert.ok(!told.includes('created before-it'), told.join(', '));
  });

  test('a live feed tells of all databases, and ends with the administrator', async () => {
    await setting('/admins/watcher', 'looks');
    const watcher = { name: 'watcher', password: 'looks' };
    const feed = pod.follow('/_db_updates?feed=continuous&since=now&heartbeat=500', { as: watcher });
    await until(() => feed.status === 200, 'the feed to begin');
    await pod.ok('PUT', '/live');
    await pod.put('live', 'a', {});
    await until(() => feed.lines.some((row) => row.db_name === 'live' && row.type === 'created'), 'its making');
    await until(() => feed.lines.some((row) => row.db_name === 'live' && row.type === 'updated'), 'its change');
    await pod.ok('DELETE', '/live');
    await until(() => feed.lines.some((row) => row.db_name === 'live' && row.type === 'deleted'), 'its end');
    await setting('/admins/watcher', null);
    await until(() => feed.ended, 'the end of the feed');
    assert.equal((await pod.send('GET', '/_db_updates', { as: 'ann' })).status, 401);
  });
});

describe('documents', () => {
  test('batch=ok is accepted, and COPY takes the revision of either header', async () => {
    await pod.ok('PUT', '/plain');
    const first = await pod.send('PUT', '/plain/a?batch=ok', { body: { n: 1 } });
    assert.equal(first.status, 202);
    assert.deepEqual(first.json, { ok: true, id: 'a' });
    const { _rev } = await pod.get('plain', 'a');
    const { rev } = await pod.ok('PUT', '/plain/a', { body: { n: 2, _rev } });
    await pod.ok('COPY', '/plain/a', { headers: { destination: 'b', 'if-match': _rev }, status: 201 });
    assert.equal((await pod.get('plain', 'b')).n, 1);
    await pod.ok('COPY', `/plain/a?rev=${rev}`, { headers: { destination: `b?rev=${(await pod.get('plain', 'b'))._rev}` }, status: 201 });
    assert.equal((await pod.get('plain', 'b')).n, 2);
    assert.equal((await pod.send('POST', '/plain?batch=ok', { body: {} })).status, 202);
  });
});

describe('partitions', () => {
  test('serve nano: a database, what is in a partition, its views and its indexes', async () => {
    const nano = Nano({ url: `http://${pod.admin.name}:${pod.admin.password}@${pod.host}:${pod.port}` });
    await nano.db.create('parts', { partitioned: true });
    assert.deepEqual((await nano.db.get('parts')).props, { partitioned: true });
    const db = nano.use('parts');
    const docs = ['canidae', 'felidae'].flatMap((family) => ['a', 'b', 'c'].map((name, n) => ({ _id: `${family}:${name}`, name, n })));
    await db.bulk({ docs });
    await assert.rejects(db.insert({ name: 'none' }, 'none'), { statusCode: 400, error: 'illegal_docid', reason: 'Doc id must be of form partition:id' });
    const { partition, doc_count: count, doc_del_count: deleted, sizes } = await db.partitionInfo('canidae');
    assert.deepEqual([partition, count, deleted, sizes.active > 0], ['canidae', 3, 0, true]);
    const ids = ({ rows }) => rows.map((row) => row.id);
    assert.deepEqual(ids(await db.partitionedList('canidae', { limit: 2 })), ['canidae:a', 'canidae:b']);
    await db.insert({ views: { n: { map: 'function (doc) { emit(doc.n, 1); }', reduce: '_sum' } }, options: { partitioned: true } }, '_design/v');
    assert.deepEqual(ids(await db.partitionedView('felidae', 'v', 'n', { reduce: false, start_key: 1 })), ['felidae:b', 'felidae:c']);
    assert.deepEqual((await db.partitionedView('felidae', 'v', 'n')).rows, [{ key: null, value: 3 }]);
    await assert.rejects(db.view('v', 'n'), { statusCode: 400, error: 'query_parse_error' });
    await db.createIndex({ index: { fields: ['n'] }, ddoc: 'i', name: 'by-n', type: 'json', partitioned: true });
    const found = await db.partitionedFind('canidae', { selector: { n: { $gte: 1 } }, execution_stats: true });
    assert.deepEqual([found.docs.map((doc) => doc._id), found.execution_stats.total_keys_examined], [['canidae:b', 'canidae:c'], 2]);
    const streamed = [];
    for await (const chunk of db.partitionedListAsStream('felidae')) streamed.push(chunk);
    assert.deepEqual(ids(JSON.parse(Buffer.concat(streamed))), ['felidae:a', 'felidae:b', 'felidae:c']);
    await nano.db.destroy('parts');
  });
});

describe('a ring', () => {
  test('has the same settings on all pods, whichever is asked', async () => {
    const ring = await Ring.start(2);
    try {
      const [first, second] = ring.pods;
      const master = await ring.agreed();
      const follower = master === first ? second : first;
      await follower.ok('PUT', `${CONFIG}/admins/boss`, { body: '"of the ring"' });
      await follower.ok('PUT', `${CONFIG}/chttpd/require_valid_user`, { body: '"true"' });
      const boss = { name: 'boss', password: 'of the ring' };
      assert.equal((await follower.send('GET', '/', { as: null })).status, 401);
      assert.equal((await follower.send('GET', '/_all_dbs', { as: boss })).status, 200);
      await until(async () => (await master.send('GET', '/', { as: null })).status === 401, 'the rule to hold on the master');
      await until(async () => (await master.send('GET', '/_all_dbs', { as: boss })).status === 200, 'the administrator to be known on the master');
    } finally { await ring.stop(); }
  });
});
