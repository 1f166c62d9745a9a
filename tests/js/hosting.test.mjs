// An app's pages as browsers get them: deployed with podctl, two versions side by side, and nothing else to be seen.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { gunzipSync } from 'node:zlib';
import { ADMIN, PROGRAM, Pod } from './lib/pod.mjs';

const run = promisify(execFile);
const VISITORS = 2_000;
let pod, work;

/** A request to the letter: fetch would tidy the path up. */
const ask = (path, { method = 'GET', headers = {}, auth } = {}) => new Promise((resolve, reject) => {
  http.request({ host: pod.host, port: pod.port, agent: pod.agent, path, method, headers, auth }, (answer) => {
    const parts = [];
    answer.on('data', (part) => parts.push(part));
    answer.on('end', () => {
      const bytes = Buffer.concat(parts);
      resolve({ status: answer.statusCode, headers: answer.headers, bytes, text: bytes.toString() });
    });
  }).on('error', reject).end();
});
const admin = `${ADMIN.name}:${ADMIN.password}`;

async function app(...args) {
  const { stdout } = await run(PROGRAM, ['app', ...args, '--data', pod.data, '--json']);
  return JSON.parse(stdout);
}

function folder(name, files) {
  const dir = join(work, name);
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(dir, path)), { recursive: true });
    writeFileSync(join(dir, path), text);
  }
  return dir;
}

const LIBRARY = 'export const answer = 42;\n'.repeat(500);
const common = { 'style.css': 'p {}', '_chunks/lib.0a1b2c3d.js': LIBRARY, '.env': 'SECRET=1' };

before(async () => {
  pod = await Pod.start();
  work = mkdtempSync(join(tmpdir(), 'adea-pages-'));
  assert.equal((await ask('/notes?access=true', { method: 'PUT', auth: admin })).status, 201);
});
after(async () => {
  await pod?.stop();
  if (work) rmSync(work, { recursive: true, force: true });
});

test('a folder is deployed, and everyone gets its pages', async () => {
  const dir = folder('one', { ...common, 'index.html': '<p>one', 'app.11aa22bb.js': 'one' });
  const done = await app('deploy', dir, '--app', 'notes', '--version', 'v1', '--fallback', 'index.html');
  assert.deepEqual([done.files, done.sent, done.shares], [5, 5, { v1: 100 }]);
  const page = await ask('/notes/_app/');
  assert.deepEqual([page.status, page.text, page.headers['x-app-version']], [200, '<p>one', 'v1']);
  assert.equal(page.headers['set-cookie'], undefined);
  assert.equal(page.headers['x-adea-app-split'], undefined);
  const again = await ask('/notes/_app/', { headers: { 'if-none-match': page.headers.etag } });
  assert.deepEqual([again.status, again.text], [304, '']);
  const zipped = await ask('/notes/_app/_chunks/lib.0a1b2c3d.js', { headers: { 'accept-encoding': 'gzip' } });
  assert.equal(zipped.headers['content-encoding'], 'gzip');
  assert.equal(gunzipSync(zipped.bytes).toString(), LIBRARY);
  assert.match(zipped.headers['cache-control'], /immutable/);
  const part = await ask('/notes/_app/_chunks/lib.0a1b2c3d.js', { headers: { range: 'bytes=0-5' } });
  assert.deepEqual([part.status, part.text], [206, 'export']);
  assert.equal((await ask('/notes/_app')).headers.location, `${pod.base}/notes/_app/`);
  assert.equal((await ask('/notes/_app/a/b', { headers: { accept: 'text/html' } })).text, '<p>one');
  assert.equal((await ask('/notes/_app/x', { method: 'POST' })).status, 405);
});

test('nothing else is to be seen', async () => {
  const missing = await ask('/notes/_app/gone.js');
  assert.equal(missing.status, 404);
  for (const path of ['/nowhere/_app/gone.js', '/notes/_app/.env', '/notes/_app/../_all_docs', '/notes/_app/%2e%2e/_security',
    '/notes/_app/..%2f_security', '/notes/_app/..%5c_security', '/notes/_app/index.html%00', '/notes/_app//index.html']) {
    const got = await ask(path);
    assert.equal(got.status, 404, path);
    assert.equal(got.text, missing.text, path);
  }
});

test('two versions side by side, one for each visitor', async () => {
  const dir = folder('two', { ...common, 'index.html': '<p>two', 'app.33cc44dd.js': 'two' });
  const done = await app('deploy', dir, '--app', 'notes', '--version', 'v2', '--share', '10');
  // The library and the style are those of the first version.
  assert.deepEqual([done.files, done.sent, done.shares], [5, 2, { v1: 90, v2: 10 }]);
  const counts = { v1: 0, v2: 0 };
  for (let n = 0; n < VISITORS; n += 1) {
    const page = await ask('/notes/_app/');
    counts[page.headers['x-app-version']] += 1;
    if (n % 50) continue;
    const [cookie] = page.headers['set-cookie'];
    assert.match(cookie, /^adea_app=\d+; Path=\/notes\/_app; Max-Age=31536000; HttpOnly; SameSite=Lax$/);
    const next = await ask('/notes/_app/style.css', { headers: { cookie: cookie.split(';')[0] } });
    assert.equal(next.headers['x-app-version'], page.headers['x-app-version']);
    assert.equal(next.headers['set-cookie'], undefined);
  }
  // A thousand numbers for all visitors, so 10% is within 3% of it with a chance of one in a thousand otherwise.
  assert.ok(counts.v2 > VISITORS * 0.06 && counts.v2 < VISITORS * 0.14, JSON.stringify(counts));
  const mine = (await ask('/notes/_app/', { auth: admin })).headers;
  assert.equal(mine['set-cookie'], undefined);
  // Open pages go on, whichever version a visitor has.
  for (const name of ['app.11aa22bb.js', 'app.33cc44dd.js']) assert.equal((await ask(`/notes/_app/${name}`)).status, 200);
  const metrics = await ask('/_metrics', { auth: admin });
  assert.match(metrics.text, /adea_proxy_app_files_total\{app="notes",version="v2"\} \d+/);
});

test('shares change, and a version goes', async () => {
  await assert.rejects(app('remove', 'notes', 'v1'), /visitors get v1/);
  assert.deepEqual((await app('share', 'notes', 'v2=1')).shares, { v2: 1 });
  assert.equal((await ask('/notes/_app/')).text, '<p>two');
  await app('remove', 'notes', 'v1');
  assert.equal((await ask('/notes/_app/app.11aa22bb.js')).status, 404);
  const { versions } = await app('list', 'notes');
  assert.deepEqual(versions.map(({ version, percent }) => [version, percent]), [['v2', 100]]);
  const dir = folder('two', { 'index.html': '<p>two again' });
  assert.equal((await app('deploy', dir, '--app', 'notes', '--version', 'v2')).sent, 1);
  assert.equal((await ask('/notes/_app/')).text, '<p>two again');
});
