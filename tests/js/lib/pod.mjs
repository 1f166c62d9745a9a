// A pod of a test's own: `podctl dev` in a temporary folder, on a free port. Or one that something else has started.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { until } from './wait.mjs';

export const PROGRAM = process.env.PODCTL || new URL('../../../target/release/podctl', import.meta.url).pathname;
export const ADMIN = { name: 'admin', password: 'chief of tests' };
const READY_MS = 60_000;

const freePort = () => new Promise((resolve, reject) => {
  const server = net.createServer().on('error', reject);
  server.listen(0, '127.0.0.1', () => { const { port } = server.address(); server.close(() => resolve(port)); });
});

export class Pod {
  /** Starts a pod and waits until it is ready. `data` keeps a folder over several starts. */
  static async start({ args = [], data, port } = {}) {
    const pod = new Pod();
    pod.kept = !!data;
    pod.data = data ?? mkdtempSync(join(tmpdir(), 'adea-test-'));
    pod.#reach('127.0.0.1', port ?? await freePort());
    pod.args = args;
    await pod.#launch();
    return pod;
  }

  /** A pod that something else starts and stops: it can only be asked. `users` may be those of another pod of its ring. */
  static at({ host = '127.0.0.1', port, users, data }) {
    const pod = new Pod();
    pod.data = data;
    pod.#reach(host, port, users);
    return pod;
  }

  #reach(host, port, users = {}) {
    Object.assign(this, { host, port, users, base: `http://${host}:${port}`, admin: ADMIN });
    this.agent = new http.Agent({ keepAlive: true, maxSockets: 64 });
  }

  async #launch() {
    if (!existsSync(PROGRAM)) throw new Error(`${PROGRAM} is not there: cargo build --release`);
    this.output = '';
    const args = ['dev', '--data', this.data, '--port', String(this.port), '--admin', `${ADMIN.name}:${ADMIN.password}`, '--no-example', ...this.args];
    this.child = spawn(PROGRAM, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.ended = new Promise((resolve) => this.child.on('exit', (code, signal) => resolve(this.end = { code, signal })));
    this.end = null;
    for (const stream of [this.child.stdout, this.child.stderr]) stream.on('data', (d) => { this.output += d; });
    await until(() => {
      if (this.end) throw Object.assign(new Error(`podctl dev ended: ${JSON.stringify(this.end)}\n${this.output}`), { fatal: true });
      return /^ready /m.test(this.output);
    }, 'the line that starts with `ready`', READY_MS);
  }

  /** Ends it as Ctrl-C does, and removes its folder if it made it. Gives how it ended. */
  async stop(signal = 'SIGTERM') {
    if (!this.end) this.child.kill(signal);
    const end = await this.ended;
    this.agent.destroy();
    if (!this.kept) rmSync(this.data, { recursive: true, force: true });
    return end;
  }

  /** Stops it and starts it again on the same folder. */
  async restart() {
    this.child.kill('SIGTERM');
    const end = await this.ended;
    this.agent.destroy();
    this.agent = new http.Agent({ keepAlive: true, maxSockets: 64 });
    await this.#launch();
    return end;
  }

  state() { return JSON.parse(readFileSync(join(this.data, 'run', 'state.json'), 'utf8')); }

  /** The process id of `rean`, `proxy`, `adea` or `dev`. */
  pid(program) {
    if (program === 'dev') return this.child.pid;
    return program === 'adea' ? this.state().adea_pid : this.state().programs[program]?.pid;
  }

  /** Kills one program as a power cut would, and gives its process id. */
  kill(program) {
    const pid = this.pid(program);
    process.kill(pid, 'SIGKILL');
    return pid;
  }

  /** Waits until all parts of the pod answer again. */
  up(ms = READY_MS) {
    return until(async () => (await this.send('GET', '/_up', { as: null, agent: false })).status === 200, 'the pod to be up', ms);
  }

  /** A URL with a log-in: for PouchDB and nano. */
  url(db, user = 'admin') {
    const { name, password } = this.login(user);
    return `http://${encodeURIComponent(name)}:${encodeURIComponent(password)}@${this.host}:${this.port}/${db}`;
  }

  login(user) {
    if (user === 'admin') return ADMIN;
    if (typeof user === 'object') return user;
    const password = this.users[user];
    if (!password) throw new Error(`no user ${user}`);
    return { name: user, password };
  }

  /**
   * Sends exactly this path. `as`: a user's name, `admin` (when not given), null for nobody, or {name, password}.
   * Gives {status, headers, raw (a Buffer), text, json}.
   */
  send(method, path, { as = 'admin', body, headers = {}, agent = this.agent, timeout = 20_000 } = {}) {
    const all = { accept: 'application/json', ...headers };
    if (as) {
      const { name, password } = this.login(as);
      all.authorization = 'Basic ' + Buffer.from(`${name}:${password}`).toString('base64');
    }
    let data = body;
    if (data !== undefined && typeof data !== 'string' && !Buffer.isBuffer(data)) data = JSON.stringify(data);
    const named = Object.keys(all).map((name) => name.toLowerCase());
    if (data !== undefined && !named.includes('content-type')) all['content-type'] = 'application/json';
    if (data !== undefined || method === 'POST' || method === 'PUT') all['content-length'] = Buffer.byteLength(data ?? '');
    return new Promise((resolve, reject) => {
      const request = http.request({ host: this.host, port: this.port, method, path, headers: all, agent, timeout });
      request.on('timeout', () => request.destroy(new Error(`${method} ${path}: no answer in ${timeout} ms`)));
      request.on('error', reject);
      request.on('response', (response) => {
        const parts = [];
        response.on('data', (part) => parts.push(part));
        response.on('error', reject);
        response.on('end', () => {
          const raw = Buffer.concat(parts), text = raw.toString();
          let json;
          try { json = JSON.parse(text); } catch { /* it need not be JSON */ }
          resolve({ status: response.statusCode, headers: response.headers, raw, text, json });
        });
      });
      request.end(data);
    });
  }

  /** As `send`, but the status has to be the given one (any 2xx when none is given). Gives the JSON. */
  async ok(method, path, options = {}) {
    const answer = await this.send(method, path, options);
    const good = options.status ? answer.status === options.status : answer.status >= 200 && answer.status < 300;
    if (!good) throw new Error(`${method} ${path}: ${answer.status} ${answer.text.slice(0, 300)}`);
    return answer.json;
  }

  /** A live feed: {lines, close()}; the lines are parsed JSON. */
  follow(path, { as = 'admin' } = {}) {
    const { name, password } = as ? this.login(as) : {};
    const headers = as ? { authorization: 'Basic ' + Buffer.from(`${name}:${password}`).toString('base64') } : {};
    const feed = { lines: [], ended: false };
    const request = http.request({ host: this.host, port: this.port, path, headers, agent: false });
    feed.close = () => request.destroy();
    request.on('error', () => { feed.ended = true; });
    request.on('response', (response) => {
      let rest = '';
      feed.status = response.statusCode;
      response.setEncoding('utf8');
      response.on('error', () => { feed.ended = true; });
      response.on('end', () => { feed.ended = true; });
      response.on('data', (text) => {
        const lines = (rest + text).split('\n');
        rest = lines.pop();
        for (const line of lines) if (line.trim()) feed.lines.push(JSON.parse(line));
      });
    });
    request.end();
    return feed;
  }

  // ---- users and apps ----------------------------------------------------------------------------

  /** Makes an account, or gives it other roles. */
  async makeUser(name, roles = [], password = `${name}'s password`) {
    const path = `/_users/org.couchdb.user:${encodeURIComponent(name)}`;
    const old = await this.send('GET', path);
    const doc = old.status === 200 ? { ...old.json, roles } : { name, password, roles, type: 'user' };
    await this.ok('PUT', path, { body: doc });
    this.users[name] ??= password;
  }

  /** Makes an app with these settings. */
  async makeApp(name, settings) {
    if (settings) await this.settings(name, settings);
    await this.ok('PUT', `/${name}?access=true`, { status: 201 });
  }

  /** Replaces an app's settings. */
  async settings(name, settings) {
    const path = `/_ring/app:${name}`;
    const old = await this.send('GET', path);
    await this.ok('PUT', path, { body: { ...settings, _rev: old.json?._rev } });
  }

  /** Writes a document; gives its new revision. */
  async put(db, id, doc, as = 'admin') {
    return (await this.ok('PUT', `/${db}/${encodeURIComponent(id)}`, { body: doc, as })).rev;
  }

  async get(db, id, as = 'admin', query = '') {
    return this.ok('GET', `/${db}/${encodeURIComponent(id)}${query}`, { as });
  }
}
