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
/** Of a release build with its symbols, as Docker counts: unpacked. What `deploy/build` makes has 30 MB at most: see deploy.test.mjs. */
const MAX_IMAGE_BYTES = 64e6;
/** The third host's disk can be made smaller; until then it has room. */
const DISK_MIB = 4096;
const LOW_MIB = 120, FULL_MIB = 60;
/** What orders of upgrades are signed with, on the first host only. */
const KEY_FILE = '/var/lib/adea/order.key';

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

step('the containers have no more than they need', 30_000, async () => {
  const [host] = hosts;
  const names = ring.names(host);
  const images = new Set();
  for (const [program, name] of Object.entries(names)) {
    const { Config, HostConfig, State } = await inspect(host, name);
    assert.equal(State.Status, 'running', name);
    assert.match(Config.User, /^65532/);
    assert.equal(HostConfig.ReadonlyRootfs, true);
    assert.deepEqual(HostConfig.CapDrop, ['ALL']);
    assert.ok(HostConfig.SecurityOpt.some((option) => option.startsWith('no-new-privileges')));
    assert.equal(HostConfig.Privileged, false);
    assert.ok(HostConfig.PidsLimit > 0);
    assert.ok(['', 'no'].includes(HostConfig.RestartPolicy.Name));
    assert.equal(Config.Labels['org.adea.pod'], podId(host));
    assert.equal(Config.Labels['org.adea.program'], program);
    // Secrets come by files.
    const words = JSON.stringify([Config.Env, Config.Cmd, Config.Labels]);
    const { ring_secret } = host.json('/var/lib/adea/ring.json');
    assert.ok(ring_secret.length >= 32 && !words.includes(ring_secret), 'the ring\'s secret');
    // The ring's secret is all that it gets of the machine's secrets: who takes it over can order no upgrade.
    const mounts = HostConfig.Mounts.map(({ Source }) => Source);
    assert.ok(mounts.includes('/var/lib/adea/run/container-ring.json'), `${mounts}`);
    assert.ok(existsSync(host.outside(KEY_FILE)));
    assert.deepEqual(mounts.filter((source) => `${KEY_FILE}/`.startsWith(`${source}/`)), []);
    images.add(Config.Image);
  }
  assert.equal(images.size, 1);
  const { json: image } = await host.engine('GET', `/images/${[...images][0]}/json`);
  assert.ok(image.Size < MAX_IMAGE_BYTES, `${image.Size} bytes`);
  log(`the image has ${(image.Size / 1e6).toFixed(1)} MB`);
  // Only the public port and the ring's can be reached from elsewhere.
  const published = Object.values(await host.containers()).map((one) => one.id);
  const ports = (await Promise.all(published.map((id) => inspect(host, id)))).flatMap(({ NetworkSettings }) => Object.values(NetworkSettings.Ports).flatMap((all) => all ?? []));
  assert.deepEqual([...new Set(ports.map((port) => Number(port.HostPort)))].sort(), [PUBLIC_PORT, RING_PORT]);
});

step('the image is the same each time, and Docker takes it', 60_000, async () => {
  const [host] = hosts;
  const files = ['one', 'two'].map((name) => ring.folder(`${name}.tar`));
  for (const file of files) execFileSync(PROGRAM, ['image', '--output', file], { stdio: 'ignore' });
  execFileSync('cmp', files);
  const loaded = await host.engine('POST', '/images/load?quiet=1', undefined, files[0]);
  assert.equal(loaded.status, 200, loaded.text);
  assert.match(loaded.text, /Loaded image/);
});

step('every proxy takes reads and writes, and PouchDB syncs live through all of them', 60_000, async () => {
  const clients = pods.map((pod) => new Client(pod, 'ann', `${APP}--me`).online());
  try {
    for (const [n, client] of clients.entries()) await client.local.put({ _id: `from-${n}`, text: `by ${n}`, access: { read: ['user:ann'] } });
    for (const client of clients) for (const n of clients.keys()) await client.has(`from-${n}`, `by ${n}`);
    for (const client of clients) assert.deepEqual([client.denied, client.errors], [[], []]);
  } finally {
    for (const client of clients) await client.close();
  }
});

step('operators see it all from any machine, and large attachments are everywhere', 60_000, async () => {
  for (const host of hosts) {
    const { code, stdout } = await host.podctl(['status'], { ok: false });
    for (const other of hosts) assert.ok(stdout.includes(podId(other)), `${host.name}: ${code}\n${stdout}`);
  }
  await until(async () => {
    const { code, stdout, stderr } = await hosts[1].podctl(['status', '--json'], { ok: false });
    if (code !== 0) throw new Error(`${code} ${stdout}${stderr}`);
    return true;
  }, 'the ring to be well', 30_000);
  const logs = await hosts[2].podctl(['logs', podId(hosts[0])], { ok: false });
  assert.ok(logs.stdout.length > 100, `${logs.code} ${logs.stderr}`);
  await ring.configure({ files: { above_mib: 1 } });
  const body = Buffer.alloc(5 << 20, 'adea');
  const { rev } = await pods[0].ok('PUT', `/${PLAIN}/large/body`, { body, headers: { 'content-type': 'application/octet-stream' } });
  for (const pod of pods) {
    await until(async () => (await pod.send('GET', `/${PLAIN}/large`)).json?._rev === rev, 'the document to be there');
    assert.ok((await pod.send('GET', `/${PLAIN}/large/body`)).raw.equals(body), pod.base);
  }
});

// ---- broken -----------------------------------------------------------------------------------------------------------------

step('killed containers come back, and what isn\'t ours is left alone', 120_000, async () => {
  const [host] = hosts;
  const { rean, proxy } = ring.names(host);
  const { Image } = await inspect(host, rean);
  // One without labels, and one that has the pod's label and another ring's.
  const strangers = { 'a-neighbour': {}, 'adea-pod-1-mail': { 'org.adea.pod': podId(host), 'org.adea.program': 'rean', 'org.adea.ring': 'of-somebody-else' } };
  for (const [name, Labels] of Object.entries(strangers)) {
    const made = await host.engine('POST', `/containers/create?name=${name}`, { Image, Labels, Cmd: ['dev', '--no-example', '--port', '5984', '--data', '/tmp/dev'], HostConfig: { Tmpfs: { '/tmp': 'mode=1777' } } });
    assert.equal(made.status, 201, made.text);
    assert.equal((await host.engine('POST', `/containers/${name}/start`)).status, 204);
  }
  const before = await Promise.all(Object.keys(strangers).map((name) => runs(host, name)));
  const writes = traffic();
  for (const name of [rean, proxy, rean]) {
    const was = await runs(host, name);
    assert.equal((await host.engine('POST', `/containers/${name}/kill`)).status, 204);
    await until(async () => (await runs(host, name)) !== was && (await inspect(host, name)).State.Running, `${name} to run again`, 30_000);
    await ring.answers(host);
  }
  // One that somebody removes by hand is made anew.
  const was = (await inspect(host, proxy)).Id;
  assert.equal((await host.engine('DELETE', `/containers/${proxy}?force=1`)).status, 204);
  await until(async () => { const { Id } = await inspect(host, proxy); return Id && Id !== was; }, 'the proxy to be made again', 30_000);
  await ring.answers(host);
  await writes.stop();
  assert.deepEqual(await Promise.all(Object.keys(strangers).map((name) => runs(host, name))), before, 'containers of others');
  for (const name of Object.keys(strangers)) await host.engine('DELETE', `/containers/${name}?force=1`);
  log(`killed containers: ${writes}`);
  await nothingLost();
});

step('an agent that is killed finds its containers again, and they never notice', 60_000, async () => {
  const host = hosts[1], names = Object.values(ring.names(host));
  const before = await Promise.all(names.map((name) => runs(host, name)));
  const writes = traffic();
  await host.killAdea();
  assert.equal((await pods[1].send('GET', `/${PLAIN}`)).status, 200);
  await ring.up(host);
  // The new agent's own account, and its voice among the others.
  const pid = Number(readFileSync(host.outside('/run/adea.pid'), 'utf8'));
  await until(() => {
    const state = host.json('/var/lib/adea/run/state.json');
    return state.adea_pid === pid && Object.values(state.programs).filter((program) => program.healthy).length === 2;
  }, 'the new agent to have found the containers', 30_000);
  await ring.agreed();
  await until(() => writes.written.size > 50, 'some writes');
  await writes.stop();
  assert.deepEqual(await Promise.all(names.map((name) => runs(host, name))), before);
  log(`killed agent: ${writes}`);
  await nothingLost();
});

step('a Docker that is killed is waited for, and the pod is there again', 120_000, async () => {
  const host = hosts[2];
  const writes = traffic();
  await host.killDocker();
  await host.startDocker();
  await ring.answers(host);
  assert.ok(host.adea, 'the agent has gone on');
  await ring.agreed();
  await writes.stop();
  log(`killed Docker: ${writes}`);
  await nothingLost();
});

step('a host that is cut off goes on alone, and is whole again after', 120_000, async () => {
  const host = await ring.agreed(), others = hosts.filter((one) => one !== host);
  await ring.hosts.cut(host);
  const master = await ring.agreed(others, (one) => one !== host);
  log(`${podId(host)}, the master, is cut off, and ${podId(master)} is the others'`);
  await ring.agreed([host], (one) => one === host);
  for (const [n, pod] of pods.entries()) await until(async () => (await pod.send('PUT', `/${PLAIN}/split-${n}`, { body: { n } })).status === 201, `pod ${n + 1} to write`, 30_000);
  await ring.hosts.heal();
  await ring.agreed();
  await converged(pods, [PLAIN, APP, '_users'], 60_000);
  for (const pod of pods) for (const n of pods.keys()) await pod.ok('GET', `/${PLAIN}/split-${n}`);
});

step('the power fails everywhere', 180_000, async () => {
  const writes = traffic();
  await until(() => writes.written.size > 50, 'some writes');
  await writes.stop();
  await Promise.all(hosts.map((host) => host.reboot()));
  await Promise.all(hosts.map((host) => ring.answers(host)));
  await ring.agreed();
  await nothingLost();
});

step('a disk that fills up: mastership goes, then new data is refused, then all is well again', 180_000, async () => {
  const host = hosts[2], pod = pods[2];
  const shows = (level) => until(async () => { const { disk } = await ring.info(host, pod); return (disk ?? 'roomy') === level; }, `${podId(host)} to say that its disk is ${level}`, 30_000);
  const used = await host.used();
  await host.resize(used + (LOW_MIB + FULL_MIB) / 2);
  await shows('low');
  const master = await ring.agreed(hosts, (one) => one !== host);
  log(`low: ${podId(master)} is master`);
  // Low takes data still, from a client too.
  await pod.put(PLAIN, 'while-low', { n: 1 });
  await host.resize((await host.used()) + FULL_MIB / 2);
  await shows('full');
  // The others go on.
  await pods[0].put(PLAIN, 'while-full', { n: 1 });
  // Alone it would have to store the write itself.
  await ring.hosts.cut(host);
  await until(async () => {
    const answer = await pod.send('PUT', `/${PLAIN}/too-much`, { body: { n: 1 }, timeout: 10_000 });
    if (answer.status === 201) throw Object.assign(new Error('a full pod has taken a document'), { fatal: true });
    if (answer.status !== 507) throw new Error(`${answer.status} ${answer.text}`);
    assert.equal(answer.json.error, 'insufficient_storage');
    return true;
  }, 'the full pod to refuse', 60_000);
  const { _rev } = await pod.get(PLAIN, 'while-low');
  await pod.ok('DELETE', `/${PLAIN}/while-low?rev=${_rev}`);
  await ring.hosts.heal();
  await host.resize(DISK_MIB);
  await shows('roomy');
  await ring.agreed();
  await converged(pods, [PLAIN], 60_000);
  await pod.ok('GET', `/${PLAIN}/while-full`);
});

// ---- upgraded ---------------------------------------------------------------------------------------------------------------

/** Which builds a pod's programs say that they are. */
const versions = async (host) => [...new Set((await ring.status(host)).host.programs.map((program) => program.software))];

step('an upgrade under load, pod by pod', 300_000, async () => {
  assert.ok(existsSync(NEXT), `${NEXT} is not there: tests/run --only build`);
  const image = ring.folder('next.tar');
  execFileSync(NEXT, ['image', '--output', image], { stdio: 'ignore' });
  const ann = new Client(pods[1], 'ann', `${APP}--me`).online();
  const elsewhere = await hosts[1].podctl(['upgrade', '--image', image, '--json'], { timeout: 60_000, ok: false });
  assert.equal(elsewhere.code, 1, elsewhere.stdout);
  assert.match(elsewhere.stderr, /order\.key/);
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
    const tag = brokenImage(ring.folder('next.tar'), image, ring.folder('broken'), { passes });
    const before = await Promise.all(hosts.flatMap((host) => Object.values(ring.names(host)).map((name) => runs(host, name))));
    const writes = traffic();
    const done = await hosts[0].podctl(['upgrade', '--image', image, '--patience', '30s', '--json'], { timeout: 200_000, ok: false });
    assert.notEqual(done.code, 0, done.stdout);
    assert.notEqual(done.code, null, `it did not end\n${done.stdout}${done.stderr}`);
    log(`the broken image: ${done.code} ${(done.stderr || done.stdout).trim().split('\n').at(-1)}`);
    await Promise.all(hosts.map((host) => ring.answers(host)));
    for (const host of hosts) await until(async () => (await versions(host)).join() === '0.1.0-next', `${podId(host)} to run what it ran`, 60_000);
    // Docker is rid of it, also where it was never run.
    for (const host of hosts) await until(async () => (await host.engine('GET', `/images/${tag}/json`)).status === 404, `${podId(host)} to have no image ${tag}`, 30_000);
    await ring.agreed();
    await writes.stop();
    log(`broken upgrade: ${writes}`);
    if (!passes) assert.deepEqual(await Promise.all(hosts.flatMap((host) => Object.values(ring.names(host)).map((name) => runs(host, name)))), before);
    await nothingLost();
  });
}

// ---- taken apart ------------------------------------------------------------------------------------------------------------

step('a deactivated pod takes no clients and follows on; activated it takes them again', 120_000, async () => {
  const host = hosts[1], pod = pods[1];
  const feed = pod.follow(`/${APP}--me/_changes?feed=continuous&heartbeat=1000`, { as: 'ann' });
  await until(() => feed.status === 200, 'the feed to begin');
  await hosts[0].podctl(['pods', 'deactivate', podId(host)]);
  await until(async () => (await pod.send('GET', `/${APP}--me`, { as: 'ann' })).status === 503, 'clients to be sent away', 30_000);
  await until(() => feed.ended, 'the feed to end');
  const answer = await pod.send('GET', `/${APP}--me`, { as: 'ann' });
  assert.equal(answer.json.error, 'inactive');
  assert.ok(Number(answer.headers['retry-after']) > 0);
  await until(async () => {
    const up = await pod.send('GET', '/_up', { as: null });
    return up.status === 404 && up.json.status === 'inactive';
  }, 'those who ask whether it is up to hear that it is not in service', 5_000);
  await ring.agreed(hosts, (one) => one !== host);
  await pods[0].put(PLAIN, 'while-inactive', { n: 1 });
  await until(async () => (await pod.send('GET', `/${PLAIN}/while-inactive`)).status === 200, 'it to follow on');
  // Its programs are well, so the agent leaves them alone.
  await hosts[0].podctl(['pods', 'activate', podId(host)]);
  await ring.answers(host);
  await until(async () => (await pod.send('GET', `/${APP}--me`, { as: 'ann' })).status === 200, 'clients to be taken again', 30_000);
});

step('a removed pod is gone, and stays away', 120_000, async () => {
  const host = hosts[2], others = hosts.slice(0, 2);
  const writes = new Traffic(pods.slice(0, 2), new Random(SEED), { db: PLAIN, writers: 2 });
  traffics.push(writes.start());
  await hosts[0].podctl(['pods', 'remove', podId(host), '--yes'], { timeout: 60_000 });
  await until(() => !host.adea, 'its agent to end', 60_000);
  assert.equal(host.agent_end, 0, 'it ends well, so systemd leaves it alone');
  const nothingLeft = async () => {
    assert.deepEqual(await host.containers(), {}, 'its containers are removed');
    const networks = (await host.engine('GET', '/networks')).json.map((network) => network.Name);
    assert.ok(!networks.includes(`adea-${podId(host)}`), 'and so is its network');
  };
  await nothingLeft();
  await ring.agreed(others);
  await until(async () => (await pods[0].send('GET', `/_pods/pod:${podId(host)}`, { as: null })).status === 404, 'it to be gone from the list of pods', 30_000);
  await writes.stop();
  await nothingLost(pods.slice(0, 2));
  host.startAdea();
  await until(() => !host.adea, 'it to learn that it was removed', 60_000);
  assert.equal(host.agent_end, 0);
  await nothingLeft();
});

step('one pod by Docker Compose, without an agent', 120_000, async (t) => {
  const compose = [['docker', 'compose'], ['docker-compose']].find(([program, ...args]) => spawnSync(program, [...args, 'version']).status === 0);
  if (!compose) { t.skip('no Docker Compose here'); return; }
  const host = hosts[2], listen = `${host.address}:5990`;
  // As the head of the file says.
  const script = `set -e
mkdir -p /run/compose
cd /run/compose
cp ${DEPLOY}/compose.yaml .
podctl image --output adea.tar --tag adea:local
docker load --quiet --input adea.tar
podctl init --data data --config data/adea.json --pod alone --tls none --ring-listen ${host.address}:${RING_PORT} --admin ${ADMIN.name} --admin-password-file /run/password
mkdir -p data/rean data/proxy
cp data/ring.json data/ring-container.json
chown -R 65532:65532 data/rean data/proxy data/ring-container.json
${compose.join(' ')} up --detach`;
  const env = { ADEA_LISTEN: listen };
  writeFileSync(host.outside('/run/password'), ADMIN.password, { mode: 0o600 });
  await host.sh(script, { env });
  try {
    const pod = Pod.at({ host: host.address, port: 5990 });
    await pod.up(60_000);
    await pod.ok('PUT', `/${PLAIN}`);
    const rev = await pod.put(PLAIN, 'one', { n: 1 });
    await host.sh(`cd /run/compose && ${compose.join(' ')} restart`, { env });
    await pod.up(60_000);
    assert.equal((await pod.get(PLAIN, 'one'))._rev, rev);
    await until(async () => (await host.engine('GET', '/containers/json')).json.every((one) => one.Status.includes('(healthy)')), 'Docker to find both well', 60_000);
    pod.agent.destroy();
  } finally {
    await host.sh(`cd /run/compose && ${compose.join(' ')} down --timeout 10`, { env, ok: false });
  }
});

step('told to stop, an agent stops its containers in order', 60_000, async () => {
  for (const host of hosts.slice(0, 2)) {
    await host.stopAdea();
    assert.equal(host.agent_end, 0);
    for (const name of Object.values(ring.names(host))) {
      const container = await inspect(host, name);
      if (!container?.State) continue;
      assert.deepEqual([container.State.Running, container.State.ExitCode], [false, 0], name);
    }
  }
  isGood = true;
});
