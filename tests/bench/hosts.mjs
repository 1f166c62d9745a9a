// What an operator waits for, and what a pod costs: one line of JSON for each figure. Root, Docker and the release builds are
// needed, as for tests/js/hosts.test.mjs: tests/run --only build, then
//
//   node tests/bench/hosts.mjs [ROUNDS]
//
// - `bootstrap_s`: from machines that have nothing but Docker and podctl to a ring of three that answers and agrees on a master.
// - `upgrade_s`, `upgrade_pod_s`: a rolling upgrade to another build, in all and for each pod.
// - `image_bytes`: the archive that `podctl image` writes, and the same packed with gzip, as a registry would send it.
// - `idle_bytes`: of each program of a pod that has nothing to do, a minute after it came up: resident memory (all, and the part
//   that is no file's: what the machine can't get back; and with shared pages counted once), and what the container's group is
//   charged for.
import { execFileSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { HostRing, podId } from '../js/lib/host-ring.mjs';
import { PROGRAM } from '../js/lib/pod.mjs';
import { sleep, until } from '../js/lib/wait.mjs';

const NEXT = process.env.PODCTL_NEXT || `${PROGRAM}-next`;
const PODS = 3, IDLE_MS = 60_000;
const rounds = Number(process.argv[2]) || 1;
const say = (what, figures) => console.log(JSON.stringify({ bench: what, ...figures }));
const round = (number, digits = 2) => Number(number.toFixed(digits));

/** Of a process, seen from outside, in bytes. */
function memory(pid) {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const of = (name) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1] ?? 0) * 1024;
  // Pages of the program file that processes share count in equal parts.
  const pss = Number(/^Pss:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1] ?? 0) * 1024;
  return { rss_bytes: of('VmRSS'), anon_bytes: of('RssAnon'), pss_bytes: pss };
}

/** What a container's group is charged for; the kernel's two kinds of groups name it differently. */
async function charged(host, name) {
  const { json } = await host.engine('GET', `/containers/${name}/stats?stream=false&one-shot=true`);
  const { usage, stats = {} } = json.memory_stats ?? {};
  return usage === undefined ? {} : { cgroup_bytes: usage, cgroup_without_cache_bytes: usage - (stats.total_inactive_file ?? stats.inactive_file ?? 0) };
}

async function idle(ring, host) {
  const all = {};
  for (const [program, name] of Object.entries(ring.names(host))) {
    const { json } = await host.engine('GET', `/containers/${name}/json`);
    // The engine sees its host's process ids; those of this namespace are found by the container's group.
    const pids = findPids(host, json.Id);
    all[program] = { ...memory(pids[0]), ...(await charged(host, name)) };
  }
  all.adea = memory(findAgent(host));
  const total = (what) => Object.values(all).reduce((sum, one) => sum + one[what], 0);
  say('idle_bytes', { pod: podId(host), ...all, rss_bytes: total('rss_bytes'), anon_bytes: total('anon_bytes'), pss_bytes: total('pss_bytes') });
}

/** The processes of a container, as this namespace numbers them. */
function findPids(host, id) {
  const files = execFileSync('find', ['/sys/fs/cgroup', '-path', `*${host.cgroup}/${id}/cgroup.procs`], { encoding: 'utf8' }).trim().split('\n');
  // Of the several trees of groups that older kernels have, some are empty.
  const pids = files.map((file) => readFileSync(file, 'utf8').trim()).find(Boolean);
  return pids.split('\n').map(Number);
}

function findAgent(host) {
  const inner = readFileSync(host.outside('/run/adea.pid'), 'utf8').trim();
  const found = execFileSync('sh', ['-c', `grep -l "^NSpid:.*[[:space:]]${inner}$" /proc/[0-9]*/status 2>/dev/null || true`], { encoding: 'utf8' }).trim().split('\n');
  for (const file of found) {
    const pid = Number(file.split('/')[2]);
    try { if (statSync(`/proc/${pid}/ns/pid`).ino === statSync(`/proc/${host.pid}/ns/pid`).ino) return pid; } catch { /* it has ended */ }
  }
  throw new Error('the agent is not to be found');
}

async function upgrade(ring) {
  const image = ring.folder('next.tar');
  execFileSync(NEXT, ['image', '--output', image], { stdio: 'ignore' });
  const began = Date.now(), done = {};
  const running = ring.hosts.all[0].podctl(['upgrade', '--image', image, '--json'], { timeout: 300_000 });
  let over = false;
  running.finally(() => { over = true; }).catch(() => {});
  const watched = until(async () => {
    for (const host of ring.hosts.all) {
      const step = (await ring.status(host).catch(() => ({}))).upgrade?.step;
      const at = (Date.now() - began) / 1000;
      const one = done[podId(host)] ??= {};
      if (['handing_over', 'replacing', 'catching_up'].includes(step)) one.from ??= at;
      if (step === 'done') one.to ??= at;
    }
    return over;
  }, 'the upgrade', 300_000);
  await running;
  await watched;
  const pods = Object.fromEntries(Object.entries(done).map(([pod, { from, to }]) => [pod, from === undefined || to === undefined ? null : round(to - from)]));
  say('upgrade', { upgrade_s: round((Date.now() - began) / 1000), upgrade_pod_s: pods });
}

for (let n = 1; n <= rounds; n++) {
  const ring = await HostRing.start(PODS, { seed: n });
  try {
    await ring.bootstrap();
    const { hosts, ...parts } = ring.seconds;
    say('bootstrap', { pods: PODS, bootstrap_s: round(Object.values(parts).reduce((sum, one) => sum + one, 0)), parts });
    if (n === 1) {
      const file = ring.folder('image.tar');
      execFileSync(PROGRAM, ['image', '--output', file], { stdio: 'ignore' });
      const gzip = Number(execFileSync('sh', ['-c', 'gzip -9 -c "$1" | wc -c', 'sh', file], { encoding: 'utf8' }));
      say('image', { image_bytes: statSync(file).size, gzip_bytes: gzip, program_bytes: statSync(PROGRAM).size });
      await sleep(IDLE_MS);
      for (const host of ring.hosts.all) await idle(ring, host);
    }
    await upgrade(ring);
  } finally {
    await ring.stop();
  }
}
