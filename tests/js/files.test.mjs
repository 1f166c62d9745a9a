// Large attachments in a bucket: moto plays S3. What is shown: they are there and nowhere else, in memory neither; what was
// acknowledged outlives kill -9; a storage that is away is told of, and hurts nothing else.
// MOTO_SERVER is the program `moto_server`; by itself it is looked for where tests/run puts it.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { chmodSync, existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Pod } from './lib/pod.mjs';
import { sleep, until } from './lib/wait.mjs';

const MOTO = process.env.MOTO_SERVER || new URL('../../target/moto/bin/moto_server', import.meta.url).pathname;
const BUCKET = 'attachments', MIB = 1 << 20, LARGE_MIB = 300;
/** What rean may need more while a large file goes through it, whichever way, in MiB. */
const ROOM_MIB = 96;
const CREDENTIALS = { access_key_id: 'tests', secret_access_key: 'quite a secret' };

const freePort = () => new Promise((resolve, reject) => {
  const server = net.createServer().on('error', reject);
  server.listen(0, '127.0.0.1', () => { const { port } = server.address(); server.close(() => resolve(port)); });
});

/** S3, in the memory of a process of its own. */
class Moto {
  async start(port) {
    this.port = port ?? await freePort();
    this.child = spawn(MOTO, ['-H', '127.0.0.1', '-p', String(this.port)], { stdio: 'ignore' });
    await until(async () => (await this.send('GET', '/')).status === 200, 'moto to answer', 60_000);
    assert.equal((await this.send('PUT', `/${BUCKET}`)).status, 200);
    return this;
  }

  async send(method, path) {
    const response = await fetch(`http://127.0.0.1:${this.port}${path}`, { method, headers: { authorization: 'AWS4-HMAC-SHA256 Credential=tests/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0' } });
    return { status: response.status, text: await response.text() };
  }

  async keys() {
    const { text } = await this.send('GET', `/${BUCKET}?list-type=2`);
    return [...text.matchAll(/<Key>([^<]+)<\/Key>/g)].map((found) => found[1]);
  }

  async stop() {
    if (!this.child) return;
    const ended = new Promise((resolve) => this.child.on('exit', resolve));
    this.child.kill('SIGKILL');
    await ended;
    this.child = null;
  }
}

let moto, pod;
before(async () => {
  if (!existsSync(MOTO)) throw new Error(`${MOTO} is not there: python3 -m venv target/moto && target/moto/bin/pip install 'moto[server]'`);
  moto = await new Moto().start();
  pod = await Pod.start();
  const file = join(pod.data, 'rean', 'files-credentials.json');
  writeFileSync(file, JSON.stringify(CREDENTIALS));
  chmodSync(file, 0o600);
  const s3 = { bucket: BUCKET, endpoint: `http://127.0.0.1:${moto.port}`, allow_http: true, prefix: 'adea' };
  const known = await pod.send('GET', '/_ring/config');
  const doc = { ...(known.status === 200 ? known.json : {}), files: { above_mib: 1, store: { s3 } } };
  assert.equal((await pod.send('PUT', '/_ring/config', { body: doc })).status, 201);
  assert.equal((await pod.send('PUT', '/db')).status, 201);
  assert.equal((await pod.send('PUT', '/db/_security', { body: { members: { names: ['ann'], roles: [] } } })).status, 200);
  await pod.makeUser('ann');
  await pod.makeUser('bob');
  // The settings are in force a moment after they are written.
  await until(async () => {
    await upload(`/db/first${Date.now()}/x`, randomBytes(2 * MIB));
    return (await moto.keys()).length > 0;
  }, 'a file in the bucket');
});
after(async () => { await pod?.stop(); await moto?.stop(); });

const login = (as) => {
  const { name, password } = pod.login(as);
  return 'Basic ' + Buffer.from(`${name}:${password}`).toString('base64');
};

/** A request whose body is these pieces and whose answer's body is shown to `see`, neither of them ever whole in memory. */
const stream = (method, path, { as = 'admin', headers = {}, pieces = [], see = () => {} } = {}) => new Promise((resolve, reject) => {
  const request = http.request({ host: pod.host, port: pod.port, method, path, headers: { authorization: login(as), ...headers } }, (response) => {
    response.on('data', see).on('error', reject).on('end', () => resolve({ status: response.statusCode, headers: response.headers }));
  });
  request.on('error', reject);
  (async () => {
    for await (const piece of pieces) if (!request.write(piece)) await new Promise((go) => request.once('drain', go));
    request.end();
  })().catch(reject);
});

const upload = (path, bytes) => stream('PUT', path, { headers: { 'content-type': 'video/mp4', 'content-length': bytes.length }, pieces: [bytes] });
const md5 = (bytes) => createHash('md5').update(bytes).digest('base64');

async function download(path, options) {
  const hash = createHash('md5');
  let length = 0;
  const answer = await stream('GET', path, { ...options, see: (piece) => { hash.update(piece); length += piece.length; } });
  return { ...answer, length, md5: hash.digest('base64') };
}

/** What a program has in memory now, and had at the most, in MiB. */
function memory(program) {
  const status = readFileSync(`/proc/${pod.pid(program)}/status`, 'utf8');
  const mib = (name) => Number(status.match(new RegExp(`${name}:\\s+(\\d+) kB`))[1]) / 1024;
  return { now: mib('VmRSS'), most: mib('VmHWM') };
}

/** Puts a large attachment and reads it; rean's memory must not grow with it. */
async function goesThrough(doc) {
  const piece = randomBytes(MIB), hash = createHash('md5');
  const before = memory('rean').most;
  const pieces = (function* () { for (let n = 0; n < LARGE_MIB; n++) { piece.writeUInt32BE(n); hash.update(piece); yield Buffer.from(piece); } })();
  const began = Date.now();
  const put = await stream('PUT', `/db/${doc}/film`, { headers: { 'content-type': 'video/mp4', 'content-length': LARGE_MIB * MIB }, pieces });
  assert.equal(put.status, 201);
  const written = Date.now(), expected = hash.digest('base64');
  const up = memory('rean').most - before;
  const got = await download(`/db/${doc}/film`);
  assert.deepEqual({ status: got.status, length: got.length, md5: got.md5 }, { status: 200, length: LARGE_MIB * MIB, md5: expected });
  const both = memory('rean').most - before, rate = (ms) => (LARGE_MIB * 1000 / ms).toFixed();
  console.log(`${doc}: rean took up to ${up.toFixed()} MiB more for the upload, ${both.toFixed()} MiB in all, of ${memory('rean').most.toFixed()} MiB; ${rate(written - began)} MiB/s up, ${rate(Date.now() - written)} MiB/s down`);
  assert.ok(both < ROOM_MIB, `rean grew by ${both} MiB`);
  assert.equal((await pod.send('GET', `/db/${doc}`)).json._attachments.film.digest, `md5-${expected}`);
  const part = await download(`/db/${doc}/film`, { headers: { range: 'bytes=1048576-1048579' } });
  assert.deepEqual({ status: part.status, length: part.length, range: part.headers['content-range'] }, { status: 206, length: 4, range: `bytes 1048576-1048579/${LARGE_MIB * MIB}` });
}

/** How many files are in the pod's own folder. */
function local() {
  const objects = join(pod.data, 'rean', 'files', 'objects');
  return readdirSync(objects).reduce((sum, folder) => sum + readdirSync(join(objects, folder)).length, 0);
}

test(`${LARGE_MIB} MiB go through the pod into the bucket, and not into its memory`, async () => {
  const count = (await moto.keys()).length;
  await goesThrough('large');
  assert.equal((await moto.keys()).length, count + 1);
  assert.equal(local(), 0);
});

test('only who may read the document reads the file, and nobody learns its name', async () => {
  assert.equal((await download('/db/large/film', { as: 'ann', headers: { range: 'bytes=0-9' } })).length, 10);
  for (const path of ['/db/large/film', '/db/none/film', '/db/large']) assert.equal((await pod.send('GET', path, { as: 'bob' })).status, 403, path);
  const [key] = await moto.keys();
  const name = key.split('/').at(-1);
  for (const as of ['ann', 'admin']) {
    assert.equal((await pod.send('GET', `/_pod/files/${name}`, { as })).status, 404);
    const { text } = await pod.send('GET', '/db/_all_docs?include_docs=true&files=true', { as });
    for (const each of await moto.keys()) assert.ok(!text.includes(each.split('/').at(-1)));
  }
});

test('a file comes in several requests', async () => {
  const bytes = randomBytes(12 * MIB + 5), b64 = (text) => Buffer.from(text).toString('base64');
  const tus = { 'tus-resumable': '1.0.0' };
  const made = await stream('POST', '/db/_uploads', { as: 'ann', headers: { ...tus, 'content-length': 0, 'upload-length': bytes.length, 'upload-metadata': `doc ${b64('pieces')},name ${b64('film')},type ${b64('video/mp4')}` } });
  assert.equal(made.status, 201);
  const place = made.headers.location;
  // One that is cut off in the middle, and then what the pod says is missing.
  await new Promise((resolve) => {
    const request = http.request({ host: pod.host, port: pod.port, method: 'PATCH', path: place, headers: { ...tus, authorization: login('ann'), 'upload-offset': 0, 'content-type': 'application/offset+octet-stream', 'content-length': bytes.length } });
    request.on('error', resolve);
    request.write(bytes.subarray(0, 5 * MIB), () => setTimeout(() => request.destroy(), 200));
  });
  await pod.restart();
  const head = await until(async () => {
    const head = await stream('HEAD', place, { as: 'ann', headers: tus });
    return head.status === 200 ? head : null;
  }, 'the upload to be told of');
  const at = Number(head.headers['upload-offset']);
  assert.ok(at > 0 && at < bytes.length, `at ${at}`);
  assert.equal((await stream('HEAD', place, { as: 'bob', headers: tus })).status, 404);
  const done = await stream('PATCH', place, { as: 'ann', headers: { ...tus, 'upload-offset': at, 'content-type': 'application/offset+octet-stream', 'content-length': bytes.length - at }, pieces: [bytes.subarray(at)] });
  assert.equal(done.status, 204);
  assert.equal((await download('/db/pieces/film', { as: 'ann' })).md5, md5(bytes));
});

/** Has attachments written while rean is killed again and again; what was acknowledged must be whole. */
async function survivesKills(prefix) {
  const acknowledged = new Map();
  let stop = false, number = 0;
  const writers = Array.from({ length: 4 }, async () => {
    while (!stop) {
      const path = `/db/${prefix}-${++number}/film`, bytes = randomBytes(MIB + 1 + Math.floor(Math.random() * 3 * MIB));
      try {
        if ((await upload(path, bytes)).status === 201) acknowledged.set(path, md5(bytes));
      } catch { /* It may or may not be there. */ }
      await sleep(5);
    }
  });
  for (let round = 0; round < 4; round++) {
    await sleep(300 + Math.random() * 700);
    const killed = pod.kill('rean');
    await until(async () => pod.pid('rean') !== killed && (await pod.send('GET', '/db')).status === 200, 'rean to be back', 60_000);
  }
  stop = true;
  await Promise.all(writers);
  assert.ok(acknowledged.size > 3, `${acknowledged.size} were acknowledged`);
  for (const [path, expected] of acknowledged) {
    const { status, md5: found } = await download(path);
    assert.deepEqual({ status, md5: found }, { status: 200, md5: expected }, path);
  }
  // What is in no storage is in no document either.
  const { json } = await pod.send('GET', `/db/_all_docs?startkey="${prefix}-"&endkey="${prefix}."`);
  for (const { id } of json.rows) assert.equal((await download(`/db/${id}/film`)).status, 200, id);
  console.log(`${prefix}: ${acknowledged.size} acknowledged, ${json.rows.length} there`);
}

test('what was acknowledged is whole after kill -9, whenever that comes', () => survivesKills('bucket'));

test('the pod\'s own folder does the same, and what was in the bucket is read from there', async () => {
  const { json } = await pod.send('GET', '/_ring/config');
  // Documents of the bucket are read from it for as long as it is named: so it is put back at the end.
  assert.equal((await pod.send('PUT', '/_ring/config', { body: { ...json, files: { above_mib: 1 } } })).status, 201);
  await until(async () => {
    await upload(`/db/local${Date.now()}/x`, randomBytes(2 * MIB));
    return local() > 0;
  }, 'a file in the folder');
  await goesThrough('here');
  await survivesKills('folder');
  assert.equal((await pod.send('GET', '/db/large/film')).status, 503);
  const now = (await pod.send('GET', '/_ring/config')).json;
  assert.equal((await pod.send('PUT', '/_ring/config', { body: { ...now, files: json.files } })).status, 201);
  const range = { headers: { range: 'bytes=0-9' } };
  await until(async () => (await download('/db/large/film', range)).status === 206, 'the bucket to be read again');
  assert.equal((await download('/db/here/film', range)).status, 206);
});

test('a storage that is away is told of, and hurts nothing else', async () => {
  const port = moto.port;
  await moto.stop();
  const read = await pod.send('GET', '/db/large/film', { timeout: 60_000 });
  assert.equal(read.status, 503);
  assert.equal(read.json.error, 'file_unavailable');
  assert.ok(Number(read.headers['retry-after']) > 0);
  assert.ok(!/quite a secret|127\.0\.0\.1/.test(read.text), read.text);
  const write = await upload('/db/away/film', randomBytes(2 * MIB)).catch((error) => ({ status: error.code }));
  assert.ok(write.status !== 201, `${write.status}`);
  assert.equal((await pod.send('GET', '/db/away')).status, 404);
  assert.equal((await pod.send('PUT', '/db/small/text', { body: { n: 1 } })).status, 201);
  await moto.start(port);
  assert.equal((await upload('/db/away/film', randomBytes(2 * MIB))).status, 201);
  assert.ok(!pod.output.includes(CREDENTIALS.secret_access_key));
  // moto has forgotten what it had: a document whose file is gone is still a document.
  assert.equal((await pod.send('GET', '/db/large')).status, 200);
});
