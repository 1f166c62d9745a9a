// One host of hosts.mjs: commands on it, its dockerd, its agent.
import { spawn } from 'node:child_process';
import { appendFileSync, closeSync, createReadStream, existsSync, mkdirSync, openSync, readFileSync, statSync } from 'node:fs';
import http from 'node:http';
import { join } from 'node:path';
import { PROGRAM, Pod } from './pod.mjs';
import { until } from './wait.mjs';

export const PUBLIC_PORT = 5984, RING_PORT = 5985;
const BOOT_MS = 20_000, ENGINE_MS = 60_000, COMMAND_MS = 120_000;

/** The first process of a host: makes its mounts, then takes in the orphans, as an init does. */
const INIT = `set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/local
mount --bind /usr/local/bin /run/local
mount -t tmpfs -o mode=755 tmpfs /usr/local/bin
for file in /run/local/*; do ln -s "$file" /usr/local/bin/; done
ln -sf "$PROGRAM" /usr/local/bin/podctl
mount --bind "$FOLDER/etc" /etc/adea
if [ -n "$DISK_MIB" ]; then mount -t tmpfs -o "mode=755,size=\${DISK_MIB}m" tmpfs /var/lib/adea
else mount --bind "$FOLDER/data" /var/lib/adea; fi
hostname "$NAME"
echo ready
trap : CHLD
while :; do sleep 3600 & wait $! || :; done`;

/** As deploy/adea.service starts it. */
const AGENT = `echo $$ > /run/adea.pid
export MIMALLOC_PURGE_DELAY=0 MIMALLOC_ALLOW_THP=0
exec /usr/local/bin/podctl adea --config /etc/adea/adea.json`;

export class Host {
  /** `place` is one of the network's. `cgroup` is where its containers' groups are. With `disk_mib`, its data's disk is that small. */
  constructor(place, folder, cgroup, disk_mib) {
    Object.assign(this, { number: place.place, name: `host-${place.place}`, address: place.address, namespace: place.namespace, folder, cgroup, disk_mib });
    for (const name of ['etc', 'data', 'docker', 'log']) mkdirSync(join(folder, name), { recursive: true, mode: 0o755 });
  }

  /** Makes the namespaces and starts dockerd. */
  async boot() {
    const unshare = ['unshare', '--mount', '--uts', '--pid', '--fork', '--kill-child=SIGKILL', '--mount-proc', 'bash', '-c', INIT];
    const env = { ...process.env, PROGRAM, FOLDER: this.folder, NAME: this.name, DISK_MIB: String(this.disk_mib ?? '') };
    const child = spawn('nsenter', [`--net=/run/netns/${this.namespace}`, ...unshare], { stdio: ['ignore', 'pipe', 'pipe'], env });
    let output = '', end;
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => { output += text; });
    this.ended = new Promise((resolve) => child.on('exit', (code) => { end = `it ended with ${code}`; resolve(); }));
    await until(() => {
      if (end) throw Object.assign(new Error(`${this.name} can't be made: ${end}: ${output}`), { fatal: true });
      return output.includes('ready');
    }, `${this.name} to be made`, BOOT_MS);
    // The child of `unshare`, which is what nsenter has become.
    this.pid = Number(readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim().split(' ')[0]);
    await this.startDocker();
  }

  #enter(args) { return ['-t', String(this.pid), '-m', '-u', '-n', '-p', '--', ...args]; }

  /** Starts something that goes on; its output goes to LOG. */
  #spawn(log, args) {
    const out = openSync(join(this.folder, 'log', log), 'a');
    const child = spawn('nsenter', this.#enter(args), { stdio: ['ignore', out, out], cwd: '/' });
    closeSync(out);
    return child;
  }

  /** Runs a command and gives {code, stdout, stderr}; no code when it had to be killed. With `ok`, a failure throws. */
  run(args, { input, env = {}, timeout = COMMAND_MS, ok = true } = {}) {
    return new Promise((resolve, reject) => {
      // Within the host, as `nsenter` passes no signal on.
      const bounded = ['timeout', '--signal=KILL', String(timeout / 1000), ...args];
      const child = spawn('nsenter', this.#enter(bounded), { stdio: [input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'], env: { ...process.env, XDG_CONFIG_HOME: '/run/config', ...env }, cwd: '/' });
      const said = { stdout: '', stderr: '' };
      for (const name of ['stdout', 'stderr']) child[name].on('data', (text) => { said[name] += text; });
      child.on('error', reject);
      child.on('close', (code) => {
        if (ok && code !== 0) reject(new Error(`${this.name}: ${args.join(' ')}: ${code === null ? `no end in ${timeout} ms` : code}\n${said.stdout}${said.stderr}`));
        else resolve({ code, ...said });
      });
      if (input !== undefined) child.stdin.on('error', () => {}).end(input);
    });
  }

  sh(script, options) { return this.run(['sh', '-c', script], options); }

  podctl(args, options) { return this.run(['podctl', ...args], options); }

  /** As `podctl ... --json`; gives what it printed, parsed (the last line, where there are several). */
  async ask(args, options) {
    const { stdout } = await this.podctl([...args, '--json'], options);
    try { return JSON.parse(stdout); } catch { return JSON.parse(stdout.trim().split('\n').at(-1)); }
  }

  // ---- Docker ----------------------------------------------------------------------------------------

  get socket() { return `/proc/${this.pid}/root/run/docker.sock`; }

  async startDocker() {
    await this.sh('rm -f /run/docker.pid /run/docker.sock');
    // Groups of its own, to be removed at the end; cgroupfs, as there is no systemd on a host.
    this.dockerd = this.#spawn('dockerd.log', ['dockerd', '--data-root', join(this.folder, 'docker'), '--cgroup-parent', `/${this.cgroup}`, '--exec-opt', 'native.cgroupdriver=cgroupfs', '--log-level', 'warn']);
    this.dockerd.on('exit', (code) => { this.dockerd.end = code ?? 'a signal'; });
    await until(async () => {
      if (this.dockerd.end !== undefined) throw Object.assign(new Error(`dockerd of ${this.name} ended with ${this.dockerd.end}\n${this.logs()}`), { fatal: true });
      return (await this.engine('GET', '/_ping')).status === 200;
    }, `dockerd of ${this.name} to answer`, ENGINE_MS);
  }

  /** As when the kernel ends it for want of memory. */
  async killDocker() {
    const { dockerd } = this;
    await this.sh('kill -9 $(cat /run/docker.pid)');
    await until(() => dockerd.end !== undefined, 'dockerd to be gone');
  }

  /** Asks the engine; gives {status, json, text}. `file` is sent as it is. */
  engine(method, path, body, file) {
    const data = body === undefined ? undefined : JSON.stringify(body);
    const headers = data ? { 'content-type': 'application/json', 'content-length': Buffer.byteLength(data) } : {};
    if (file) Object.assign(headers, { 'content-type': 'application/x-tar', 'content-length': statSync(file).size });
    return new Promise((resolve, reject) => {
      const request = http.request({ socketPath: this.socket, method, path, headers, timeout: 30_000, agent: false }, (response) => {
        let text = '';
        response.on('data', (part) => { text += part; });
        response.on('error', reject);
        response.on('end', () => {
          let json;
          try { json = JSON.parse(text); } catch { /* not all of it is JSON */ }
          resolve({ status: response.statusCode, json, text });
        });
      });
      request.on('timeout', () => request.destroy(new Error(`${method} ${path}: the engine doesn't answer`)));
      request.on('error', reject);
      if (file) createReadStream(file).on('error', reject).pipe(request);
      else request.end(data);
    });
  }

  /** Its containers, by name: {name: {id, state, image, labels}}. */
  async containers() {
    const { json } = await this.engine('GET', '/containers/json?all=1');
    return Object.fromEntries(json.map((one) => [one.Names[0].slice(1), { id: one.Id, state: one.State, image: one.Image, labels: one.Labels }]));
  }

  // ---- the agent -------------------------------------------------------------------------------------

  /** Starts the agent as systemd would: once more when it fails, not when it ends well. */
  startAdea() {
    if (this.adea) return;
    const child = this.#spawn('adea.log', ['sh', '-c', AGENT]);
    this.adea = child;
    child.on('exit', (code) => {
      if (this.adea !== child) return;
      this.adea = null;
      this.agent_end = code;
      if (code !== 0 && this.restarts) setTimeout(() => this.startAdea(), 500);
    });
  }

  async signalAdea(signal) { await this.sh(`kill -${signal} $(cat /run/adea.pid)`); }

  /** As a power cut for the agent alone; its containers go on. */
  async killAdea() {
    if (!this.adea) return;
    this.restarts = false;
    await this.signalAdea('KILL');
    await until(() => !this.adea, 'the agent to be gone');
  }

  /** As `systemctl stop adea`. */
  async stopAdea() {
    if (!this.adea) return;
    this.restarts = false;
    await this.signalAdea('TERM');
    await until(() => !this.adea, `the agent of ${this.name} to stop`, 60_000);
  }

  /** As a power cut: all processes at once. Docker and the agent are started again, as at a boot. */
  async reboot() {
    this.restarts = false;
    const { dockerd } = this;
    // All but the first process and the shell itself.
    await this.sh('kill -9 -1', { ok: false });
    await until(() => !this.adea && dockerd.end !== undefined, `${this.name} to be off`);
    await this.startDocker();
    this.startAdea();
  }

  /** Makes the disk of its data this big; only hosts that have one of their own. */
  async resize(mib) { await this.run(['mount', '-o', `remount,size=${mib}m`, '/var/lib/adea']); }

  /** What that disk has in it, in MiB. */
  async used() { return Number((await this.sh("df -m --output=used /var/lib/adea | tail -1")).stdout.trim()); }

  /** Its pod, to be asked from outside. */
  pod(users) { return Pod.at({ host: this.address, port: PUBLIC_PORT, users, data: join(this.folder, 'data') }); }

  /** A file of /etc/adea or /var/lib/adea, as JSON. */
  json(path) { return JSON.parse(readFileSync(`/proc/${this.pid}/root${path}`, 'utf8')); }

  /** Where a file of the host is seen from outside. */
  outside(path) { return `/proc/${this.pid}/root${path}`; }

  note(text) { appendFileSync(join(this.folder, 'log', 'adea.log'), `---- ${text}\n`); }

  /** The end of its logs, for whoever looks for a fault. */
  logs(lines = 30) {
    const run = this.outside('/var/lib/adea/run');
    const files = [['dockerd.log', join(this.folder, 'log')], ['adea.log', join(this.folder, 'log')], ['rean.log', run], ['proxy.log', run]];
    return files.filter(([name, folder]) => existsSync(join(folder, name))).map(([name, folder]) => {
      const all = readFileSync(join(folder, name), 'utf8').split('\n');
      return `---- ${this.name} ${name}\n${all.slice(-lines).join('\n')}`;
    }).join('\n');
  }
}
