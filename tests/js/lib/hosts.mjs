// Machines of a ring on one machine: each host has namespaces of its own (network, mounts, processes, name) and a dockerd of its
// own, with the paths that a real machine has: /etc/adea, /var/lib/adea, /run/docker.sock, /usr/local/bin/podctl.
//
// The network is that of net.mjs, so that hosts can be cut off from one another. When it ends (also because this process was
// killed) it kills whatever runs in its namespaces, each host's first process among it, and with that the kernel ends all
// processes of the host, its containers too, and takes its mounts away. What is left then are folders; the next run removes them.
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, rmdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Host } from './host.mjs';
import { Net } from './net.mjs';

const PREFIX = 'adea-hosts-';
/** Where hosts have folders of their own; made when they are missing, and removed again. */
const PLACES = ['/etc/adea', '/var/lib/adea'];
const CGROUPS = '/sys/fs/cgroup';

export class Hosts {
  /** Starts `count` hosts with a dockerd each. `disks[n]` in MiB gives host n + 1 a small disk for its data. */
  static async start(count, { seed = 1, disks = {} } = {}) {
    const missing = ['dockerd', 'nsenter', 'unshare', 'ip', 'iptables'].filter((program) => !isThere(program));
    if (missing.length) throw new Error(`not installed: ${missing.join(', ')}. tests/run --only tools installs it`);
    removeLeftOvers();
    const hosts = new Hosts();
    hosts.folder = mkdtempSync(join(tmpdir(), PREFIX));
    hosts.cgroup = hosts.folder.split('/').at(-1);
    writeFileSync(join(hosts.folder, 'pid'), String(process.pid));
    hosts.made = PLACES.filter((place) => !existsSync(place));
    for (const place of hosts.made) mkdirSync(place, { recursive: true });
    try {
      hosts.net = await Net.start(count, seed);
      hosts.all = hosts.net.places.slice(0, count).map((place, n) => new Host(place, join(hosts.folder, `host-${place.place}`), hosts.cgroup, disks[n + 1]));
      await Promise.all(hosts.all.map((host) => host.boot()));
    } catch (error) {
      await hosts.stop();
      throw error;
    }
    return hosts;
  }

  /** The number of the driver's own place in the network. */
  get driver() { return this.all.length + 1; }

  /** Cuts a host off from the others, and from the driver too unless it is to be watched. */
  async cut(host, { driver = false } = {}) {
    for (const other of this.all) if (other !== host) await this.net.link(host.number, other.number, { cut: true });
    if (driver) await this.net.link(host.number, this.driver, { cut: true });
  }

  heal() { return this.net.heal(); }

  /** Ends everything; with KEEP=1 the folders stay for whoever looks for a fault. */
  async stop() {
    await this.net?.stop();
    await Promise.all((this.all ?? []).map((host) => host.ended));
    removeCgroups(this.cgroup);
    if (process.env.KEEP) console.log(`kept: ${this.folder}`);
    else rmSync(this.folder, { recursive: true, force: true });
    for (const place of this.made) removeEmpty(place);
  }
}

function isThere(program) {
  return [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/sbin'].some((folder) => existsSync(join(folder, program)));
}

/** What runs that were killed have left: their processes are gone. */
function removeLeftOvers() {
  for (const name of readdirSync(tmpdir()).filter((name) => name.startsWith(PREFIX))) {
    const folder = join(tmpdir(), name);
    let pid;
    try { pid = Number(readFileSync(join(folder, 'pid'), 'utf8')); } catch { continue; }
    if (existsSync(`/proc/${pid}`) || process.env.KEEP) continue;
    removeCgroups(name);
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The engines' groups are empty once their containers are gone, but nobody removes them. */
function removeCgroups(name) {
  for (const root of [CGROUPS, ...readdirSync(CGROUPS).map((controller) => join(CGROUPS, controller))]) {
    const group = join(root, name);
    if (!existsSync(group)) continue;
    try { execFileSync('find', [group, '-depth', '-type', 'd', '-exec', 'rmdir', '{}', ';'], { stdio: 'ignore' }); } catch { /* the next run tries again */ }
  }
}

function removeEmpty(folder) {
  try { rmdirSync(folder); } catch { /* somebody else uses it by now */ }
}

/** Runs something in the background of a test and gives what it has printed so far. */
export function background(command, args) {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  const job = { child, output: '', code: undefined };
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => { job.output += text; });
  job.ended = new Promise((resolve) => child.on('exit', (code) => resolve(job.code = code)));
  return job;
}
