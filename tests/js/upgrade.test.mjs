// A ring of child processes gets other software, pod by pod, while clients write and listen. PODCTL_NEXT is a build that
// poses as a later version (`cargo rustc --release -p podctl --bin podctl -- --cfg adea_next`).
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { PROGRAM } from './lib/pod.mjs';
import { converged, Ring } from './lib/ring.mjs';
import { sleep, until } from './lib/wait.mjs';

const NEXT = process.env.PODCTL_NEXT || new URL('../../target/podctl-next', import.meta.url).pathname;
const APP = 'notes';
const LIMIT = { timeout: 300_000 };
let ring, pods, dir;

before(async () => {
  if (!existsSync(NEXT)) throw new Error(`${NEXT} is not there: build it, or name it in PODCTL_NEXT`);
  dir = mkdtempSync(join(tmpdir(), 'adea-upgrade-'));
  ring = await Ring.start(3);
  ({ pods } = ring);
  await pods[0].makeApp(APP);
});
after(async () => {
  await ring?.stop();
  if (dir) rmSync(dir, { recursive: true, force: true });
});

/** Runs `podctl upgrade` on the ring; `line` is called with each line that it prints. Gives its exit code and what it printed. */
function upgrade(args, line = () => {}) {
  const child = spawn(PROGRAM, ['upgrade', ...args, '--json', '--data', pods[0].data], { stdio: ['ignore', 'pipe', 'pipe'] });
  let out = '', error = '', rest = '';
  child.stdout.on('data', (data) => {
    out += data;
    const lines = (rest + data).split('\n');
    rest = lines.pop();
    for (const text of lines) line(JSON.parse(text));
  });
  child.stderr.on('data', (data) => { error += data; });
  return new Promise((resolve) => child.on('close', (code) => {
    const lines = out.split('\n').filter(Boolean).map((text) => JSON.parse(text));
    resolve({ code, error, lines, last: lines.at(-1) });
  }));
}

const versions = () => Promise.all(pods.map(async (pod) => (await pod.ok('GET', '/', { timeout: 5000 })).vendor.version));
const isNext = (version) => version.endsWith('-next');
const journal = (pod) => JSON.parse(readFileSync(join(pod.data, 'run', 'upgrade.json'), 'utf8'));

/** A program that says the right things when it is asked, and ends as soon as it is to do anything. */
function script(name, text) {
  const path = join(dir, name);
  writeFileSync(path, `#!/bin/sh\ncase "$*" in\n--version) echo "podctl 9.9.9"; exit 0;;\n*--check*) exit 0;;\n${text}\nesac\n`);
  chmodSync(path, 0o755);
  return path;
}

/** Clients that write at each pod until they are stopped: what fails is sent again, for as long as a client would. */
function writers() {
  const acked = [], faults = [];
  let stop = false, longest = 0;
  const run = async (pod, n) => {
    for (let turn = 0; !stop; turn++) {
      const id = `w${n}-${turn}`, began = Date.now();
      for (let tries = 0; ; tries++) {
        const other = pods[(n + tries) % pods.length];
        try {
          const answer = await other.send('PUT', `/${APP}/${id}`, { body: { turn, n }, timeout: 7_000 });
          // A second try may find what the first has written.
          if (answer.status === 201 || answer.status === 202 || (answer.status === 409 && tries > 0)) { acked.push(id); break; }
          if (answer.status !== 503 && answer.status !== 502) { faults.push(`${id}: ${answer.status} ${answer.text}`); break; }
        } catch { /* a pod that is being replaced; the next one, then */ }
        if (Date.now() - began > 20_000) { faults.push(`${id}: no pod took it in 20 s`); break; }
        await sleep(50);
      }
      longest = Math.max(longest, Date.now() - began);
    }
  };
  const running = pods.map(run);
  return { acked, faults, end: async () => { stop = true; await Promise.all(running); return longest; } };
}

describe('an upgrade', () => {
  test('an order counts only with the signature of the operator\'s key', LIMIT, async () => {
    const order = { format: 2, id: '0123456789abcdef', source: 'ring', archive_sha256: '0'.repeat(64), pods: ['pod-1'], made_at_ms: Date.now(), patience_s: 60, state: 'running' };
    for (const [body, status] of [[order, 403], [{ ...order, signature: 'f'.repeat(128) }, 403], [{ ...order, pods: [] }, 400], [{ ...order, format: 1 }, 400], [{ ...order, format: 3 }, 400], [{}, 400]]) {
      const answer = await pods[1].send('PUT', '/_ring/upgrade', { body });
      assert.equal(answer.status, status, answer.text);
      const bulk = await pods[2].send('POST', '/_ring/_bulk_docs', { body: { docs: [{ ...body, _id: 'upgrade' }] } });
      assert.ok(bulk.json[0].error, bulk.text);
      const pushed = await pods[0].send('POST', '/_ring/_bulk_docs', { body: { new_edits: false, docs: [{ ...body, _id: 'upgrade', _rev: '1-0123456789abcdef0123456789abcdef' }] } });
      assert.ok(!pushed.json || pushed.json.length === 0 || pushed.json[0].error, pushed.text);
    }
    assert.equal((await pods[0].send('GET', '/_ring/upgrade')).status, 404);
    // Of the pods' folders the first alone has it: another machine can't order, and says where it is done.
    assert.deepEqual(pods.map((pod) => existsSync(join(pod.data, 'order.key'))), [true, false, false]);
    const elsewhere = await upgrade(['--binary', PROGRAM, '--ring-file', join(pods[1].data, 'ring.json')]);
    assert.equal(elsewhere.code, 1, JSON.stringify(elsewhere));
    assert.match(elsewhere.error, /order\.key/);
    assert.equal((await pods[0].send('PUT', '/_ring/image:..%2Fx', { body: {} })).status, 400);
  });

  test('all pods get the later version while clients write and listen', LIMIT, async () => {
    const feed = new Map();
    let stop = false;
    const listening = (async () => {
      for (let since = 0, n = 0; !stop; n++) {
        try {
          const page = await pods[n % pods.length].ok('GET', `/${APP}/_changes?feed=longpoll&timeout=2000&since=${since}`, { timeout: 10_000 });
          for (const row of page.results) feed.set(row.id, row.seq);
          since = encodeURIComponent(page.last_seq);
        } catch { await sleep(50); }
      }
    })();
    const writing = writers();
    let mixed = 0;
    const began = Date.now();
    const done = await upgrade(['--binary', NEXT, '--patience', '60s'], ({ step }) => { mixed += step === 'done'; });
    const tookMs = Date.now() - began;
    const longest = await writing.end();
    assert.equal(done.code, 0, JSON.stringify(done));
    assert.equal(done.last.result, 'done');
    assert.ok((await versions()).every(isNext), `${await versions()}`);
    assert.deepEqual(writing.faults, []);
    assert.ok(writing.acked.length > 50, `${writing.acked.length} writes`);
    await converged(pods, [APP, '_users']);
    for (const pod of pods) {
      const ids = new Set((await pod.ok('GET', `/${APP}/_all_docs`)).rows.map((row) => row.id));
      assert.deepEqual(writing.acked.filter((id) => !ids.has(id)), [], `lost at ${pod.base}`);
    }
    await until(() => writing.acked.every((id) => feed.has(id)), 'the listener to have all', 30_000);
    stop = true;
    await listening;
    assert.ok(mixed >= 2, 'old and new ran side by side');
    console.log(`3 pods in ${tookMs} ms; ${writing.acked.length} writes, the longest took ${longest} ms`);
  });

  test('a program that ends at once is taken back, and nobody else begins', LIMIT, async () => {
    const bad = await upgrade(['--binary', script('bad', '*) exit 7;;'), '--patience', '60s']);
    assert.equal(bad.code, 1, JSON.stringify(bad));
    assert.equal(bad.last.result, 'failed');
    assert.match(bad.last.reason, /ended by themselves 3 times/);
    assert.ok(bad.error.includes('went') || bad.error.includes('failed'), bad.error);
    assert.deepEqual(bad.last.pods.map((pod) => pod.step).sort(), ['ready', 'ready', 'rolled_back']);
    assert.ok((await versions()).every(isNext));
  });

  test('an agent that ends at once is taken back, too', LIMIT, async () => {
    const bad = await upgrade(['--binary', script('agent', `adea*) exit 7;;\n*) exec ${PROGRAM} "$@";;`), '--patience', '60s']);
    assert.equal(bad.code, 1, JSON.stringify(bad));
    assert.match(bad.last.reason, /agent ended at once/);
    assert.ok((await versions()).every(isNext), `${await versions()}`);
    for (const pod of pods) await pod.up();
  });

  test('what is no podctl is not even sent', LIMIT, async () => {
    const path = join(dir, 'text');
    writeFileSync(path, 'no program');
    const refused = await upgrade(['--binary', path]);
    assert.notEqual(refused.code, 0);
    assert.equal(refused.lines.length, 0);
  });

  test('an upgrade that is called off is undone, also where an agent is killed meanwhile', LIMIT, async () => {
    let calling;
    const off = await upgrade(['--binary', PROGRAM, '--patience', '60s'], ({ step }) => {
      if (step !== 'done' || calling) return;
      pods[2].kill('adea');
      calling = upgrade(['cancel']);
    });
    assert.equal(off.code, 1, JSON.stringify(off));
    assert.equal((await calling).code, 0, JSON.stringify(await calling));
    assert.ok((await versions()).every(isNext), `${await versions()}`);
    const status = await upgrade(['status']);
    assert.equal(status.code, 5);
    assert.equal(status.last.result, 'called_off');
  });

  test('the way back to the earlier version is an upgrade like any other', LIMIT, async () => {
    const done = await upgrade(['--binary', PROGRAM, '--patience', '60s']);
    assert.equal(done.code, 0, JSON.stringify(done));
    assert.ok(!(await versions()).some(isNext));
    await converged(pods, [APP, '_users']);
    for (const pod of pods) assert.equal(journal(pod).step, 'done');
    // A restart of everything begins with the installed program, and goes on as the ring's.
    await pods[0].restart();
    await ring.agreed();
    assert.ok(!(await versions()).some(isNext));
  });
});
