// A ring on hosts, made as an operator makes one: `podctl init` on the first, `podctl token create`, `podctl join` on the others.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Hosts } from './hosts.mjs';
import { PUBLIC_PORT, RING_PORT } from './host.mjs';
import { ADMIN } from './pod.mjs';
import { about } from './ring.mjs';
import { until } from './wait.mjs';

const UP_MS = 90_000;
export const podId = (host) => `pod-${host.number}`;

export class HostRing {
  /** `seconds` tells how long each part took. */
  static async start(count, options) {
    const ring = new HostRing();
    ring.seconds = {};
    ring.hosts = await ring.#timed('hosts', () => Hosts.start(count, options));
    ring.users = {};
    ring.pods = ring.hosts.all.map((host) => host.pod(ring.users));
    return ring;
  }

  async #timed(name, what) {
    const began = Date.now();
    const result = await what();
    this.seconds[name] = (Date.now() - began) / 1000;
    return result;
  }

  /** Makes the ring, all in the order that a person would do it. */
  async bootstrap() {
    const [first, ...others] = this.hosts.all;
    await this.#timed('init', () => this.init(first));
    await this.#timed('first_pod', () => this.up(first));
    const token = await this.token(others.length, first);
    await this.#timed('join', () => Promise.all(others.map((host) => this.join(host, token))));
    await this.#timed('other_pods', () => Promise.all(others.map((host) => this.up(host))));
    await this.#timed('agreed', () => this.agreed());
  }

  #place(host) {
    return ['--pod', podId(host), '--runtime', 'docker', '--listen', `0.0.0.0:${PUBLIC_PORT}`, '--url', `http://${host.address}:${PUBLIC_PORT}`, '--ring-listen', `${host.address}:${RING_PORT}`];
  }

  async init(host) {
    // Outside of the folders that it makes: a host's own /run.
    writeFileSync(host.outside('/run/password'), ADMIN.password, { mode: 0o600 });
    this.made = await host.ask(['init', ...this.#place(host), '--tls', 'none', '--admin', ADMIN.name, '--admin-password-file', '/run/password']);
  }

  async token(uses, host = this.hosts.all[0]) {
    const made = await host.ask(['token', 'create', '--uses', String(uses), '--ttl', '10m']);
    return made.token;
  }

  async join(host, token, seed = this.hosts.all[0]) {
    return host.ask(['join', `${seed.address}:${PUBLIC_PORT}`, ...this.#place(host), '--tls', 'none'], { env: { ADEA_JOIN_TOKEN: token } });
  }

  /** Starts the agent and waits until the pod answers. */
  async up(host, ms = UP_MS) {
    host.startAdea();
    await this.answers(host, ms);
  }

  answers(host, ms = UP_MS) {
    const pod = this.podOf(host);
    return until(async () => {
      if (!host.adea) throw Object.assign(new Error(`its agent ended with ${host.agent_end}\n${host.logs()}`), { fatal: !host.restarts });
      return (await pod.send('GET', '/_up', { as: null, agent: false, timeout: 5000 })).status === 200;
    }, `${podId(host)} to be up`, ms);
  }

  podOf(host) { return this.pods[host.number - 1]; }

  /** Waits until these hosts' pods name the same master, one that `fits`; gives its host. */
  agreed(hosts = this.hosts.all, fits = () => true, ms = 60_000) {
    return until(async () => {
      const said = await Promise.all(hosts.map((host) => about(this.podOf(host))));
      const master = said[0].master?.pod;
      const host = this.hosts.all.find((one) => podId(one) === master);
      if (!host || said.some((one) => one.master?.pod !== master) || !fits(host)) throw new Error(JSON.stringify(said));
      return host;
    }, 'the pods to agree on a write master', ms);
  }

  /** Changes the ring's configuration. */
  async configure(change, pod = this.pods[0]) {
    await until(async () => {
      const old = await pod.send('GET', '/_ring/config', { timeout: 5000 });
      const { _id, _rev, ...config } = old.json?._rev ? old.json : {};
      await pod.ok('PUT', '/_ring/config', { body: { ...config, ...change, ...(_rev ? { _rev } : {}) }, timeout: 10_000 });
      return true;
    }, 'the configuration to be written', 30_000);
  }

  /** What the ring says of a pod, to operators and to everyone; read from any pod. */
  status(host, from = this.pods[0]) { return from.ok('GET', `/_ring/pod:${podId(host)}`, { timeout: 5000 }); }
  info(host, from = this.pods[0]) { return from.ok('GET', `/_pods/pod:${podId(host)}`, { as: null, timeout: 5000 }); }

  /** The names of a pod's containers. */
  names(host) { return { rean: `adea-${podId(host)}-rean`, proxy: `adea-${podId(host)}-proxy` }; }

  logs(lines) { return this.hosts.all.map((host) => host.logs(lines)).join('\n'); }

  folder(name) { return join(this.hosts.folder, name); }

  async stop() {
    for (const pod of this.pods) pod.agent.destroy();
    await this.hosts.stop();
  }
}
