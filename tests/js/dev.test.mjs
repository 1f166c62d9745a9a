// `podctl dev` as an operator meets it.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { read } from './lib/clients.mjs';
import { Pod } from './lib/pod.mjs';
import { until } from './lib/wait.mjs';

let pod, data;
before(async () => {
  data = mkdtempSync(join(tmpdir(), 'adea-dev-'));
  pod = await Pod.start({ data });
});
after(async () => { await pod?.stop(); rmSync(data, { recursive: true, force: true }); });

const alive = (pid) => { try { process.kill(pid, 0); return true; } catch { return false; } };

test('it says that it is ready, where, and what to try', () => {
  const first = pod.output.split('\n').find((line) => line.startsWith('ready'));
  assert.equal(first, `ready ${pod.base}`);
  assert.match(pod.output, /curl/);
});

test('it runs as separate processes, on loopback only, and keeps its secrets from others', () => {
  const pids = ['dev', 'adea', 'rean', 'proxy'].map((program) => pod.pid(program));
  assert.equal(new Set(pids).size, 4);
  for (const pid of pids) assert.ok(alive(pid));
  // Columns of the kernel's table: number, local address, foreign address, state (0A: listening).
  const rows = ['tcp', 'tcp6'].flatMap((table) => readFileSync(`/proc/net/${table}`, 'utf8').trim().split('\n').slice(1)).map((line) => line.trim().split(/\s+/));
  for (const { addr } of Object.values(pod.state().programs)) {
    const port = Number(addr.split(':').at(-1)).toString(16).toUpperCase().padStart(4, '0');
    const listening = rows.filter((row) => row[3] === '0A' && row[1].endsWith(`:${port}`)).map((row) => row[1]);
    assert.deepEqual(listening, [`0100007F:${port}`]);
  }
  assert.equal(statSync(join(data, 'ring.json')).mode & 0o777, 0o600);
});

test('what was written is there after a stop and a start, and the stop is clean', async () => {
  await pod.makeUser('ann');
  await pod.makeApp('notes');
  const rev = await pod.put('notes--me', 'x', { text: 'kept', access: read('ann') }, 'ann');
  const pids = ['adea', 'rean', 'proxy'].map((program) => pod.pid(program));
  const end = await pod.restart();
  assert.deepEqual(end, { code: 0, signal: null });
  for (const pid of pids) assert.ok(!alive(pid), 'nothing of it is left running');
  assert.equal((await pod.get('notes--me', 'x', 'ann'))._rev, rev);
});

test('Ctrl-C stops it cleanly, with a feed open', async () => {
  const feed = pod.follow('/notes--me/_changes?feed=continuous&heartbeat=1000', { as: 'ann' });
  await until(() => feed.status === 200, 'the feed');
  const pids = ['adea', 'rean', 'proxy'].map((program) => pod.pid(program));
  const begun = Date.now();
  assert.deepEqual(await pod.stop('SIGINT'), { code: 0, signal: null });
  assert.ok(Date.now() - begun < 20_000, 'it does not wait for those who follow feeds');
  for (const pid of pids) assert.ok(!alive(pid));
  await until(() => feed.ended, 'the feed to end');
  pod = await Pod.start({ data });
  pod.users = { ann: "ann's password" };
});

test('the pod goes when the program above it is killed, and can be started again', async () => {
  const pids = ['adea', 'rean', 'proxy'].map((program) => pod.pid(program));
  pod.kill('dev');
  await pod.ended;
  await until(() => pids.every((pid) => !alive(pid)), 'the others to end', 30_000);
  pod = await Pod.start({ data });
  pod.users = { ann: "ann's password" };
  assert.equal((await pod.get('notes--me', 'x', 'ann')).text, 'kept');
});

test('a second one on the same folder is refused', async () => {
  await assert.rejects(Pod.start({ data }), /in use|works in|another/i);
  assert.equal((await pod.send('GET', '/_up', { as: null })).status, 200);
});

test('it answers what operators ask: /_up, /_metrics, /', async () => {
  assert.equal((await pod.send('GET', '/_up', { as: null })).status, 200);
  const metrics = await pod.send('GET', '/_metrics');
  assert.equal(metrics.status, 200);
  assert.match(metrics.text, /^# TYPE \w+ (counter|gauge|histogram)$/m);
  assert.equal((await pod.ok('GET', '/', { as: null })).couchdb, 'Welcome');
});
