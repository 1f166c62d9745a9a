// Replication with another server that speaks CouchDB's API, both ways, and through breaks of all kinds.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Far } from './lib/far.mjs';
import { Pod } from './lib/pod.mjs';
import { until } from './lib/wait.mjs';

const LARGE = Buffer.alloc(3_000_000, 'large and not the same all over ');
let pod, far;

before(async () => {
  [pod, far] = await Promise.all([Pod.start(), Far.start()]);
});
after(async () => {
  await pod?.stop();
  await far?.vanish();
});

/** Both kinds of server, asked in the same way. */
const asks = {
  pod: (method, path, body, type) => pod.send(method, path, { body, headers: type ? { 'content-type': type } : {} }),
  far: (method, path, body, type) => far.send(method, path, body, type),
};

/** A database with documents of all kinds. */
async function fill(ask, db) {
  const ok = async (...args) => {
    const answer = await ask(...args);
    assert.ok(answer.status < 300, `${args[0]} ${args[1]}: ${answer.status} ${answer.raw}`);
    return answer.json;
  };
  await ok('PUT', `/${db}`);
  const docs = Array.from({ length: 700 }, (_, n) => ({ _id: `d${n}`, n, text: 'é'.repeat(n) }));
  const rows = await ok('POST', `/${db}/_bulk_docs`, { docs });
  await ok('DELETE', `/${db}/d0?rev=${rows[0].rev}`);
  await ok('PUT', `/${db}/d1/small.txt?rev=${rows[1].rev}`, Buffer.from('small'), 'text/plain');
  const { rev } = await ok('PUT', `/${db}/big/a%20large%20one`, LARGE, 'application/octet-stream');
  await ok('PUT', `/${db}/big/b.bin?rev=${rev}`, Buffer.alloc(200_000, 1), 'application/octet-stream');
  await ok('PUT', `/${db}/with%2Fslash%20%C3%A9`, { slash: true });
  const branch = (letter) => {
    const ids = [letter.repeat(32), 'b'.repeat(32)];
    return { _id: 'k', _rev: `2-${ids[0]}`, _revisions: { start: 2, ids }, letter };
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

const replicate = (source, target, more = {}) => pod.ok('POST', '/_replicate', { body: { source, target, ...more }, timeout: 60_000 });

test('a push to another server and a pull from it carry everything over, once', async () => {
  await fill(asks.pod, 'mine');
  await fill(asks.far, 'theirs');
  const pushed = await replicate('mine', `${far.base}/pushed`, { create_target: true });
  assert.equal(pushed.history[0].doc_write_failures, 0);
  assert.equal(pushed.history[0].docs_written, 704);
  assert.deepEqual(await content(asks.far, 'pushed'), await content(asks.pod, 'mine'));
  const pulled = await replicate(`${far.base}/theirs`, 'pulled', { create_target: true });
  assert.equal(pulled.history[0].docs_written, 704);
  assert.deepEqual(await content(asks.pod, 'pulled'), await content(asks.far, 'theirs'));
  for (const again of [await replicate('mine', `${far.base}/pushed`), await replicate(`${far.base}/theirs`, 'pulled')]) assert.equal(again.no_changes, true);
  const some = await replicate(`${far.base}/theirs`, 'some', { create_target: true, doc_ids: ['d5', 'big'] });
  assert.equal(some.history[0].docs_written, 2);
});

test('documents of _replicator keep two servers the same through a vanished far side, kill -9 and a restart', async () => {
  await pod.ok('PUT', '/here');
  await far.send('PUT', '/there');
  // Both ends by address, with a log-in where there is one: it must not be shown anywhere.
  const here = { url: `${pod.base}/here`, auth: { basic: { username: pod.admin.name, password: pod.admin.password } } };
  await pod.ok('PUT', '/_replicator/out', { body: { source: here, target: `${far.base}/there`, continuous: true } });
  await pod.ok('PUT', '/_replicator/in', { body: { source: `${far.base}/there`, target: 'here', continuous: true } });
  let number = 0;
  const both = async (what) => {
    const [ours, theirs] = [`ours${++number}`, `theirs${number}`];
    await pod.ok('PUT', `/here/${ours}`, { body: {} });
    await far.send('PUT', `/there/${theirs}`, {});
    await until(async () => (await far.send('GET', `/there/${ours}`)).status === 200 && (await pod.send('GET', `/here/${theirs}`)).status === 200, `both documents ${what}`, 30_000);
  };
  await both('at first');
  await far.vanish();
  await pod.ok('PUT', '/here/meanwhile', { body: {} });
  await until(async () => JSON.stringify(await pod.ok('GET', '/_scheduler/jobs')).includes('"crashed"'), 'the replications to notice');
  await far.appear();
  await until(async () => (await far.send('GET', '/there/meanwhile')).status === 200, 'what was written meanwhile', 30_000);
  await both('after the far side came back');
  pod.kill('rean');
  await until(async () => (await pod.send('GET', '/here').catch(() => ({}))).status === 200, 'rean to be back', 30_000);
  await both('after kill -9');
  await pod.restart();
  await both('after a restart');

  const told = await Promise.all(['/_scheduler/docs', '/_scheduler/jobs', '/_active_tasks'].map(async (path) => JSON.stringify(await pod.ok('GET', path))));
  for (const text of told) {
    assert.ok(text.includes(`${far.base}/there`), text);
    assert.ok(!text.includes(pod.admin.password) && !text.includes('asic'), text);
  }
  for (const id of ['out', 'in']) {
    const { _rev } = await pod.ok('GET', `/_replicator/${id}`);
    await pod.ok('DELETE', `/_replicator/${id}?rev=${_rev}`);
  }
  await until(async () => (await pod.ok('GET', '/_scheduler/jobs')).total_rows === 0, 'the jobs to end');
});
