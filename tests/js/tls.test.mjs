// TLS as clients, other servers and an operator meet it: a pod whose public port has a certificate of the ring's authority.
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import http2 from 'node:http2';
import https from 'node:https';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import tls from 'node:tls';
import { promisify } from 'node:util';
import { ADMIN, PROGRAM, Pod } from './lib/pod.mjs';
import { until } from './lib/wait.mjs';

const run = promisify(execFile);
const CHILD = new URL('./lib/over-tls.mjs', import.meta.url).pathname;
let data, pod, front, ca, caFile;

const freePort = () => new Promise((resolve) => {
  const server = net.createServer().listen(0, '127.0.0.1', () => { const { port } = server.address(); server.close(() => resolve(port)); });
});

/** A second public port of the pod, with TLS and a port that sends people there. */
async function startFront() {
  const [port, plain] = [await freePort(), await freePort()];
  const args = ['proxy', '--ring-file', join(data, 'ring.json'), '--listen', `127.0.0.1:${port}`, '--upstream', pod.state().programs.rean.addr,
    '--tls', JSON.stringify({ ring: { names: ['localhost', '127.0.0.1'] } }), '--redirect', `127.0.0.1:${plain}`, '--hsts-s', '60', '--couch-cookie'];
  const child = spawn(PROGRAM, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  const started = { port, plain, child, base: `https://localhost:${port}`, log: '' };
  child.stderr.on('data', (text) => { started.log += text; });
  child.on('exit', (code) => { started.ended = code; });
  await until(() => {
    if (started.ended !== undefined) throw Object.assign(new Error(started.log), { fatal: true });
    return new Promise((resolve, reject) => http.get({ port, path: '/_up' }, (answer) => { answer.resume(); resolve(answer.statusCode === 200); }).on('error', reject));
  }, 'the TLS port', 30_000);
  return started;
}

/** The certificates that the port shows, the last one being the authority's. */
const shown = (options = {}) => new Promise((resolve, reject) => {
  const socket = tls.connect({ port: front.port, servername: 'localhost', rejectUnauthorized: false, ...options }, () => {
    const own = socket.getPeerCertificate(true);
    resolve({ own, issuer: own.issuerCertificate, protocol: socket.getProtocol(), authorized: socket.authorized });
    socket.destroy();
  }).on('error', reject);
});
const pem = (der) => `-----BEGIN CERTIFICATE-----\n${der.toString('base64').match(/.{1,64}/g).join('\n')}\n-----END CERTIFICATE-----\n`;

const ask = (options, body) => new Promise((resolve, reject) => {
  const request = https.request({ host: 'localhost', port: front.port, ca, ...options }, (answer) => {
    let text = '';
    answer.on('data', (part) => { text += part; });
    answer.on('end', () => resolve({ status: answer.statusCode, headers: answer.headers, text }));
  }).on('error', reject);
  request.end(body);
});

before(async () => {
  data = mkdtempSync(join(tmpdir(), 'adea-tls-'));
  caFile = join(data, 'ca.pem');
  pod = await Pod.start({ data });
  await pod.makeUser('ann');
  await pod.makeApp('notes');
  front = await startFront();
  ca = pem((await shown()).issuer.raw);
  writeFileSync(caFile, ca);
});
after(async () => {
  front?.child.kill();
  delete process.env.SSL_CERT_FILE;
  await pod?.stop();
  rmSync(data, { recursive: true, force: true });
});

test('the certificate is for the names that were asked for, by an authority that can be trusted once', async () => {
  const trusting = await shown({ ca, rejectUnauthorized: true });
  assert.equal(trusting.authorized, true);
  assert.equal(trusting.own.subjectaltname, 'DNS:localhost, IP Address:127.0.0.1');
  assert.ok(trusting.issuer.ca);
  const days = (Date.parse(trusting.own.valid_to) - Date.now()) / 86_400_000;
  assert.ok(days > 80 && days < 398, `${days}`);
  await assert.rejects(shown({ rejectUnauthorized: true }), /self-signed|self signed|unable to/);
  await assert.rejects(shown({ ca, servername: 'other.example', rejectUnauthorized: true }), /does not match/);
  for (const [maxVersion, protocol] of [['TLSv1.2', 'TLSv1.2'], ['TLSv1.3', 'TLSv1.3']]) assert.equal((await shown({ maxVersion })).protocol, protocol);
  await assert.rejects(shown({ minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' }), /protocol version|unsupported protocol|alert/i);
});

test('PouchDB syncs live over TLS, by ordinary feeds and by the connection for many', async () => {
  const { password } = pod.login('ann');
  const child = run(process.execPath, [CHILD, front.base, 'ann', password], { env: { ...process.env, NODE_EXTRA_CA_CERTS: caFile }, timeout: 90_000 });
  const { stdout } = await child;
  assert.deepEqual(JSON.parse(stdout), { long: 100_000, denied: 0 });
  assert.equal((await pod.get('notes', 'later of ann'))._id, 'later of ann');
});

test('HTTP/2 is agreed on, a cookie is for TLS only, and browsers are told', async () => {
  const session = http2.connect(front.base, { ca });
  const status = await new Promise((resolve, reject) => {
    session.on('error', reject);
    session.request({ ':path': '/_up' }).on('response', (headers) => resolve(headers[':status'])).on('error', reject).resume();
  });
  assert.equal(status, 200);
  session.close();
  const answer = await ask({ method: 'POST', path: '/_session', headers: { 'content-type': 'application/json' } }, JSON.stringify(ADMIN));
  assert.equal(answer.status, 200);
  assert.match(answer.headers['set-cookie'][0], /; Secure/);
  assert.equal(answer.headers['strict-transport-security'], 'max-age=60');
  const put = await ask({ method: 'PUT', path: '/made-over-tls', auth: `${ADMIN.name}:${ADMIN.password}` });
  assert.equal(put.headers.location, `${front.base}/made-over-tls`);
});

test('plain HTTP is sent on, with no password', async () => {
  const plain = (port, headers) => new Promise((resolve, reject) => {
    http.get({ host: '127.0.0.1', port, path: '/a?b=%22', headers }, (answer) => { answer.resume(); resolve(answer); }).on('error', reject);
  });
  for (const port of [front.port, front.plain]) {
    const answer = await plain(port, { host: 'localhost' });
    assert.deepEqual([answer.statusCode, answer.headers.location], [308, `${front.base}/a?b=%22`]);
    assert.equal((await plain(port, { host: 'elsewhere.example' })).statusCode, 421);
    assert.equal((await plain(port, { host: 'localhost', authorization: 'Basic eDp5' })).statusCode, 403);
  }
});

test('functions are told the address of the client, and nobody makes one up', async () => {
  await pod.ok('PUT', '/plain');
  await pod.ok('PUT', '/plain/_design/d', { body: { updates: { who: 'function (doc, req) { return [null, req.peer]; }' } } });
  const asked = await pod.send('POST', '/plain/_design/d/_update/who', { headers: { 'x-adea-peer': '10.9.8.7' } });
  assert.equal(asked.text, '127.0.0.1');
});

test('an operator and other servers need to trust the authority, and are told when they do not', async () => {
  const podctl = (args, env = {}) => run(PROGRAM, args, { env: { ...process.env, ...env } }).then(({ stdout }) => ({ code: 0, out: stdout }), (error) => ({ code: error.code, out: `${error.stdout}${error.stderr}` }));
  const args = ['bench', `https://${ADMIN.name}:${encodeURIComponent(ADMIN.password)}@localhost:${front.port}`, '--quick', '--only', 'bulk', '--docs', '1000'];
  const stranger = await podctl(args);
  assert.notEqual(stranger.code, 0);
  assert.match(stranger.out, /not trusted here.*SSL_CERT_FILE/);
  const known = await podctl(args, { SSL_CERT_FILE: caFile });
  assert.equal(known.code, 0, known.out);

  await pod.ok('PUT', '/theirs');
  await pod.put('theirs', 'x', { text: 'over TLS' });
  const source = { url: `${front.base}/theirs`, auth: { basic: { username: ADMIN.name, password: ADMIN.password } } };
  await pod.ok('PUT', '/_replicator/strange', { body: { source, target: 'ours', create_target: true } });
  const told = await until(async () => {
    const doc = await pod.get('_replicator', 'strange');
    return doc._replication_state_reason && doc;
  }, 'the reason', 60_000);
  assert.match(told._replication_state_reason, /not trusted here/);
  assert.doesNotMatch(JSON.stringify(told._replication_state_reason), new RegExp(ADMIN.password));

  front.child.kill();
  process.env.SSL_CERT_FILE = caFile;
  await pod.restart();
  front = await startFront();
  const url = { ...source, url: `${front.base}/theirs` };
  await pod.ok('POST', '/_replicate', { body: { source: url, target: 'ours', create_target: true }, timeout: 60_000 });
  assert.equal((await pod.get('ours', 'x')).text, 'over TLS');
  await pod.ok('POST', '/_replicate', { body: { source: 'ours', target: { ...url, url: `${front.base}/back` }, create_target: true }, timeout: 60_000 });
  assert.equal((await pod.get('back', 'x')).text, 'over TLS');
});
