// A ring of a test's own: `podctl dev --pods N` in a temporary folder.
import net from 'node:net';
import { Pod } from './pod.mjs';
import { until } from './wait.mjs';

/** As `podctl dev` places them. */
const PORT_STEP = 10;

const isFree = (port) => new Promise((resolve) => {
  const server = net.createServer().on('error', () => resolve(false));
  server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
});

/** A first port for this many pods. Below those that the kernel lends to outgoing connections, so that none takes one meanwhile. */
async function freePorts(pods) {
  for (let tries = 0; tries < 100; tries++) {
    const first = 5000 + Math.floor(Math.random() * 12_000);
    const all = Array.from({ length: pods }, (_, n) => [first + PORT_STEP * n, first + PORT_STEP * n + 1]).flat();
    if ((await Promise.all(all.map(isFree))).every(Boolean)) return first;
  }
  throw new Error(`no ${pods} free ports`);
}

export class Ring {
  /** Starts a ring and waits until all of its pods name the same write master. */
  static async start(count) {
    const ring = new Ring();
    const port = await freePorts(count);
    const first = await Pod.start({ args: ['--pods', String(count)], port });
    ring.pods = [first];
    for (let n = 1; n < count; n++) ring.pods.push(Pod.at({ port: port + PORT_STEP * n, users: first.users, data: `${first.data}/pod-${n + 1}` }));
    if (count > 1) await ring.agreed();
    return ring;
  }

  async stop() {
    for (const pod of this.pods.slice(1)) pod.agent.destroy();
    return this.pods[0].stop();
  }

  /** Waits until all given pods name the same write master, the one with this id if one is given; gives it. */
  agreed({ pods = this.pods, id, ms = 30_000 } = {}) {
    return until(async () => {
      const said = await Promise.all(pods.map(about));
      const master = said[0].master?.pod;
      if (!master || (id && master !== id) || said.some((one) => one.master?.pod !== master)) throw new Error(JSON.stringify(said));
      return pods.find((_, n) => said[n].pod === master);
    }, 'the pods to agree on a write master', ms);
  }
}

/** What a pod says of itself and of the write master. */
export const about = async (pod) => (await pod.ok('GET', '/', { timeout: 5000 })).adea;

/** Every document's leaves, as text that can be compared; `skip` leaves out ids. */
export async function leaves(pod, db, skip = () => false) {
  const { results } = await pod.ok('GET', `/${db}/_changes?style=all_docs`, { timeout: 30_000 });
  const lines = results.filter((row) => !skip(row.id)).map((row) => `${row.id} ${row.changes.map((change) => change.rev).sort().join(' ')}${row.deleted ? ' deleted' : ''}`);
  return lines.sort();
}

/** Waits until all pods have the same leaves of these databases. What each pod writes of itself doesn't count. */
export function converged(pods, dbs, ms = 30_000) {
  const skip = (id) => id.startsWith('pod:');
  return until(async () => {
    for (const db of dbs) {
      const [first, ...others] = await Promise.all(pods.map((pod) => leaves(pod, db, skip)));
      others.forEach((other, n) => {
        const here = new Set(first), there = new Set(other);
        const extra = other.filter((line) => !here.has(line)), missing = first.filter((line) => !there.has(line));
        if (extra.length || missing.length) throw new Error(`${db} of ${pods[n + 1].base} has not ${missing.length} of ${first.length}: ${missing.slice(0, 3)}; has besides ${extra.length}: ${extra.slice(0, 3)}`);
      });
    }
    return true;
  }, `the pods to have the same of ${dbs}`, ms);
}
