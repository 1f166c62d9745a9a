// Nobody learns anything of a document that they may not read, whichever way they ask.
//
// Two methods. What names a document is asked for one that can't be read and for one that isn't there: the answers have to be
// the same to the byte, but for the ids. What names none is asked before and after others have written: it has to be the same.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { read } from './lib/clients.mjs';
import { Pod } from './lib/pod.mjs';
import { signature } from './lib/signature.mjs';
import { until } from './lib/wait.mjs';

// No readable id lies between the two: what is counted up to one of them is the same for both.
const APP = 'vault', HIDDEN = 'hidden', MISSING = 'hiddes', SECRET = 'xyzzy-the-secret';
const enc = encodeURIComponent, q = (value) => enc(JSON.stringify(value));
const SHOWN_PART = `${APP}--${signature(['user:ann', 'user:bob'])}`;
const HIDDEN_PART = `${APP}--${signature(['user:ann'])}`;
const DBS = [APP, `${APP}--me`, SHOWN_PART, HIDDEN_PART];
const PROBERS = ['bob', null];
const file = (text) => ({ 'a.txt': { content_type: 'text/plain', data: Buffer.from(text).toString('base64') } });

let pod, revs = {}, digest;

before(async () => {
  pod = await Pod.start();
  await Promise.all(['ann', 'bob', 'cat'].map((name) => pod.makeUser(name)));
  await pod.makeApp(APP);
  const me = `${APP}--me`;
  await pod.put(me, 'shown', { text: 'open', access: read('ann', 'bob'), _attachments: file('open file') }, 'ann');
  revs.first = await pod.put(me, HIDDEN, { text: SECRET, access: read('ann'), _attachments: file(SECRET) }, 'ann');
  revs.last = await pod.put(me, HIDDEN, { _rev: revs.first, text: SECRET, kind: 'secret', access: read('ann'), _attachments: { 'a.txt': { stub: true } } }, 'ann');
  revs.later = await pod.put(me, 'later', { text: SECRET, access: read('ann'), _attachments: file(SECRET) }, 'ann');
  revs.later2 = await pod.put(me, 'later', { _rev: revs.later, text: 'open now', access: read('ann', 'bob') }, 'ann');
  revs.former = await pod.put(me, 'former', { text: 'was open', access: read('ann', 'bob') }, 'ann');
  revs.former2 = await pod.put(me, 'former', { _rev: revs.former, text: SECRET, access: read('ann') }, 'ann');
  await pod.put(APP, 'public', { text: 'for all', access: { read: ['anyone'] } });
  digest = (await pod.get(me, HIDDEN, 'ann'))._attachments['a.txt'].digest;
});
after(() => pod?.stop());

/** What an answer tells, with the id taken out. */
function told(answer, id) {
  const headers = { ...answer.headers };
  // They name the moment and the connection, not the document.
  for (const name of ['date', 'x-couch-request-id', 'x-request-id', 'connection', 'keep-alive', 'x-couchdb-body-time']) delete headers[name];
  let text = JSON.stringify({ status: answer.status, headers, body: answer.raw.toString('latin1') }).replaceAll(id, 'THE-ID');
  const boundary = /boundary=\\?"?([0-9A-Za-z'()+_,./:=?-]+)/.exec(text)?.[1];
  if (boundary) text = text.replaceAll(boundary, 'BOUNDARY');
  return text;
}

// ---- what names a document --------------------------------------------------------------------------

const json = (body) => ({ body });
/** Each way: (database's path, id) -> [method, path, options]. They use what only a reader could know: revisions and digests. */
const WAYS = {
  'GET': (p, id) => ['GET', `${p}/${id}`],
  'HEAD': (p, id) => ['HEAD', `${p}/${id}`],
  'its revision': (p, id) => ['GET', `${p}/${id}?rev=${revs.last}`],
  'its first revision': (p, id) => ['GET', `${p}/${id}?rev=${revs.first}`],
  'HEAD of its revision': (p, id) => ['HEAD', `${p}/${id}?rev=${revs.last}`],
  'open_revs=all': (p, id) => ['GET', `${p}/${id}?open_revs=all`],
  'open_revs=all as multipart': (p, id) => ['GET', `${p}/${id}?open_revs=all`, { headers: { accept: 'multipart/mixed' } }],
  'open_revs of a list': (p, id) => ['GET', `${p}/${id}?open_revs=${q([revs.first, revs.last])}`],
  'open_revs with latest': (p, id) => ['GET', `${p}/${id}?open_revs=${q([revs.first])}&latest=true&revs=true`],
  'revs': (p, id) => ['GET', `${p}/${id}?revs=true`],
  'revs_info': (p, id) => ['GET', `${p}/${id}?revs_info=true`],
  'conflicts': (p, id) => ['GET', `${p}/${id}?conflicts=true&deleted_conflicts=true`],
  'meta and local_seq': (p, id) => ['GET', `${p}/${id}?meta=true&local_seq=true`],
  'with attachments': (p, id) => ['GET', `${p}/${id}?attachments=true`],
  'atts_since': (p, id) => ['GET', `${p}/${id}?atts_since=${q([revs.first])}`],
  'multipart/related': (p, id) => ['GET', `${p}/${id}?attachments=true`, { headers: { accept: 'multipart/related' } }],
  'If-None-Match of its revision': (p, id) => ['GET', `${p}/${id}`, { headers: { 'if-none-match': `"${revs.last}"` } }],
  'attachment': (p, id) => ['GET', `${p}/${id}/a.txt`],
  'HEAD of the attachment': (p, id) => ['HEAD', `${p}/${id}/a.txt`],
  'attachment of a revision': (p, id) => ['GET', `${p}/${id}/a.txt?rev=${revs.first}`],
  'range of the attachment': (p, id) => ['GET', `${p}/${id}/a.txt`, { headers: { range: 'bytes=0-3' } }],
  'range beyond the attachment': (p, id) => ['GET', `${p}/${id}/a.txt`, { headers: { range: 'bytes=100000-' } }],
  'If-None-Match of the digest': (p, id) => ['GET', `${p}/${id}/a.txt`, { headers: { 'if-none-match': `"${digest.slice(4)}"` } }],
  '_all_docs?key': (p, id) => ['GET', `${p}/_all_docs?key=${q(id)}&include_docs=true`],
  '_all_docs?keys': (p, id) => ['GET', `${p}/_all_docs?keys=${q([id])}&include_docs=true`],
  'POST _all_docs keys': (p, id) => ['POST', `${p}/_all_docs?include_docs=true`, json({ keys: [id] })],
  'POST _all_docs queries': (p, id) => ['POST', `${p}/_all_docs/queries`, json({ queries: [{ keys: [id] }, { key: id }] })],
  '_all_docs range': (p, id) => ['GET', `${p}/_all_docs?startkey=${q(id)}&endkey=${q(id)}`],
  '_all_docs range backwards': (p, id) => ['GET', `${p}/_all_docs?startkey=${q(`${id}\ufff0`)}&endkey=${q(id)}&descending=true&include_docs=true`],
  '_bulk_get': (p, id) => ['POST', `${p}/_bulk_get?revs=true&attachments=true`, json({ docs: [{ id }] })],
  '_bulk_get of a revision': (p, id) => ['POST', `${p}/_bulk_get?latest=true`, json({ docs: [{ id, rev: revs.last }, { id, rev: revs.first }] })],
  '_bulk_get as multipart': (p, id) => ['POST', `${p}/_bulk_get?attachments=true`, { body: { docs: [{ id, rev: revs.last }] }, headers: { accept: 'multipart/mixed' } }],
  '_revs_diff': (p, id) => ['POST', `${p}/_revs_diff`, json({ [id]: [revs.last, revs.first, '9-00000000000000000000000000000000'] })],
  '_missing_revs': (p, id) => ['POST', `${p}/_missing_revs`, json({ [id]: [revs.last] })],
  '_changes of its id': (p, id) => ['GET', `${p}/_changes?filter=_doc_ids&doc_ids=${q([id])}&include_docs=true`],
  'POST _changes of its id': (p, id) => ['POST', `${p}/_changes?filter=_doc_ids&style=all_docs`, json({ doc_ids: [id] })],
  '_changes by selector': (p, id) => ['POST', `${p}/_changes?filter=_selector`, json({ selector: { _id: id } })],
  'longpoll of its id': (p, id) => ['GET', `${p}/_changes?feed=longpoll&timeout=100&filter=_doc_ids&doc_ids=${q([id])}`],
  'continuous feed of its id': (p, id) => ['GET', `${p}/_changes?feed=continuous&timeout=100&filter=_doc_ids&doc_ids=${q([id])}`],
  'event source of its id': (p, id) => ['GET', `${p}/_changes?feed=eventsource&timeout=100&filter=_doc_ids&doc_ids=${q([id])}`],
  '_find': (p, id) => ['POST', `${p}/_find`, json({ selector: { _id: id } })],
  'COPY from it': (p, id) => ['COPY', `${p}/${id}`, { headers: { destination: 'copied' } }],
  'COPY from its revision': (p, id) => ['COPY', `${p}/${id}?rev=${revs.last}`, { headers: { destination: 'copied' } }],
  'COPY onto its revision': (p, id) => ['COPY', `${p}/shown`, { headers: { destination: `${id}?rev=${revs.last}` } }],
  'PUT over its revision': (p, id) => ['PUT', `${p}/${id}`, json({ _rev: revs.last, access: read('bob') })],
  'PUT over an old revision': (p, id) => ['PUT', `${p}/${id}`, json({ _rev: revs.first, access: read('bob') })],
  'DELETE of its revision': (p, id) => ['DELETE', `${p}/${id}?rev=${revs.last}`],
  'DELETE without a revision': (p, id) => ['DELETE', `${p}/${id}`],
  'PUT of an attachment': (p, id) => ['PUT', `${p}/${id}/b.txt?rev=${revs.last}`, { body: 'x', headers: { 'content-type': 'text/plain' } }],
  'DELETE of the attachment': (p, id) => ['DELETE', `${p}/${id}/a.txt?rev=${revs.last}`],
  '_bulk_docs over its revision': (p, id) => ['POST', `${p}/_bulk_docs`, json({ docs: [{ _id: id, _rev: revs.last, access: read('bob') }] })],
  '_bulk_docs deleting it': (p, id) => ['POST', `${p}/_bulk_docs`, json({ docs: [{ _id: id, _rev: revs.last, _deleted: true }] })],
  'stub of its attachment': (p, id) => ['PUT', `${p}/shown`, json({ access: read('ann', 'bob'), _rev: revs.last, _attachments: { 'a.txt': { stub: true, digest, revpos: 1 } }, text: id })],
  '_purge': (p, id) => ['POST', `${p}/_purge`, json({ [id]: [revs.last] })],
  '_explain': (p, id) => ['POST', `${p}/_explain`, json({ selector: { _id: id } })],
  'its id percent-encoded': (p, id) => ['GET', `${p}/%${id.charCodeAt(0).toString(16)}${id.slice(1)}`, { plain: true }],
  'a slash after it': (p, id) => ['GET', `${p}/${id}/`],
  'two slashes before it': (p, id) => ['GET', `${p}//${id}`],
  'two slashes before the database': (p, id) => ['GET', `/${p}/${id}`],
  'an escaped slash': (p, id) => ['GET', `${p}%2F${id}`],
  'dots before it': (p, id) => ['GET', `/x/..${p}/${id}`],
  'a dot before it': (p, id) => ['GET', `${p}/./${id}`],
  'escaped dots': (p, id) => ['GET', `/x/%2e%2e${p}/${id}`],
  'the database percent-encoded': (p, id) => ['GET', `/%76${p.slice(2)}/${id}`],
  'the database in capitals': (p, id) => ['GET', `${p.toUpperCase()}/${id}`],
  'a null byte after it': (p, id) => ['GET', `${p}/${id}%00`],
  'POST with another method in a header': (p, id) => ['POST', `${p}/${id}`, { headers: { 'x-http-method-override': 'GET' } }],
  'an absolute URL': (p, id) => ['GET', `http://127.0.0.1${p}/${id}`],
  'a trick with the query': (p, id) => ['GET', `${p}?/${id}`],
  '_local with its id': (p, id) => ['GET', `${p}/_local/${id}`],
  '_design with its id': (p, id) => ['GET', `${p}/_design/${id}`],
  'show, list, update, view': (p, id) => ['GET', `${p}/_design/d/_show/s/${id}`],
};

describe('a document that may not be read answers as one that is not there', () => {
  for (const [name, way] of Object.entries(WAYS)) {
    test(name, async () => {
      for (const db of DBS) {
        for (const as of PROBERS) {
          const ask = async (id) => {
            const [method, path, options] = way(`/${db}`, id);
            return { answer: await pod.send(method, path, { as, ...options }), path };
          };
          const hidden = await ask(HIDDEN), missing = await ask(MISSING);
          const where = `${as ?? 'nobody'} at ${hidden.path}`;
          assert.ok(hidden.answer.status < 500 || hidden.answer.status === 501, `${where}: ${hidden.answer.status} ${hidden.answer.text}`);
          assert.ok(!hidden.answer.text.includes(SECRET), `${where} tells the secret`);
          assert.equal(told(hidden.answer, HIDDEN), told(missing.answer, MISSING), where);
        }
      }
      const doc = await pod.get(`${APP}--me`, HIDDEN, 'ann');
      assert.equal(doc._rev, revs.last, 'the document is as it was');
    });
  }
});

describe('headers from outside change nothing', () => {
  const spellings = ['X-Auth-CouchDB-UserName', 'x-auth-couchdb-username', 'X-AUTH-COUCHDB-USERNAME', 'X-Auth-CouchDB-Username'];
  for (const name of spellings) {
    test(name, async () => {
      const forged = { [name]: 'ann', [name.replace(/username/i, 'Roles')]: '_admin', [name.replace(/username/i, 'Token')]: 'a'.repeat(64) };
      for (const db of DBS) {
        for (const as of PROBERS) {
          const plain = await pod.send('GET', `/${db}/${HIDDEN}`, { as });
          const withForged = await pod.send('GET', `/${db}/${HIDDEN}`, { as, headers: forged });
          assert.equal(told(withForged, HIDDEN), told(plain, HIDDEN));
        }
      }
      const { userCtx } = await pod.ok('GET', '/_session', { as: null, headers: forged });
      assert.deepEqual(userCtx, { name: null, roles: [] });
    });
  }

  test('other ways to say who one is or where one comes from', async () => {
    const headers = { 'x-forwarded-for': '127.0.0.1', 'x-forwarded-user': 'admin', 'x-real-ip': '127.0.0.1', forwarded: 'for=127.0.0.1', 'x-original-url': `/${APP}/${HIDDEN}`, 'x-rewrite-url': `/${APP}/${HIDDEN}`, 'x-couchdb-vhost-path': `/${APP}/${HIDDEN}` };
    const plain = await pod.send('GET', `/${APP}--me/${HIDDEN}`, { as: 'bob' });
    const tried = await pod.send('GET', `/${APP}--me/${HIDDEN}`, { as: 'bob', headers });
    assert.equal(told(tried, HIDDEN), told(plain, HIDDEN));
  });
});

// ---- what names no document ---------------------------------------------------------------------------

const LOOKS = [
  '/', '/_all_dbs', '/_all_dbs?limit=1000', '/_up', '/_session', '/_membership', '/_active_tasks', '/_dbs_info', `/_dbs_info?keys=${q(DBS)}`, '/_users', '/_users/_all_docs', '/_users/_changes', '/_ring', '/_ring/_all_docs',
  '/_ring/_changes', '/_replicator/_all_docs', '/_pod/workers', '/_stats', '/_node/_local/_stats', '/_db_updates', '/_users/org.couchdb.user:ann', '/_users/org.couchdb.user:nosuch', `/${APP}/_access`,
  ...DBS.flatMap((db) => [
    '', '/_all_docs', '/_all_docs?limit=0', '/_all_docs?include_docs=true&descending=true', '/_all_docs?skip=100', '/_changes', '/_changes?limit=1', '/_changes?limit=0', '/_changes?descending=true', '/_changes?since=now',
    '/_changes?style=all_docs&include_docs=true&conflicts=true&attachments=true', '/_changes?feed=longpoll&since=now&timeout=100', '/_changes?feed=continuous&timeout=100', '/_changes?filter=_selector', '/_local_docs', '/_design_docs',
    '/_security', '/_revs_limit', '/_design/d/_info', '/_index', '/_access',
  ].map((path) => `/${db}${path}`)),
];

describe('what others write shows nowhere', () => {
  test('every list, count, feed and bookmark is the same to the byte before and after', async () => {
    const look = async () => {
      const seen = {};
      for (const as of PROBERS) {
        for (const path of LOOKS) {
          const answer = await pod.send('GET', path, { as });
          seen[`${as ?? 'nobody'} GET ${path}`] = answer;
        }
        for (const db of DBS) {
          const path = `/${db}/_changes?filter=_selector`;
          seen[`${as ?? 'nobody'} POST ${path}`] = await pod.send('POST', path, { as, body: { selector: { kind: 'secret' } } });
        }
      }
      return seen;
    };
    const first = await look();
    for (let n = 0; n < 30; n++) {
      const rev = await pod.put(`${APP}--me`, `other${n}`, { text: SECRET, access: read('ann'), _attachments: file(`${SECRET} ${n}`) }, 'ann');
      await pod.put(APP, `quiet${n}`, { text: SECRET, access: read('cat', `role:r${n}`) });
      if (n % 3 === 0) await pod.ok('DELETE', `/${APP}--me/other${n}?rev=${rev}`, { as: 'ann' });
      if (n % 3 === 1) await pod.put(`${APP}--me`, `other${n}`, { _rev: rev, text: SECRET, access: read('ann', 'cat') }, 'ann');
    }
    await pod.ok('PUT', `/${APP}--me/_local/of-ann`, { as: 'ann', body: { text: SECRET } });
    await pod.makeUser('newcomer');
    const second = await look();
    const differ = [];
    for (const [what, answer] of Object.entries(first)) {
      assert.ok(!second[what].text.includes(SECRET), `${what} tells the secret`);
      assert.ok(answer.status < 500 || answer.status === 501, `${what}: ${answer.status}`);
      if (told(second[what], '\0') !== told(answer, '\0')) differ.push(`${what}\n   before ${answer.status} ${answer.text.slice(0, 400)}\n   after  ${second[what].status} ${second[what].text.slice(0, 400)}`);
    }
    assert.deepEqual(differ, []);
    const bobs = await pod.ok('GET', `/${APP}--me/_all_docs`, { as: 'bob' });
    assert.deepEqual(bobs.rows.map((row) => row.id), ['later', 'public', 'shown'], 'and bob still sees his own');
    const everyones = await pod.ok('GET', `/${APP}--me/_all_docs`, { as: null });
    assert.deepEqual(everyones.rows.map((row) => row.id), ['public']);
  });

  test('a feed that is open hears nothing of it', async () => {
    const feed = pod.follow(`/${APP}--me/_changes?feed=continuous&heartbeat=200&since=now`, { as: 'bob' });
    await until(() => feed.status === 200, 'the feed');
    for (let n = 0; n < 10; n++) await pod.put(`${APP}--me`, `unheard${n}`, { text: SECRET, access: read('ann') }, 'ann');
    await pod.put(`${APP}--me`, 'heard', { text: 'hi', access: read('ann', 'bob') }, 'ann');
    await until(() => feed.lines.length, 'the one row for bob');
    feed.close();
    assert.deepEqual(feed.lines.map((line) => line.id), ['heard']);
    const rev = (await pod.get(`${APP}--me`, 'heard', 'ann'))._rev;
    await pod.ok('DELETE', `/${APP}--me/heard?rev=${rev}`, { as: 'ann' });
  });

  test('the place of another user in a feed is worth nothing', async () => {
    const anns = (await pod.ok('GET', `/${APP}--me/_changes`, { as: 'ann' })).last_seq;
    const whole = (await pod.ok('GET', `/${APP}/_changes`)).last_seq;
    for (const since of [anns, whole, `${anns}x`, '0', '1-', '99999999', '1-AAAAAAAAAAAAAAAAAAAAAAAA', '-1', '[1,"x"]', '\u0000', '9'.repeat(40)]) {
      for (const as of PROBERS) {
        const answer = await pod.send('GET', `/${APP}--me/_changes?include_docs=true&since=${enc(since)}`, { as });
        assert.ok([200, 400].includes(answer.status), `${since}: ${answer.status} ${answer.text}`);
        assert.ok(!answer.text.includes(SECRET));
        for (const row of answer.json.results ?? []) assert.ok(['shown', 'later', 'public', 'former', 'heard'].includes(row.id), `${since} shows ${row.id}`);
      }
    }
  });
});

describe('old revisions', () => {
  test('one of a time when one could not read it is not there', async () => {
    const me = `/${APP}--me/later`;
    assert.equal((await pod.get(`${APP}--me`, 'later', 'bob')).text, 'open now');
    for (const path of [`${me}?rev=${revs.later}`, `${me}/a.txt?rev=${revs.later}`, `${me}/a.txt`]) {
      const answer = await pod.send('GET', path, { as: 'bob' });
      assert.equal(answer.status, 404, `${path}: ${answer.text}`);
    }
    const opened = await pod.send('GET', `${me}?open_revs=${q([revs.later])}&attachments=true`, { as: 'bob' });
    assert.ok(!opened.text.includes(SECRET));
    const bulk = await pod.send('POST', `/${APP}--me/_bulk_get`, { as: 'bob', body: { docs: [{ id: 'later', rev: revs.later }] } });
    assert.ok(!bulk.text.includes(SECRET));
    const info = (await pod.get(`${APP}--me`, 'later', 'bob', '?revs_info=true'))._revs_info;
    const available = info.filter((r) => r.status === 'available').map((r) => r.rev);
    assert.ok(available.includes(revs.later2) && !available.includes(revs.later), JSON.stringify(info));
    for (const rev of available) assert.equal((await pod.get(`${APP}--me`, 'later', 'bob', `?rev=${rev}`)).text, 'open now');
    assert.equal((await pod.get(`${APP}--me`, 'later', 'ann', `?rev=${revs.later}`)).text, SECRET, 'ann could read it then, and can now');
  });

  test('of a document that one may read no longer there is only its tombstone', async () => {
    for (const rev of [revs.former, revs.former2]) {
      const answer = await pod.send('GET', `/${APP}--me/former?rev=${rev}`, { as: 'bob' });
      assert.equal(answer.status, 404, answer.text);
    }
    const opened = await pod.send('GET', `/${APP}--me/former?open_revs=all&revs=true`, { as: 'bob' });
    assert.ok(!opened.text.includes(SECRET) && !opened.text.includes('was open') && !opened.text.includes(revs.former2), opened.text);
  });

  test('a conflicting leaf is shown to readers of that leaf only', async () => {
    const fork = (n, who, text) => ({ _id: 'forked', _rev: `1-${String(n).repeat(32)}`, text, access: read(...who) });
    await pod.ok('POST', `/${APP}/_bulk_docs`, { body: { new_edits: false, docs: [fork(9, ['ann', 'bob'], 'open'), fork(1, ['ann'], SECRET)] } });
    const bobs = await pod.get(`${APP}--me`, 'forked', 'bob', '?conflicts=true');
    assert.equal(bobs.text, 'open');
    assert.equal(bobs._conflicts, undefined);
    const opened = await pod.send('GET', `/${APP}--me/forked?open_revs=all`, { as: 'bob' });
    assert.ok(!opened.text.includes(SECRET) && !opened.text.includes('1-1111'), opened.text);
    assert.equal((await pod.send('GET', `/${APP}--me/forked?rev=1-${'1'.repeat(32)}`, { as: 'bob' })).status, 404);
    const feed = await pod.ok('GET', `/${APP}--me/_changes?style=all_docs`, { as: 'bob' });
    assert.equal(feed.results.find((row) => row.id === 'forked').changes.length, 1);
    await pod.ok('DELETE', `/${APP}/forked?rev=1-${'1'.repeat(32)}`);
    const rev = (await pod.get(APP, 'forked'))._rev;
    await pod.ok('DELETE', `/${APP}/forked?rev=${rev}`);
  });
});

// ---- writing ------------------------------------------------------------------------------------------

describe('writing', () => {
  test('an access member that is not well formed is refused with 400', async () => {
    const bad = [1, 'users', [], {}, null, { read: 'users' }, { read: ['everyone'] }, { read: ['user:'] }, { read: ['ann'] }, { read: [1] }, { write: ['user:bob'] }, { read: ['user:bob'], wirte: [] },
      { read: ['user:bob'], write: 'x' }, { read: ['user:b\u0000b'] }, { read: ['user:bob'], write: ['any'] }, { read: [`user:${'b'.repeat(600)}`] }, { read: Array.from({ length: 1001 }, (_, n) => `user:u${n}`) }];
    for (const access of bad) {
      const answer = await pod.send('PUT', `/${APP}--me/malformed`, { as: 'bob', body: { access } });
      assert.equal(answer.status, 400, `${JSON.stringify(access).slice(0, 80)}: ${answer.text}`);
      assert.equal(answer.json.error, 'bad_request');
    }
    assert.equal((await pod.send('GET', `/${APP}/malformed`)).status, 404);
  });

  test('who creates a document must be among its writers, and logged in', async () => {
    for (const access of [read('ann'), { read: ['user:bob'], write: ['user:ann'] }, { read: ['anyone'] }, { read: ['users'] }, { read: ['role:staff'] }]) {
      const answer = await pod.send('PUT', `/${APP}--me/foreign`, { as: 'bob', body: { access } });
      assert.equal(answer.status, 403, answer.text);
    }
    for (const db of [APP, `${APP}--me`]) {
      const answer = await pod.send('PUT', `/${db}/foreign`, { as: null, body: { access: { read: ['anyone'], write: ['anyone'] } } });
      assert.equal(answer.status, 401, answer.text);
    }
    assert.equal((await pod.send('GET', `/${APP}/foreign`)).status, 404);
    const rev = await pod.put(APP, 'bobs', { access: { read: ['user:ann'], write: ['user:bob', 'user:ann'] } }, 'bob');
    assert.ok(rev, 'a writer may give a document away, by the write-only aggregate');
    assert.equal((await pod.send('GET', `/${APP}--me/bobs`, { as: 'bob' })).status, 404);
  });

  test('only writers change a document, and readers who are none are told so', async () => {
    const rev = await pod.put(APP, 'posted', { text: 'by ann', access: { read: ['users'], write: ['user:ann'] } }, 'ann');
    for (const [method, path, options] of [
      ['PUT', 'posted', json({ _rev: rev, text: 'by bob', access: { read: ['users'], write: ['user:bob'] } })],
      ['DELETE', `posted?rev=${rev}`],
      ['PUT', `posted/a.txt?rev=${rev}`, { body: 'x', headers: { 'content-type': 'text/plain' } }],
    ]) {
      for (const db of [APP, `${APP}--me`]) {
        const answer = await pod.send(method, `/${db}/${path}`, { as: 'bob', ...options });
        assert.equal(answer.status, 403, `${method} ${db}/${path}: ${answer.text}`);
        assert.equal(answer.json.error, 'forbidden');
      }
    }
    const forged = [{ _id: 'posted', _rev: '2-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', _revisions: { start: 2, ids: ['a'.repeat(32), rev.slice(2)] }, text: 'by bob', access: read('bob') }];
    const [row] = await pod.ok('POST', `/${APP}--me/_bulk_docs`, { as: 'bob', body: { new_edits: false, docs: forged } });
    assert.equal(row.error, 'forbidden');
    assert.equal((await pod.get(APP, 'posted'))._rev, rev);
    await pod.ok('DELETE', `/${APP}--me/posted?rev=${rev}`, { as: 'ann' });
  });

  test('writing under an id that one cannot read is an ordinary conflict', async () => {
    await pod.put(`${APP}--me`, 'ordina', { access: read('bob') }, 'bob');
    for (const db of [APP, `${APP}--me`]) {
      const put = (id) => pod.send('PUT', `/${db}/${id}`, { as: 'bob', body: { access: read('bob') } });
      const bulk = (id) => pod.send('POST', `/${db}/_bulk_docs`, { as: 'bob', body: { docs: [{ _id: id, access: read('bob') }] } });
      const ordinary = await put('ordina');
      assert.equal(ordinary.status, 409);
      assert.equal(told(await put(HIDDEN), HIDDEN), told(ordinary, 'ordina'));
      assert.equal(told(await bulk(HIDDEN), HIDDEN), told(await bulk('ordina'), 'ordina'));
    }
    assert.equal((await pod.get(APP, HIDDEN))._rev, revs.last);
  });

  test('a forged history writes nothing', async () => {
    const before = await pod.get(APP, HIDDEN, 'admin', '?revs=true&conflicts=true');
    const push = (doc, as = 'bob', db = `${APP}--me`) => pod.send('POST', `/${db}/_bulk_docs`, { as, body: { new_edits: false, docs: [doc] } });
    const a = 'a'.repeat(32), b = 'b'.repeat(32);
    const forgeries = {
      'on the real leaf': { _id: HIDDEN, _rev: `3-${a}`, _revisions: { start: 3, ids: [a, revs.last.slice(2), revs.first.slice(2)] }, access: read('bob') },
      'beside it': { _id: HIDDEN, _rev: `2-${a}`, _revisions: { start: 2, ids: [a, revs.first.slice(2)] }, access: read('bob') },
      'of its own': { _id: HIDDEN, _rev: `99-${a}`, _revisions: { start: 99, ids: [a, b] }, access: read('bob') },
      'a deletion on the real leaf': { _id: HIDDEN, _rev: `3-${a}`, _revisions: { start: 3, ids: [a, revs.last.slice(2)] }, _deleted: true },
      'a deletion of its own': { _id: HIDDEN, _rev: `99-${a}`, _deleted: true },
    };
    for (const [what, doc] of Object.entries(forgeries)) {
      for (const db of [APP, `${APP}--me`]) {
        for (const as of PROBERS) {
          const answer = await push(doc, as, db);
          assert.ok([201, 401, 403].includes(answer.status), `${what}: ${answer.status} ${answer.text}`);
        }
      }
    }
    assert.deepEqual(await pod.get(APP, HIDDEN, 'admin', '?revs=true&conflicts=true'), before);
    for (const [what, doc] of Object.entries({
      'a huge generation': { _id: 'huge', _rev: `18446744073709551615-${a}`, access: read('bob') },
      'a larger one': { _id: 'huge', _rev: `99999999999999999999999-${a}`, access: read('bob') },
      'a start that contradicts the revision': { _id: 'huge', _rev: `2-${a}`, _revisions: { start: 5, ids: [a, b] }, access: read('bob') },
      'more ids than generations': { _id: 'huge', _rev: `1-${a}`, _revisions: { start: 1, ids: [a, b] }, access: read('bob') },
      'a hash that is none': { _id: 'huge', _rev: '1-', access: read('bob') },
      'ids that are none': { _id: 'huge', _rev: `1-${a}`, _revisions: { start: 1, ids: [7] }, access: read('bob') },
    })) {
      const answer = await push(doc);
      assert.ok(answer.status < 500, `${what}: ${answer.status} ${answer.text}`);
      const stored = await pod.send('GET', `/${APP}/huge?open_revs=all`);
      assert.ok(stored.status < 500);
    }
    assert.equal((await pod.ok('GET', '/_up')).status, 'ok');
  });

  test('a batch does what each of its parts may do', async () => {
    const rev = await pod.put(`${APP}--me`, 'mix', { access: read('bob', 'ann') }, 'bob');
    const docs = [
      { _id: 'mix', _rev: rev, text: 'changed', access: read('bob', 'ann') },
      { _id: HIDDEN, access: read('bob') },
      { _id: 'mix-new', access: read('bob') },
      { _id: 'mix-foreign', access: read('ann') },
      { _id: '_design/mix', views: {} },
      { _id: 'mix-bad', access: { read: ['nobody'] } },
    ];
    const rows = await pod.ok('POST', `/${APP}--me/_bulk_docs`, { as: 'bob', body: { docs } });
    assert.deepEqual(rows.map((row) => row.error ?? 'ok'), ['ok', 'conflict', 'ok', 'forbidden', 'forbidden', 'bad_request']);
    assert.equal((await pod.get(APP, HIDDEN))._rev, revs.last);
  });

  test('what belongs to administrators is refused to users', async () => {
    await pod.put(APP, '_design/d', { views: {} });
    const asks = [
      ['PUT', '_design/mine', json({ views: {} })], ['DELETE', '_design/d?rev=1-a'], ['PUT', '_security', json({})], ['PUT', '_revs_limit', { body: '1' }], ['POST', '_compact', json({})],
      ['POST', '_purge', json({ [HIDDEN]: [revs.last] })], ['POST', '_view_cleanup', json({})], ['DELETE', ''],
    ];
    for (const [method, path, options] of asks) {
      for (const db of DBS) {
        for (const as of PROBERS) {
          const answer = await pod.send(method, `/${db}/${path}`, { as, ...options });
          assert.ok([401, 403, 404, 405].includes(answer.status), `${as} ${method} ${db}/${path}: ${answer.status} ${answer.text}`);
        }
      }
    }
    for (const [method, path, options] of [
      ['PUT', '/newdb'], ['PUT', `/newdb?access=true`], ['GET', '/_active_tasks'], ['POST', '/_replicate', json({ source: APP, target: 'x' })], ['PUT', '/_ring/app:vault', json({ default: { read: ['users'] } })],
      ['GET', '/_ring/app:vault'], ['POST', '/_ring/_all_docs', json({})], ['GET', '/_node/_local/_config'], ['PUT', '/_users/_security', json({})],
    ]) {
      for (const as of PROBERS) {
        const answer = await pod.send(method, path, { as, ...options });
        assert.ok([401, 403, 404, 405].includes(answer.status), `${as} ${method} ${path}: ${answer.status} ${answer.text}`);
      }
    }
    assert.equal((await pod.send('GET', `/${APP}/_design/d`)).status, 200);
    assert.equal((await pod.get(APP, HIDDEN))._rev, revs.last);
  });

  test('a partial database is read-only, and no name makes one', async () => {
    const answer = await pod.send('PUT', `/${SHOWN_PART}/new`, { as: 'bob', body: { access: read('bob') } });
    assert.equal(answer.status, 403, answer.text);
    for (const name of [`${APP}--me`, `${APP}--${'0'.repeat(24)}`, 'fresh--me', `fresh--${'a'.repeat(24)}`, 'fresh--x']) {
      const made = await pod.send('PUT', `/${name}`);
      assert.ok([400, 412].includes(made.status), `${name}: ${made.status} ${made.text}`);
    }
  });
});

// ---- _local documents, accounts, sessions ----------------------------------------------------------------

describe('accounts and sessions', () => {
  test('_local documents are their writers own', async () => {
    const me = `/${APP}--me`;
    await pod.ok('PUT', `${me}/_local/check`, { as: 'ann', body: { text: SECRET } });
    assert.equal((await pod.send('GET', `${me}/_local/check`, { as: 'bob' })).status, 404);
    await pod.ok('PUT', `${me}/_local/check`, { as: 'bob', body: { text: "bob's" } });
    assert.equal((await pod.ok('GET', `${me}/_local/check`, { as: 'ann' })).text, SECRET);
    assert.equal((await pod.ok('GET', `${me}/_local/check`, { as: 'bob' })).text, "bob's");
    assert.equal((await pod.send('PUT', `${me}/_local/check`, { as: null, body: {} })).status, 401);
    const list = await pod.send('GET', `${me}/_local_docs?include_docs=true`, { as: 'bob' });
    assert.ok(!list.text.includes(SECRET));
    const big = await pod.send('PUT', `${me}/_local/big`, { as: 'bob', body: { text: 'x'.repeat(70_000) } });
    assert.ok([400, 403, 413].includes(big.status), `${big.status}`);
  });

  test("another's account looks like none", async () => {
    const ask = (name, as, method = 'GET') => pod.send(method, `/_users/org.couchdb.user:${name}`, { as });
    for (const as of PROBERS) {
      for (const method of ['GET', 'HEAD']) {
        assert.equal(told(await ask('ann', as, method), 'ann'), told(await ask('qqq', as, method), 'qqq'));
      }
    }
    const own = await ask('bob', 'bob');
    assert.equal(own.status, 200);
    assert.equal(own.json.name, 'bob');
    const raised = await pod.send('PUT', '/_users/org.couchdb.user:bob', { as: 'bob', body: { ...own.json, roles: ['staff'] } });
    assert.equal(raised.status, 403, raised.text);
    const admin = await pod.send('PUT', '/_users/org.couchdb.user:bob', { as: 'bob', body: { ...own.json, roles: ['_admin'] } });
    assert.equal(admin.status, 403, admin.text);
  });

  test('a log-in that fails does not tell why', async () => {
    const bad = await pod.send('GET', `/${APP}--me`, { as: { name: 'bob', password: 'wrong' } });
    const none = await pod.send('GET', `/${APP}--me`, { as: { name: 'qqq', password: 'wrong' } });
    assert.equal(bad.status, 401);
    assert.equal(told(bad, 'bob'), told(none, 'qqq'));
  });

  test('a session gives a temporary name and password, no cookie, and ends when told', async () => {
    const { password } = pod.login('bob');
    const answer = await pod.send('POST', '/_session', { as: null, body: { name: 'bob', password } });
    assert.equal(answer.status, 200, answer.text);
    assert.equal(answer.headers['set-cookie'], undefined);
    const session = answer.json.session;
    assert.ok(session.name && session.password && session.name !== 'bob', answer.text);
    const as = { name: session.name, password: session.password };
    assert.deepEqual((await pod.ok('GET', '/_session', { as })).userCtx, { name: 'bob', roles: [] });
    const bobs = await pod.ok('GET', `/${APP}--me/_all_docs`, { as: 'bob' });
    assert.deepEqual((await pod.ok('GET', `/${APP}--me/_all_docs`, { as })).rows, bobs.rows);
    assert.equal((await pod.send('GET', `/${APP}--me/${HIDDEN}`, { as })).status, 404);
    await pod.ok('DELETE', '/_session', { as });
    assert.equal((await pod.send('GET', `/${APP}--me/_all_docs`, { as })).status, 401);
    assert.equal((await pod.send('GET', '/_session', { as })).status, 401);
  });

  test('a removed account can do nothing any more, in a session neither', async () => {
    await pod.makeUser('gus');
    const { session } = await pod.ok('POST', '/_session', { as: null, body: pod.login('gus') });
    const as = { name: session.name, password: session.password };
    await pod.ok('GET', `/${APP}--me`, { as });
    const doc = await pod.get('_users', 'org.couchdb.user:gus');
    await pod.ok('DELETE', `/_users/org.couchdb.user:gus?rev=${doc._rev}`);
    for (const who of [as, 'gus']) {
      await until(async () => (await pod.send('GET', `/${APP}--me`, { as: who })).status === 401, 'the account to be gone');
    }
  });
});
