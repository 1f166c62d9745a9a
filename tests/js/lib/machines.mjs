// Pods as if each had a machine of its own: `podctl adea` in a network namespace, with a data folder that survives it.
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, mkdirSync, openSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ADMIN, PROGRAM, Pod } from './pod.mjs';
import { until } from './wait.mjs';

const PUBLIC_PORT = 5984, RING_PORT = 5985;
/** argon2id of the administrator's password (pod.mjs). */
const ADMIN_HASH = '$argon2id$v=19$m=19456,t=2,p=1$bj0AG38Bv9rmBDzsEQaMrA$OMCOE8pIkV1lVN8mDKRWgoyihx1/4LBnds24frPodzw';

/** The programs of a pod, the one that starts the others first: what it had started would be there again at once. */
export const PROGRAMS = ['adea', 'rean', 'proxy'];

export class Machine {
  /** `place` is one of the network's; `seeds` are addresses of pods. */
  constructor(place, folder, secret, seeds, users) {
    this.number = place.place;
    this.id = `pod-${place.place}`;
    this.namespace = place.namespace;
    this.data = join(folder, this.id);
    this.pod = Pod.at({ host: place.address, port: PUBLIC_PORT, users, data: this.data });
    mkdirSync(join(this.data, 'run'), { recursive: true, mode: 0o700 });
    const ring = { ring_secret: secret, pod_id: this.id, admin: { name: ADMIN.name, password_hash: ADMIN_HASH } };
    writeFileSync(join(this.data, 'ring.json'), JSON.stringify(ring), { mode: 0o600 });
    this.config = join(this.data, 'adea.json');
    const config = {
      pod_id: this.id, ring_file: join(this.data, 'ring.json'), data_dir: this.data,
      rean: { listen: '127.0.0.1:0' }, proxy: { listen: `${place.address}:${PUBLIC_PORT}` },
      ring: { listen: `${place.address}:${RING_PORT}`, seeds: seeds.filter((seed) => seed !== place.address).map((seed) => `${seed}:${RING_PORT}`), url: this.pod.base },
      log: process.env.ADEA_LOG ?? 'info',
    };
    writeFileSync(this.config, JSON.stringify(config, null, 2));
  }

  /** Whether its agent runs. */
  get isUp() { return !!this.child; }

  start() {
    if (this.child) return;
    const log = openSync(join(this.data, 'run', 'agent.log'), 'a');
    const child = spawn('ip', ['netns', 'exec', this.namespace, PROGRAM, 'adea', '--config', this.config, '--exit-with-parent'], { stdio: ['pipe', log, log] });
    closeSync(log);
    this.child = child;
    this.ended = new Promise((resolve) => child.on('exit', () => { if (this.child === child) this.child = null; resolve(); }));
  }

  /** The process id of a program, if it is known to run. */
  pid(program) {
    if (program === 'adea') return this.child?.pid;
    try { return JSON.parse(readFileSync(join(this.data, 'run', 'state.json'), 'utf8')).programs[program]?.pid; } catch { return undefined; }
  }

  /** Sends a signal to programs; those that are not there are passed over. */
  signal(signal, programs = PROGRAMS) {
    for (const program of programs) {
      const pid = this.pid(program);
      // The account may be of before: only what runs in this namespace is ours.
      if (!pid || !this.#isOurs(pid)) continue;
      try { process.kill(pid, signal); } catch (error) { if (error.code !== 'ESRCH') throw error; }
    }
  }

  #isOurs(pid) {
    try { return statSync(`/proc/${pid}/ns/net`).ino === statSync(`/run/netns/${this.namespace}`).ino; } catch { return false; }
  }

  /** As a power cut: all programs at once. */
  async kill() {
    const { ended } = this;
    this.signal('SIGKILL');
    this.pod.agent.destroy();
    await ended;
  }

  /** Waits until all parts answer. */
  up(ms = 60_000) {
    return until(async () => (await this.pod.send('GET', '/_up', { as: null, agent: false, timeout: 5000 })).status === 200, `${this.id} to be up`, ms);
  }

  /** The end of its logs, for whoever looks for a fault. */
  logs(lines = 30) {
    return ['agent', 'rean', 'proxy'].map((name) => {
      let text = '';
      try { text = readFileSync(join(this.data, 'run', `${name}.log`), 'utf8'); } catch { return ''; }
      return `---- ${this.id} ${name}.log\n${text.split('\n').slice(-lines).join('\n')}`;
    }).join('\n');
  }
}

/** A secret for a ring of a test's own. */
export const newSecret = () => randomBytes(32).toString('hex');
