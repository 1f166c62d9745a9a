// Three hosts with a Docker of their own each: from nothing to a ring, then broken, filled, upgraded and taken apart, as an
// operator would meet it. What is told to be done stays done, through all of it.
// SEED=N repeats a run's choices (not its timing), KEEP=1 keeps the hosts' folders, PODCTL_NEXT is the build of another version.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { brokenImage } from './lib/archive.mjs';
import { Client } from './lib/clients.mjs';
import { PUBLIC_PORT, RING_PORT } from './lib/host.mjs';
import { HostRing, podId } from './lib/host-ring.mjs';
import { ADMIN, PROGRAM, Pod } from './lib/pod.mjs';
import { Random } from './lib/random.mjs';
import { converged } from './lib/ring.mjs';
import { Traffic } from './lib/traffic.mjs';
import { until } from './lib/wait.mjs';

const SEED = Number(process.env.SEED) || (Date.now() % 1_000_000_007);
const NEXT = process.env.PODCTL_NEXT || `${PROGRAM}-next`;
const DEPLOY = new URL('../../deploy', import.meta.url).pathname;
const APP = 'notes', PLAIN = 'plain';
/** The aim is 30 MB; what Docker counts is the unpacked layer. */
const MAX_IMAGE_BYTES = 64e6;
/** The third host's disk can be made smaller; until then it has room. */
const DISK_MIB = 4096;
const LOW_MIB = 120, FULL_MIB = 60;

let ring, hosts, pods, began, isGood = false, failures = 0;
const log = (text) => console.log(`${((Date.now() - began) / 1000).toFixed(1).padStart(6)} s  ${text}`);
const traffics = [];
const traffic = (options) => { const one = new Traffic(pods, new Random(SEED + traffics.length), { db: PLAIN, ...options }); traffics.push(one); return one.start(); };

/** A test whose failure shows the hosts' logs. */
function step(name, timeout, what) {
  test(name, async (t) => {
    // One thing broken makes all that follows fail in ways that tell nothing.
    if (failures) { t.skip('an earlier step failed'); return; }
    try {
      await inTime(what(t), timeout);
      log(`done: ${name}`);
    } catch (error) {
      failures++;
      console.log(ring.logs(40));
      throw error;
    }
  });
}

/** As the timeout of node's tests, but the failure is one that is seen here. */
function inTime(what, ms) {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`not done in ${ms} ms`)), ms); });
  return Promise.race([what, late]).finally(() => clearTimeout(timer));
}

before(async () => {
  console.log(`SEED=${SEED}`);
  began = Date.now();
  ring = await HostRing.start(3, { seed: SEED, disks: { 3: DISK_MIB } });
  hosts = ring.hosts.all;
  pods = ring.pods;
  log(`three hosts are up: ${hosts.map((host) => host.address)}`);
}, { timeout: 120_000 });

after(async () => {
  for (const one of traffics) one.stopping = true;
  await ring?.stop();
  log(isGood ? 'all is well, and gone' : 'gone');
}, { timeout: 60_000 });

/** Nothing of all that clients were told is missing, on no pod. */
async function nothingLost(some = pods) {
  for (const one of traffics) assert.deepEqual(one.failed, [], 'errors that trying again doesn\'t cure');
  for (const pod of some) {
    await until(async () => {
      const missing = (await Promise.all(traffics.map((one) => one.missing(pod)))).flat();
      if (missing.length) throw new Error(`${missing.length} acknowledged writes: ${missing.slice(0, 5)}`);
      return true;
    }, `${pod.base} to have all acknowledged writes`, 60_000);
  }
}

const inspect = async (host, name) => (await host.engine('GET', `/containers/${name}/json`)).json;
/** What tells whether a container is the same and has run on. */
const runs = async (host, name) => { const { Id, State } = await inspect(host, name); return `${Id} since ${State.StartedAt}`; };

// ---- from nothing to a ring -------------------------------------------------------------------------------------------------

step('three fresh hosts become a ring', 240_000, async () => {
  await ring.bootstrap();
  log(`a ring of three answers: ${JSON.stringify(ring.seconds)}`);
  await ring.configure({ disk: { low_percent: 0, low_mib: LOW_MIB, full_percent: 0, full_mib: FULL_MIB } });
  await pods[0].ok('PUT', `/${PLAIN}`);
  await pods[0].makeApp(APP);
  await pods[0].makeUser('ann');
  await converged(pods, ['_users', PLAIN, APP]);
});

// ---- upgraded ---------------------------------------------------------------------------------------------------------------

/** Which builds a pod's programs say that they are. */
const versions = async (host) => [...new Set((await ring.status(host)).host.programs.map((program) => program.software))];

step('an upgrade under load, pod by pod', 300_000, async () => {
  assert.ok(existsSync(NEXT), `${NEXT} is not there: tests/run --only build`);
  const image = ring.folder('next.tar');
  execFileSync(NEXT, ['image', '--output', image], { stdio: 'ignore' });
  const ann = new Client(pods[1], 'ann', `${APP}--me`).online();
  const writes = traffic();
  const start = Date.now();
  try {
    const { stdout } = await hosts[0].podctl(['upgrade', '--image', image, '--patience', '90s', '--json'], { timeout: 240_000 });
    log(`upgraded in ${((Date.now() - start) / 1000).toFixed(1)} s; it said last: ${stdout.trim().split('\n').at(-1)}`);
    for (const host of hosts) await until(async () => (await versions(host)).join() === '0.1.0-next', `${podId(host)} to run the next version`, 30_000);
    await ring.agreed();
    await until(() => writes.written.size > 100, 'writes after it');
    await pods[0].put(APP, 'after-upgrade', { text: 'new', access: { read: ['user:ann'] } });
    await ann.has('after-upgrade', 'new');
    await ann.local.put({ _id: 'from-ann', text: 'back', access: { read: ['user:ann'] } });
    await until(async () => (await pods[2].send('GET', `/${APP}/from-ann`)).status === 200, 'what ann writes to be everywhere');
    assert.deepEqual([ann.denied, ann.errors], [[], []]);
  } finally {
    await ann.close();
    await writes.stop();
  }
  log(`upgrade: ${writes}`);
  await nothingLost();
});

for (const [passes, name] of [[true, 'an image whose programs end at once is taken back by itself'], [false, 'an image that can\'t run at all is refused before anything is touched']]) {
  step(name, 300_000, async () => {
    const image = ring.folder('broken.tar');
    brokenImage(ring.folder('next.tar'), image, ring.folder('broken'), { passes });
    const before = await Promise.all(hosts.flatMap((host) => Object.values(ring.names(host)).map((name) => runs(host, name))));
    const writes = traffic();
    const done = await hosts[0].podctl(['upgrade', '--image', image, '--patience', '30s', '--json'], { timeout: 200_000, ok: false });
    assert.notEqual(done.code, 0, done.stdout);
    assert.notEqual(done.code, 137, `it did not end\n${done.stdout}${done.stderr}`);
    log(`the broken image: ${done.code} ${(done.stderr || done.stdout).trim().split('\n').at(-1)}`);
    await Promise.all(hosts.map((host) => ring.answers(host)));
    for (const host of hosts) await until(async () => (await versions(host)).join() === '0.1.0-next', `${podId(host)} to run what it ran`, 60_000);
    await ring.agreed();
    await writes.stop();
    log(`broken upgrade: ${writes}`);
    if (!passes) assert.deepEqual(await Promise.all(hosts.flatMap((host) => Object.values(ring.names(host)).map((name) => runs(host, name)))), before);
    await nothingLost();
  });
}

