// Many feeds on one connection: the reference client, alone and under PouchDB, against a real pod.
import assert from 'node:assert/strict';
import http from 'node:http';
import { after, before, test } from 'node:test';
import PouchDB from 'pouchdb';
import memory from 'pouchdb-adapter-memory';
import WebSocket from 'ws';
import { Feeds } from '../../proxy/web/feeds.mjs';
import { read } from './lib/clients.mjs';
import { Pod } from './lib/pod.mjs';
import { until } from './lib/wait.mjs';

PouchDB.plugin(memory);
const APPS = 25;
let pod, names = 0;
const open = new Set();

before(async () => {
  pod = await Pod.start();
  await Promise.all(['ann', 'bob', 'cat'].map((name) => pod.makeUser(name)));
});
after(async () => {
  for (const feeds of open) feeds.close();
  await pod?.stop();
});

/** A client that remembers what it was told. */
function client(user, options = {}) {
  const feeds = new Feeds(pod.base, { session: pod.login(user), WebSocket, ...options });
  open.add(feeds);
  return feeds;
}

/** Follows a database; gives {ids, rows, ends, sub}. */
function follow(feeds, db, options = {}) {
  const seen = { rows: [], ends: [], caughtUp: [], get ids() { return this.rows.map((row) => row.id); } };
  const { onChange, ...rest } = options;
  seen.sub = feeds.subscribe(db, { onEnd: (error) => seen.ends.push(error), onCaughtUp: (seq) => seen.caughtUp.push(seq), ...rest },
    async (row) => { await onChange?.(row); seen.rows.push(row); });
  return seen;
}

async function app(...docs) {
  const db = `feeds${++names}`;
  await pod.makeApp(db);
  for (const [id, doc] of docs) await pod.put(db, id, doc);
  return db;
}

async function metric(name) {
  const { text } = await pod.send('GET', '/_metrics', { agent: false });
  return Number(new RegExp(`^adea_proxy_${name} (\\d+)$`, 'm').exec(text)[1]);
}

/** How many connections an agent has. */
const sockets = (agent) => [agent.sockets, agent.freeSockets].flatMap((all) => Object.values(all).flat()).length;

/** Sends an upgrade by hand; gives status and body of what comes back. */
function upgrade(headers, path = '/_feeds') {
  return new Promise((resolve, reject) => {
    const all = { connection: 'upgrade', upgrade: 'websocket', 'sec-websocket-version': '13', 'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==', ...headers };
    const request = http.request({ host: pod.host, port: pod.port, path, headers: all, agent: false, timeout: 10_000 });
    request.on('error', reject);
    request.on('timeout', () => request.destroy(new Error('no answer')));
    request.on('upgrade', (response, socket) => { socket.destroy(); resolve({ status: response.statusCode, headers: response.headers }); });
    request.on('response', (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (part) => { text += part; });
      response.on('end', () => resolve({ status: response.statusCode, headers: response.headers, json: JSON.parse(text) }));
    });
    request.end();
  });
}

test('PouchDB follows fifty databases live over one connection', async () => {
  const feeds = client('ann');
  const apps = await Promise.all(Array.from({ length: APPS }, (_, n) => app([`first${n}`, { access: read('ann') }])));
  const databases = [];
  for (const db of apps) {
    const { personal, partials } = await pod.ok('GET', `/${db}/_access`, { as: 'ann' });
    databases.push(personal, partials[0].db);
  }
  assert.equal(new Set(databases).size, 2 * APPS);
  const before = await metric('feeds');
  const copies = databases.map((db) => {
    const local = new PouchDB(`feeds-${process.pid}-${db}`, { adapter: 'memory' });
    const remote = new PouchDB(`${pod.base}/${db}`, { fetch: feeds.fetch, skip_setup: true });
    const live = local.replicate.from(remote, { live: true, retry: true });
    live.catch(() => {});
    return { local, remote, live };
  });
  const all = async (count) => (await Promise.all(copies.map(({ local }) => local.info()))).every((info) => info.doc_count === count);
  await until(() => all(1), 'the first documents', 60_000);
  await until(() => feeds.size === databases.length, `${databases.length} subscriptions`, 30_000);
  await Promise.all(apps.map((db, n) => pod.put(db, `second${n}`, { access: read('ann') })));
  await until(() => all(2), 'the second documents', 30_000);
  assert.equal(await metric('feeds') - before, 1);
  // What fetched the documents goes when it has nothing more to do; what stays is the one connection, and this question's.
  await until(async () => await metric('connections') <= 2 + sockets(pod.agent), 'one connection to be left', 30_000);
  // Nothing that came later was lost on the way from one long poll to the next.
  for (let round = 0; round < 20; round++) await pod.put(apps[round % 3], `more${round}`, { access: read('ann') });
  await until(async () => (await copies[0].local.info()).doc_count === 9, 'the rest', 30_000);
  for (const { live } of copies) live.cancel();
  await until(() => feeds.size === 0, 'the subscriptions to end', 30_000);
  await Promise.all(copies.map(({ local }) => local.destroy()));
  feeds.close();
});

test('fetch answers live feeds itself and passes on all else', async () => {
  const db = await app(['a', { access: read('ann'), kind: 1 }], ['b', { access: read('ann'), kind: 2 }]);
  const feeds = client('ann');
  const get = async (path, init) => (await feeds.fetch(`${pod.base}/${db}--me/${path}`, init)).json();
  assert.equal((await get('a')).kind, 1);
  assert.equal((await get('_changes')).results.length, 2);
  assert.equal(feeds.size, 0);
  const first = await get('_changes?feed=longpoll&limit=1&since=0');
  assert.equal(first.results.length, 1);
  const second = await get(`_changes?feed=longpoll&limit=10&since=${first.last_seq}`);
  assert.deepEqual([...first.results, ...second.results].map((row) => row.id), ['a', 'b']);
  assert.equal(feeds.size, 1);
  // Nothing new: it waits, and gives up when it was told to.
  const none = await get(`_changes?feed=longpoll&timeout=100&since=${second.last_seq}`);
  assert.deepEqual(none.results, []);
  const waiting = get(`_changes?feed=longpoll&heartbeat=1000&since=${none.last_seq}`);
  await pod.put(db, 'c', { access: read('ann') });
  assert.deepEqual((await waiting).results.map((row) => row.id), ['c']);
  const chosen = await get('_changes?feed=longpoll&filter=_selector&include_docs=true', { method: 'POST', body: JSON.stringify({ selector: { kind: 2 } }) });
  assert.deepEqual(chosen.results.map((row) => row.doc.kind), [2]);

  const abort = new AbortController();
  const aborted = get('_changes?feed=longpoll&heartbeat=true&since=now', { signal: abort.signal });
  abort.abort();
  await assert.rejects(aborted, { name: 'AbortError' });
  const refused = await feeds.fetch(`${pod.base}/nosuch/_changes?feed=longpoll&since=0`);
  assert.deepEqual([refused.status, (await refused.json()).error], [404, 'not_found']);

  const stream = await feeds.fetch(`${pod.base}/${db}--me/_changes?feed=continuous&limit=3`);
  const lines = (await stream.text()).trim().split('\n').map((line) => JSON.parse(line));
  assert.deepEqual(lines.map((line) => line.id ?? 'end'), ['a', 'b', 'c', 'end']);
  // Another user's request is not answered from this user's connection.
  const authorization = 'Basic ' + Buffer.from(`bob:${pod.login('bob').password}`).toString('base64');
  const his = await get('_changes?feed=longpoll&timeout=100&since=0', { headers: { authorization } });
  assert.deepEqual(his.results, []);
  feeds.close();
});

for (const transport of ['websocket', 'events']) test(`after a restart of the pod clients come back and nothing is lost: ${transport}`, async () => {
  const db = await app(), open = `plain-${transport}`;
  await pod.ok('PUT', `/${open}`);
  await pod.ok('PUT', `/${open}/_security`, { body: { members: { names: [], roles: [] } } });
  const feeds = client('ann', { transport });
  const mine = follow(feeds, `${db}--me`), plain = follow(feeds, open);
  for (let n = 0; n < 20; n++) { await pod.put(db, `m${n}`, { access: read('ann') }); await pod.put(open, `p${n}`, {}); }
  await until(() => mine.rows.length === 20 && plain.rows.length === 20, 'the first rows');
  await pod.restart();
  // Also those of the time before the client is back.
  for (let n = 20; n < 40; n++) { await pod.put(db, `m${n}`, { access: read('ann') }); await pod.put(open, `p${n}`, {}); }
  await until(() => new Set(mine.ids).size === 40 && new Set(plain.ids).size === 40, 'the rest', 60_000);
  assert.deepEqual(mine.ids, Array.from({ length: 40 }, (_, n) => `m${n}`));
  assert.deepEqual(plain.ids, Array.from({ length: 40 }, (_, n) => `p${n}`));
  // Also when only the database server, or only the proxy, is killed.
  for (const program of ['rean', 'proxy']) {
    const before = plain.rows.length;
    const killed = pod.kill(program);
    await until(() => ![undefined, killed].includes(pod.pid(program)), `another ${program}`, 30_000);
    await until(async () => (await pod.send('GET', `/${open}`, { agent: false })).status === 200, 'the pod to answer', 30_000);
    await pod.put(open, `after ${program}`, {});
    await until(() => plain.rows.length > before, `the row after ${program} was killed`, 60_000);
    assert.equal(plain.ids.at(-1), `after ${program}`);
  }
  assert.deepEqual([...mine.ends, ...plain.ends], []);
  feeds.close();
});

for (const transport of ['websocket', 'events']) test(`a slow reader holds up nobody and gets everything: ${transport}`, async () => {
  const [slowly, quickly] = ['slow', 'quick'].map((name) => `${name}-${transport}`);
  for (const db of [slowly, quickly]) {
    await pod.ok('PUT', `/${db}`);
    await pod.ok('PUT', `/${db}/_security`, { body: { members: { names: [], roles: [] } } });
  }
  const text = 'x'.repeat(2_000);
  for (let batch = 0; batch < 5; batch++) {
    const docs = Array.from({ length: 400 }, (_, n) => ({ _id: `${batch}-${String(n).padStart(3, '0')}`, text }));
    await pod.ok('POST', `/${slowly}/_bulk_docs`, { body: { docs } });
  }
  const feeds = client('ann', { transport });
  let go, asked = 0;
  const gate = new Promise((resolve) => { go = resolve; });
  const slow = follow(feeds, slowly, { include_docs: true, onChange: () => { asked++; return gate; } });
  await until(() => asked === 1, 'the first row');
  const quick = follow(feeds, quickly);
  for (let n = 0; n < 10; n++) await pod.put(quickly, `q${n}`, {});
  await until(() => quick.rows.length === 10, 'the rows of the quick one');
  assert.equal(slow.rows.length, 0);
  assert.equal(asked, 1);
  go();
  await until(() => slow.rows.length === 2_000, 'all rows of the slow one', 60_000);
  assert.deepEqual(slow.ids, [...slow.ids].sort());
  slow.sub.close();
  await pod.put(slowly, 'later', {});
  await pod.put(quickly, 'later', {});
  await until(() => quick.rows.length === 11, 'the last row');
  assert.equal(slow.rows.length, 2_000);
  feeds.close();
});

for (const transport of ['websocket', 'events']) test(`log-out and a new password end the feeds; new roles change what they give: ${transport}`, async () => {
  const db = await app(['a', { access: read('cat') }], ['r', { access: { read: ['role:r'], write: ['user:admin'] } }]);
  const log = async () => (await pod.ok('POST', '/_session', { as: null, body: pod.login('cat') })).session;
  const session = await log();
  const errors = [];
  const feeds = client('cat', { transport, session, onError: (error) => errors.push(error) });
  const seen = follow(feeds, `${db}--me`);
  await until(() => seen.rows.length === 1 && seen.caughtUp.length, 'the first row');
  await pod.ok('DELETE', '/_session', { as: session });
  await until(() => seen.ends.length && errors.length, 'the end');
  assert.deepEqual([seen.ends[0].status, errors[0].status], [401, 401]);
  await pod.put(db, 'b', { access: read('cat') });
  feeds.close();

  // With name and password a new session is made; with another role the feed goes on, with what the role may read.
  const again = client('cat', { transport });
  const more = follow(again, `${db}--me`);
  await until(() => more.rows.length === 2, 'both rows');
  await pod.makeUser('cat', ['r']);
  await until(() => more.ids.includes('r'), 'what the role may read', 30_000);
  await pod.makeUser('cat', []);
  await until(() => more.rows.at(-1).id === 'r' && more.rows.at(-1).deleted, 'its going', 30_000);
  assert.deepEqual(more.ends, []);
  const account = await pod.ok('GET', '/_users/org.couchdb.user:cat');
  await pod.ok('PUT', '/_users/org.couchdb.user:cat', { body: { ...account, password: transport } });
  await until(() => more.ends.length, 'the end with the password', 30_000);
  assert.equal(more.ends[0].status, 401);
  pod.users.cat = transport;
  again.close();
});

/**
 * Sets what log-ins last, in seconds, for as long as `work` takes. `session_timeout` comes last and is shorter than in the test
 * before: they are one document, so who hears of that one has heard of all. A client asks again when two fifths of the time are
 * left: it is long enough that a busy machine does not sleep through them.
 */
async function shortLogins(settings, work) {
  const path = (key) => `/_node/_local/_config/${key}`;
  for (const [key, value] of Object.entries(settings)) await pod.ok('PUT', path(key), { body: JSON.stringify(String(value)) });
  try {
    // The proxy hears of them a moment later.
    await until(async () => (await pod.ok('POST', '/_session', { as: null, body: { ...pod.login('ann'), session: true } })).session.left_ms <= settings['chttpd_auth/session_timeout'] * 1000, 'the shorter time');
    await work();
  } finally {
    for (const key of Object.keys(settings)) await pod.ok('DELETE', path(key));
  }
}

/** A `fetch` and a `WebSocket` that count, and keep a cookie as a browser does. */
function counting() {
  const seen = { lines: 0, logins: 0, stays: 0, cookie: null };
  class Counted extends WebSocket { constructor(...args) { super(...args); seen.lines++; } }
  const counted = async (url, init = {}) => {
    const { method = 'GET', headers } = init;
    if (method === 'GET' && url.endsWith('/_feeds')) seen.lines++;
    if (method === 'POST' && url.endsWith('/_session')) seen.logins++;
    if (method === 'PUT' && url.endsWith('/_session')) seen.stays++;
    const answer = await fetch(url, { ...init, headers: { ...headers, ...(seen.cookie && { cookie: seen.cookie }) } });
    const set = answer.headers.get('set-cookie');
    if (set) seen.cookie = set.split(';')[0];
    return answer;
  };
  return { seen, options: { WebSocket: Counted, fetch: counted } };
}

/** Waits as long as a log-in of this moment lasts that nobody prolongs. */
async function oneLife() {
  const { session } = await pod.ok('POST', '/_session', { as: null, body: { ...pod.login('ann'), session: true } });
  await until(async () => (await pod.send('GET', '/_session', { as: session })).status === 401, 'the end of another log-in', 30_000);
}

test('a client that only listens stays logged in, on one connection', async () => {
  const settings = { 'chttpd/authentication_handlers': '{chttpd_auth, cookie_authentication_handler}', 'chttpd_auth/timeout': 9, 'chttpd_auth/session_timeout': 9 };
  await shortLogins(settings, () => Promise.all([['websocket'], ['events'], ['events', 'a cookie']].map(async ([transport, cookie]) => {
    const db = await app(['a', { access: read('ann') }]);
    const { seen, options } = counting();
    if (cookie) {
      options.session = null;
      const body = JSON.stringify(pod.login('ann'));
      await until(() => options.fetch(`${pod.base}/_session`, { method: 'POST', headers: { 'content-type': 'application/json' }, body })
        .then(() => seen.cookie), 'the cookie');
      seen.logins = 1;
    }
    const feeds = client('ann', { ...options, transport });
    const followed = follow(feeds, `${db}--me`);
    await until(() => followed.rows.length === 1, 'the first row');
    await oneLife();
    await oneLife();
    await pod.put(db, 'b', { access: read('ann') });
    await until(() => followed.ids.includes('b'), 'the row after twice the time');
    assert.deepEqual([seen.lines, seen.logins, followed.ends], [1, 1, []], `${transport} ${cookie}`);
    assert.ok(seen.stays >= 2 && seen.stays < 20, `${seen.stays} requests`);
    feeds.close();
  })));
});

test('no log-in lasts beyond the longest, and then somebody has to log in anew', async () => {
  const settings = { 'chttpd_auth/max_session_age': 12, 'chttpd_auth/session_timeout': 8 };
  await shortLogins(settings, () => Promise.all(['websocket', 'events'].map(async (transport) => {
    const db = await app(['a', { access: read('ann') }]);
    const { session } = await pod.ok('POST', '/_session', { as: null, body: pod.login('ann') });
    const { seen, options } = counting();
    const feeds = client('ann', { ...options, transport, session });
    const followed = follow(feeds, `${db}--me`);
    // With a name and a password the client does so, and misses nothing.
    const again = client('ann', { ...counting().options, transport });
    const more = follow(again, `${db}--me`);
    await until(() => followed.ends.length, 'its end', 30_000);
    assert.equal(followed.ends[0].status, 401);
    assert.ok(seen.stays >= 1 && Date.now() >= Date.parse(session.longest), 'it was prolonged');
    assert.equal(seen.lines, 1, 'the last event says why');
    await pod.put(db, 'b', { access: read('ann') });
    await until(() => more.ids.includes('b'), 'the row of the time between', 30_000);
    assert.deepEqual(more.ends, []);
    again.close();
  })));
});

/** When a client asks to stay, in seconds, in the first `seconds` on a clock that only this moves. `answers`: [status, body]. */
async function staying(t, seconds, answers) {
  t.mock.timers.enable({ apis: ['setTimeout', 'Date'] });
  const stays = [], ends = [];
  let line;
  class Line {
    constructor() { line = this; }
    send() {}
    close() {}
  }
  const fetch = async (url, { method }) => {
    assert.deepEqual([url, method], ['http://pod/_session', 'PUT']);
    stays.push(Date.now() / 1000);
    const [status, body] = answers.shift();
    return new Response(JSON.stringify(body), { status });
  };
  // Promises settle between one moment and the next.
  const settled = async () => { for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve)); };
  const pass = async (ticks) => { for (; ticks > 0; ticks--) { t.mock.timers.tick(100); await settled(); } };
  const hear = (message) => line.onmessage({ data: JSON.stringify(message) });
  const feeds = new Feeds('http://pod', { session: { name: 'session-1', password: 'p' }, WebSocket: Line, fetch });
  feeds.subscribe('db', { onEnd: (error) => ends.push(error) }, () => {});
  await settled();
  hear({ op: 'hello', user: 'ann', limits: { subscriptions: 9 } });
  for (let second = 0; second < seconds; second++) {
    await pass(10);
    hear({ op: 'pong' });
  }
  feeds.close();
  assert.deepEqual(ends, []);
  const { length } = stays;
  await pass(1000);
  assert.equal(stays.length, length, 'who has gone asks for nothing');
  return stays;
}

const lasts = (seconds) => [200, { ok: true, session: { left_ms: seconds * 1000, expires: '1', longest: '2' } }];

test('a pod that has too much to do for a moment is asked again to prolong a log-in, in time', async (t) => {
  const busy = { error: 'busy', reason: 'later' };
  // 60 s, asked again after three fifths of what is left: at 36, 50.4, and 56.2 s.
  const stays = await staying(t, 100, [lasts(60), [503, busy], [429, busy], lasts(60), lasts(3600)]);
  assert.equal(stays.length, 5);
  assert.ok(Math.abs(stays[1] - 36) < 1 && stays[2] < 52 && stays[3] < 58, `${stays}`);
  assert.ok(Math.abs(stays[4] - stays[3] - 36) < 1, `${stays}`);
});

test('a pod that goes on refusing is not asked every second', async (t) => {
  const stays = await staying(t, 100, [lasts(10), ...Array.from({ length: 100 }, () => [500, {}])]);
  // When the time is over, and nothing has said so, there is no hurry.
  assert.ok(stays.length > 8 && stays.length < 20, `${stays}`);
});

for (const status of [400, 404, 405]) test(`a pod that knows no prolonging is asked once: ${status}`, async (t) => {
  assert.equal((await staying(t, 100, [[status, {}], lasts(9)])).length, 1);
});

test('who asks is shown in a header or by a session, never in the URL', async () => {
  const protocol = (value) => Buffer.from(value).toString('base64url');
  const { name, password } = (await pod.ok('POST', '/_session', { as: null, body: pod.login('ann') })).session;
  const session = `adea.feeds.v1, adea.session.${protocol(`${name}:${password}`)}`;
  const good = await upgrade({ 'sec-websocket-protocol': session });
  assert.equal(good.status, 101);
  assert.equal(good.headers['sec-websocket-protocol'], 'adea.feeds.v1');
  assert.equal(good.headers['sec-websocket-accept'], 's3pPLMBiTxaQ9kYGzzhZRbK+xOo=');
  const refused = async (headers, path) => { const { status, json } = await upgrade(headers, path); return [status, json.error]; };
  const ann = `ann:${pod.login('ann').password}`;
  assert.deepEqual(await refused({ 'sec-websocket-protocol': `adea.feeds.v1, adea.session.${protocol(ann)}` }), [401, 'unauthorized']);
  assert.deepEqual(await refused({ 'sec-websocket-protocol': `adea.feeds.v1, adea.session.${protocol(`${name}:no`)}` }), [401, 'unauthorized']);
  assert.deepEqual(await refused({ 'sec-websocket-protocol': 'chat' }), [400, 'bad_request']);
  assert.deepEqual(await refused({ 'sec-websocket-version': '8', 'sec-websocket-protocol': 'adea.feeds.v1' }), [426, 'upgrade_required']);
  assert.equal((await pod.send('GET', '/_feeds', { as: 'ann' })).status, 426);
  assert.equal((await pod.send('GET', '/_feeds', { as: { name: 'ann', password: 'no' } })).status, 401);
  const basic = `Basic ${Buffer.from(ann).toString('base64')}`;
  assert.equal((await upgrade({ authorization: basic, 'sec-websocket-protocol': 'adea.feeds.v1' })).status, 101);
  assert.equal((await upgrade({ authorization: basic, 'sec-websocket-protocol': session })).status, 400);
  // Nobody in particular follows what everybody may read.
  const nobody = client('ann', { session: null });
  const pods = follow(nobody, '_pods'), users = follow(nobody, '_users');
  await until(() => pods.caughtUp.length && users.ends.length, 'both answers');
  assert.equal(users.ends[0].status, 401);
  nobody.close();
  await until(async () => await metric('feeds') === 0, 'all connections to end', 20_000);
});

test('what is said beside an event stream is bounded, and its user\'s', async () => {
  const stream = http.request({ host: pod.host, port: pod.port, path: '/_feeds', agent: false, auth: `ann:${pod.login('ann').password}`, headers: { accept: 'text/event-stream' } });
  const heard = [];
  stream.on('response', (answer) => {
    assert.equal(answer.headers['content-type'], 'text/event-stream');
    let text = '';
    answer.setEncoding('utf8').on('error', () => {}).on('data', (part) => {
      const events = (text + part).split('\n\n');
      text = events.pop();
      heard.push(...events.filter((event) => event.startsWith('data: ')).map((event) => JSON.parse(event.slice(6))));
    });
  });
  stream.on('error', () => {}).end();
  await until(() => heard.length, 'the first event');
  const { connection } = heard[0];
  const say = async (as, messages) => (await pod.send('POST', '/_feeds', { as, body: { connection, messages } })).status;
  assert.match(connection, /^[0-9a-f]{64}$/);
  for (const other of ['bob', 'admin', null]) assert.equal(await say(other, [{ op: 'ping' }]), 404);
  assert.equal(await say('ann', Array(513).fill({ op: 'ping' })), 400);
  assert.equal(await say('ann', [{ op: 'ping', x: 'x'.repeat(300_000) }]), 413);
  assert.equal(heard.length, 1);
  assert.equal(await say('ann', [{ op: 'ping' }]), 202);
  await until(() => heard.at(-1).op === 'pong', 'the answer');
  stream.destroy();
  await until(async () => await say('ann', []) === 404, 'the connection to be forgotten');
  // The way by which a header says what is closed is the proxy's own; nor does another way to write it go past it.
  for (const path of ['/_feeds', '/_feeds/', '/%5Ffeeds']) {
    const answer = await pod.send('GET', path, { as: null, headers: { 'x-adea-closed': '' } });
    assert.equal(answer.status, 426);
  }
});

test('the client is served, with its documentation', async () => {
  const source = await pod.send('GET', '/_web/feeds.mjs', { as: null });
  assert.equal(source.headers['content-type'], 'text/javascript; charset=utf-8');
  assert.match(source.text, /export class Feeds/);
  const again = await pod.send('GET', '/_web/feeds.mjs', { as: null, headers: { 'if-none-match': source.headers.etag } });
  assert.equal(again.status, 304);
  assert.equal((await pod.send('GET', '/_web/FEEDS.md', { as: null })).status, 200);
  assert.equal((await pod.send('GET', '/_web/secret', { as: null })).status, 404);
});
