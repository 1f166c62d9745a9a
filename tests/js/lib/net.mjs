// A network of network namespaces with faults: the program of tests/net.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createInterface } from 'node:readline';

const PROGRAM = new URL('../../../target/release/ring-net', import.meta.url).pathname;
const START_MS = 20_000;
const ANSWER_MS = 5_000;

export class Net {
  /** Makes `places` namespaces. `places[n]` is {place, namespace, address}; the last is the driver's own and has no namespace. */
  static async start(places, seed) {
    if (!existsSync(PROGRAM)) throw new Error(`${PROGRAM} is not there: cargo build --release -p ring-net`);
    if (process.getuid() !== 0) throw new Error('network namespaces and TUN devices need root: run this test as root');
    const net = new Net();
    net.waiting = [];
    net.complaints = '';
    net.child = spawn(PROGRAM, ['--places', String(places), '--seed', String(seed)], { stdio: ['pipe', 'pipe', 'pipe'] });
    net.ended = new Promise((resolve) => net.child.on('close', () => { net.end = true; for (const { reject } of net.waiting.splice(0)) reject(net.trouble()); resolve(); }));
    net.child.on('error', (error) => { net.complaints += error.message; });
    net.child.stdin.on('error', () => { /* it has ended: see above */ });
    net.child.stderr.on('data', (text) => { net.complaints += text; });
    createInterface({ input: net.child.stdout }).on('line', (line) => net.waiting.shift()?.resolve(JSON.parse(line)));
    net.places = (await net.#answer(START_MS)).ready;
    return net;
  }

  trouble() { return new Error(`the test's network can't be: ${this.complaints.trim() || 'it ended'}`); }

  #answer(ms = ANSWER_MS) {
    return new Promise((resolve, reject) => {
      if (this.end) { reject(this.trouble()); return; }
      const timer = setTimeout(() => reject(new Error(`no answer of the test's network: ${this.complaints}`)), ms);
      const settled = (settle) => (value) => { clearTimeout(timer); settle(value); };
      this.waiting.push({ resolve: settled(resolve), reject: settled(reject) });
    });
  }

  async #say(command) {
    const answer = this.#answer();
    this.child.stdin.write(`${JSON.stringify(command)}\n`);
    const said = await answer;
    if (said.error) throw new Error(`${JSON.stringify(command)}: ${said.error}`);
    return said;
  }

  /** Sets what holds between two places, numbered from 1: {delay_ms, jitter_ms, loss, cut, one_way}. */
  link(a, b, rule = {}) { return this.#say({ link: [a, b], ...rule }); }

  /** All links are perfect again. */
  heal() { return this.#say({ heal: true }); }

  /** What the links have carried since the start: [{from, to, packets, bytes, lost}]. */
  async stats() { return (await this.#say({ stats: true })).stats; }

  /** Removes all of it, with the processes in it. */
  async stop() {
    this.child.stdin.end();
    await this.ended;
    if (this.complaints) console.error(this.complaints);
  }
}
