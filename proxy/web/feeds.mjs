// Many feeds of a pod on one connection: the reference client for FEEDS.md, for browsers and for Node.
//
//   const feeds = new Feeds('https://pod.example', { session: { name: 'ann', password: '…' } });
//   const mine = feeds.subscribe('notes--me', { since: 'now', include_docs: true }, (change) => show(change.doc));
//   mine.close();
//
//   // Or under PouchDB, which then needs one connection for all its live databases:
//   const remote = new PouchDB('https://pod.example/notes--me', { fetch: feeds.fetch });
//
// It depends on nothing. Node before 22 has no WebSocket of its own: give one, as `{ WebSocket }`.

const PROTOCOL = 'adea.feeds.v1';
/** Batches that may be on their way for one subscription: the server goes on when one of them has been worked through. */
const CREDIT = 4;
/** After a failure the next attempt comes after up to this long, in ms, then after up to twice as long, and so on. */
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 30_000;
/** A connection on which nothing has come for this long, in ms, is asked whether it is there, and given up when silent. */
const QUIET_MS = 45_000;
const PONG_MS = 15_000;
/** A long poll that nobody asks for again ends after this long, in ms. */
const IDLE_POLL_MS = 10_000;
/** How long a long poll without heartbeat waits, in ms: CouchDB's default. */
const POLL_MS = 60_000;
/** The server's close code for a log-in that counts no more. */
const LOG_IN_ENDED = 4001;
/** Parameters of `_changes` that mean nothing for a subscription. */
const IGNORED = new Set(['feed', 'since', 'limit', 'heartbeat', 'timeout', 'seq_interval', '_nonce']);
/** Those that have a member of their own in a subscription: as text, as a flag, as JSON. */
const MEMBERS = { style: 'text', filter: 'text', view: 'text', include_docs: 'flag', conflicts: 'flag', doc_ids: 'json' };
/** Those that only a request of its own can answer. */
const ALONE = ['attachments', 'descending', 'update_seq', 'last-event-id'];

/** What a server has refused, in CouchDB's words. */
export class FeedError extends Error {
  constructor({ status, error, reason }) {
    super(reason ?? error);
    Object.assign(this, { name: error, status, error, reason });
  }
}

/** All feeds of one user from one pod. */
export class Feeds {
  #url; #session; #given; #WebSocket; #plainFetch; #onError;
  #socket = null; #open = false; #closed = false; #failures = 0; #timer = null; #watch = null; #heard = 0;
  #subscriptions = new Map(); #next = 0; #polls = new Map(); #limit = Infinity; #renewing = null;

  /**
   * `url` is the pod's, without a database. `session`: a session as `POST /_session` gives it (`{name, password}`), or a
   * user's name and password, with which sessions are then made, or a function that gives one of both, or nothing for
   * nobody in particular. `onError` hears of what concerns all feeds: a log-in that is refused.
   */
  constructor(url, { session = null, WebSocket, fetch, onError = () => {} } = {}) {
    this.#url = String(url).replace(/\/+$/, '');
    this.#given = session;
    this.#WebSocket = WebSocket ?? globalThis.WebSocket;
    this.#plainFetch = fetch ?? globalThis.fetch.bind(globalThis);
    this.#onError = onError;
    if (!this.#WebSocket) throw new Error('there is no WebSocket here: give one as an option');
    this.fetch = (input, init) => this.#fetch(input, init);
  }

  /** Whether the connection is up. */
  get connected() { return this.#open; }

  /** How many subscriptions there are, those of `fetch` among them. */
  get size() { return this.#subscriptions.size; }

  /**
   * Follows a database. `options`: since, include_docs, conflicts, style, filter, view, doc_ids, selector, query (see FEEDS.md),
   * and `onCaughtUp(seq)`, `onEnd(error)`. `onChange(change)` is called for one change after the other; if it gives a promise,
   * the next waits for it, and so does the server. Gives {close(), seq}: `seq` is the last that was worked through.
   */
  subscribe(db, options, onChange) {
    const { onCaughtUp, onEnd, ...asked } = options ?? {};
    return this.#add(db, asked, {
      onCaughtUp,
      onEnd,
      async onRows(rows, sub) {
        for (const row of rows) {
          if (sub.closed) return;
          await onChange(row);
          sub.seq = row.seq;
        }
      },
    });
  }

  /** Ends all feeds and the connection. */
  close() {
    this.#closed = true;
    for (const sub of [...this.#subscriptions.values()]) sub.end(null);
    for (const poll of [...this.#polls.values()].flatMap((polls) => [...polls])) {
      poll.error = new FeedError({ status: 503, error: 'closed', reason: 'the feeds were closed' });
      poll.answer?.();
      poll.close();
    }
    for (const timer of [this.#timer, this.#watch]) clearTimeout(timer);
    this.#socket?.close(1000);
    this.#drop();
  }

  // ---- subscriptions ---------------------------------------------------------------------------------

  #add(db, { since = 0, ...asked }, { onRows, onCaughtUp, onEnd }) {
    if (this.#closed) throw new Error('these feeds are closed');
    const id = String(++this.#next);
    const sub = { id, db, asked, seq: since, received: since, closed: false, waiting: 0, work: Promise.resolve(), failures: 0 };
    sub.close = () => {
      if (sub.closed) return;
      sub.end(null);
      this.#send({ op: 'unsubscribe', id });
    };
    sub.end = (error) => {
      if (sub.closed) return;
      sub.closed = true;
      clearTimeout(sub.timer);
      this.#subscriptions.delete(id);
      if (error) onEnd?.(error);
    };
    sub.take = (rows, caughtUp) => {
      sub.failures = 0;
      if (rows) { sub.waiting++; sub.received = rows.at(-1).seq; } else sub.received = caughtUp;
      sub.work = sub.work.then(async () => {
        if (sub.closed) return;
        if (rows) await onRows(rows, sub);
        else { sub.seq = caughtUp; onCaughtUp?.(caughtUp); }
      }).catch((error) => { sub.close(); onEnd?.(error); }).finally(() => {
        if (!rows) return;
        sub.waiting--;
        if (!sub.closed) this.#send({ op: 'credit', id, n: 1 });
      });
    };
    this.#subscriptions.set(id, sub);
    if (this.#open) this.#ask(sub);
    else this.#connect();
    return sub;
  }

  #ask(sub) {
    const { id, db, asked, received } = sub;
    this.#send({ op: 'subscribe', ...asked, id, db, since: received, credit: Math.max(0, CREDIT - sub.waiting) });
  }

  /** The server has refused or ended a subscription: for good, or it is asked for again. */
  #refused(sub, { last_seq: last, ...why }) {
    if (last !== undefined) sub.received = last;
    const passing = [409, 429, 500, 502, 503].includes(why.status);
    if (!passing) return sub.end(new FeedError(why));
    sub.timer = later(() => { if (this.#open && !sub.closed) this.#ask(sub); }, pause(sub.failures++));
  }

  // ---- the connection --------------------------------------------------------------------------------

  async #connect() {
    if (this.#socket || this.#closed || this.#timer) return;
    // Its place, so that there is one attempt at a time.
    const mine = this.#socket = { close() {} };
    try {
      const session = await this.#credentials();
      if (this.#closed || this.#socket !== mine) return;
      const protocols = [PROTOCOL];
      if (session) protocols.push(`adea.session.${base64(`${session.name}:${session.password}`, true)}`);
      const socket = new this.#WebSocket(`${this.#url.replace(/^http/, 'ws')}/_feeds`, protocols);
      this.#socket = socket;
      socket.onmessage = ({ data }) => { if (this.#socket === socket) this.#heed(JSON.parse(data)); };
      socket.onclose = ({ code }) => { if (this.#socket === socket) this.#lost(code, session); };
      // It is closed next, or it should be: Node 20's own WebSocket does not say so when the handshake has failed.
      socket.onerror = () => later(() => { if (this.#socket === socket) this.#lost(1006, session); }, 0);
    } catch (error) {
      if (this.#socket === mine) this.#drop();
      if (error instanceof FeedError && [400, 401, 403].includes(error.status)) this.#refuseAll(error);
      else this.#again();
    }
  }

  #heed(message) {
    this.#heard = Date.now();
    const sub = this.#subscriptions.get(message.id);
    switch (message.op) {
      case 'hello':
        this.#open = true;
        this.#failures = 0;
        this.#limit = message.limits.subscriptions;
        this.#keepWatch();
        for (const one of this.#subscriptions.values()) { clearTimeout(one.timer); this.#ask(one); }
        break;
      case 'changes': sub?.take(message.results); break;
      case 'caught_up': sub?.take(null, message.last_seq); break;
      case 'ended':
      case 'error': if (sub) this.#refused(sub, message); break;
      default: // pong, subscribed, and what later servers say
    }
  }

  async #lost(code, session) {
    const begun = this.#open;
    this.#drop();
    if (this.#closed) return;
    // A browser does not tell why a WebSocket was refused: a request does.
    if (session && (code === LOG_IN_ENDED || !begun)) {
      try {
        const answer = await this.#plainFetch(`${this.#url}/_session`, { headers: { authorization: basic(session) } });
        if (answer.status === 401) {
          if (this.#session === session) this.#session = null;
          if (isSession(this.#given)) return this.#refuseAll(new FeedError({ status: 401, ...await answer.json() }));
        }
      } catch { /* the pod is away: try again later */ }
    }
    this.#again();
  }

  #drop() {
    this.#socket = null;
    this.#open = false;
    clearTimeout(this.#watch);
    this.#watch = null;
  }

  #again() {
    if (this.#closed || this.#timer || !this.#subscriptions.size) return;
    this.#timer = later(() => { this.#timer = null; this.#connect(); }, pause(this.#failures++));
  }

  /** A log-in that counts no more ends everything that it was for. */
  #refuseAll(error) {
    for (const sub of [...this.#subscriptions.values()]) sub.end(error);
    this.#onError(error);
  }

  #keepWatch() {
    this.#watch = later(() => {
      const quiet = Date.now() - this.#heard;
      if (quiet > QUIET_MS + PONG_MS) {
        const socket = this.#socket;
        this.#lost(1006);
        return socket?.close();
      }
      if (quiet > QUIET_MS) this.#send({ op: 'ping' });
      this.#keepWatch();
    }, PONG_MS);
    this.#watch.unref?.();
  }

  #send(message) {
    if (this.#open) this.#socket.send(JSON.stringify(message));
  }

  // ---- who asks --------------------------------------------------------------------------------------

  /** The session to use; null for nobody in particular. */
  async #credentials() {
    if (this.#session) return this.#session;
    this.#renewing ??= this.#logIn().finally(() => { this.#renewing = null; });
    return this.#renewing;
  }

  async #logIn() {
    const given = typeof this.#given === 'function' ? await this.#given() : this.#given;
    if (!given || isSession(given)) return this.#session = given ?? null;
    // A pod may give cookies otherwise, which don't count here.
    const body = JSON.stringify({ name: given.name, password: given.password, session: true });
    const answer = await this.#plainFetch(`${this.#url}/_session`, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
    const json = await answer.json();
    if (!answer.ok) throw new FeedError({ status: answer.status, ...json });
    return this.#session = { name: json.session.name, password: json.session.password };
  }

  // ---- fetch -----------------------------------------------------------------------------------------

  async #fetch(input, init = {}) {
    const url = typeof input === 'string' || input instanceof URL ? String(input) : null;
    if (!url?.startsWith(`${this.#url}/`)) return this.#plainFetch(input, init);
    const headers = new Headers(entries(init.headers));
    const theirs = headers.get('authorization');
    const session = await this.#credentials();
    if (theirs && ![session, this.#given].some((own) => own?.name && theirs === basic(own))) return this.#plainFetch(input, init);
    const live = liveRequest(url.slice(this.#url.length + 1), init);
    if (live && this.size < this.#limit) return live.continuous ? this.#stream(live, init.signal) : this.#poll(live, init.signal);
    const send = (who) => {
      if (!theirs && who) headers.set('authorization', basic(who));
      return this.#plainFetch(url, { ...init, headers });
    };
    const answer = await send(session);
    const renewable = !theirs && session && !isSession(this.#given) && (init.body == null || typeof init.body === 'string');
    if (answer.status !== 401 || !renewable) return answer;
    if (this.#session === session) this.#session = null;
    return send(await this.#credentials());
  }

  /** Answers a long poll from a subscription that stays open between one and the next. */
  #poll({ db, since, limit, wait, asked }, signal) {
    const key = JSON.stringify([db, asked]);
    const polls = this.#polls.get(key) ?? new Set();
    this.#polls.set(key, polls);
    let poll = [...polls].find((one) => one.place === since && !one.answer);
    if (!poll) {
      poll = { place: since, rows: [], idle: null, answer: null, drained: null };
      const forget = () => { clearTimeout(poll.idle); polls.delete(poll); if (!polls.size) this.#polls.delete(key); };
      poll.close = () => { forget(); poll.sub.close(); poll.drained?.(); };
      poll.sub = this.#add(db, { since, ...asked }, {
        // The batch counts as worked through when all of it was given, so an idle client has a bounded amount waiting here.
        onRows: (rows) => new Promise((drained) => { Object.assign(poll, { drained }); poll.rows.push(...rows); poll.answer?.(); }),
        onEnd: (error) => { forget(); poll.error = error; poll.answer?.(); poll.drained?.(); },
      });
      polls.add(poll);
    }
    clearTimeout(poll.idle);
    return new Promise((resolve, reject) => {
      const done = (how, what) => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', aborted);
        poll.answer = null;
        poll.idle = later(() => poll.close(), IDLE_POLL_MS);
        poll.idle.unref?.();
        how(what);
      };
      const give = () => {
        const results = poll.rows.splice(0, limit);
        // Without rows, a place further on is as good: what lies between was filtered out.
        if (results.length) poll.sub.seq = results.at(-1).seq;
        poll.place = String(poll.sub.seq);
        const body = { results, last_seq: poll.place, pending: poll.rows.length };
        done(resolve, json(200, body));
        if (!poll.rows.length) poll.drained?.();
      };
      const answer = () => {
        if (poll.error) done(resolve, json(poll.error.status ?? 500, { error: poll.error.error ?? 'error', reason: poll.error.reason ?? String(poll.error) }));
        else give();
      };
      const aborted = () => done(reject, abortError(signal));
      const timer = wait && later(give, wait);
      if (signal?.aborted) return aborted();
      signal?.addEventListener('abort', aborted);
      poll.answer = answer;
      if (poll.rows.length || poll.error) answer();
    });
  }

  /** Answers a continuous feed. */
  async #stream({ db, since, limit, heartbeat, asked }, signal) {
    const encoder = new TextEncoder();
    let left = limit, sub, beat, wanted = null;
    const stop = () => { clearInterval(beat); sub?.close(); wanted?.(); };
    const stream = new ReadableStream({
      start: (controller) => {
        const line = (value) => controller.enqueue(encoder.encode(`${value === null ? '' : JSON.stringify(value)}\n`));
        const finish = (seq) => { stop(); line({ last_seq: seq, pending: 0 }); controller.close(); };
        sub = this.#add(db, { since, ...asked }, {
          async onRows(rows, mine) {
            for (const row of rows) {
              if (mine.closed) return;
              line(row);
              mine.seq = row.seq;
              if (--left <= 0) return finish(row.seq);
              if (controller.desiredSize <= 0) await new Promise((resolve) => { wanted = resolve; });
            }
          },
          onEnd: () => finish(sub.seq),
        });
        if (heartbeat) { beat = setInterval(() => line(null), heartbeat); beat.unref?.(); }
        const aborted = () => { stop(); controller.error(abortError(signal)); };
        if (signal?.aborted) aborted();
        else signal?.addEventListener('abort', aborted);
      },
      pull: () => { wanted?.(); wanted = null; },
      cancel: stop,
    });
    return new Response(stream, { status: 200, headers: { 'content-type': 'application/json' } });
  }
}

/** A request for a live feed that a subscription can answer, as {db, since, limit, …}; null for any other. */
function liveRequest(path, { method = 'GET', body } = {}) {
  const [where, raw = ''] = path.split('?');
  const segments = where.split('/').filter(Boolean);
  if (segments.length !== 2 || segments[1] !== '_changes' || !['GET', 'POST'].includes(method)) return null;
  const query = new URLSearchParams(raw);
  const feed = query.get('feed');
  if (!['longpoll', 'continuous', 'live'].includes(feed) || ALONE.some((name) => query.has(name) && query.get(name) !== 'false')) return null;
  const asked = {}, own = {};
  for (const [name, value] of query) {
    if (IGNORED.has(name) || ALONE.includes(name)) continue;
    const kind = MEMBERS[name];
    if (kind === 'json') asked[name] = parsed(value);
    else if (kind === 'flag') asked[name] = value === 'true';
    else if (kind) asked[name] = value;
    else own[name] = value;
  }
  if (Object.keys(own).length) asked.query = own;
  if (body != null) {
    const { doc_ids: ids, selector, ...more } = (typeof body === 'string' && parsed(body)) || { strange: true };
    if (Object.keys(more).length) return null;
    if (ids) asked.doc_ids = ids;
    if (selector) asked.selector = selector;
  }
  const limit = query.has('limit') ? Number(query.get('limit')) : Infinity;
  if (!(limit >= 1)) return null;
  const since = (query.get('since') ?? '0').replace(/^"(.*)"$/, '$1');
  const beats = query.has('heartbeat') && query.get('heartbeat') !== 'false';
  const heartbeat = beats ? Math.max(1000, Number(query.get('heartbeat')) || POLL_MS) : 0;
  const wait = query.has('timeout') ? Math.min(Number(query.get('timeout')) || POLL_MS, POLL_MS) : beats ? 0 : POLL_MS;
  return { db: decodeURIComponent(segments[0]), since, limit, wait, heartbeat, asked, continuous: feed !== 'longpoll' };
}

const isSession = (one) => typeof one?.name === 'string' && one.name.startsWith('session-');
const basic = ({ name, password }) => `Basic ${base64(`${name}:${password}`)}`;
const pause = (failures) => Math.random() * Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(failures, 10));
const later = (what, ms) => setTimeout(what, ms);
const json = (status, body) => new Response(JSON.stringify(body), { status, headers: { 'content-type': 'application/json' } });
const abortError = (signal) => signal?.reason ?? new DOMException('The feed was aborted', 'AbortError');

function parsed(text) {
  try { return JSON.parse(text); } catch { return undefined; }
}

/** Headers of any make (PouchDB brings its own in Node) as pairs. */
function entries(headers) {
  if (!headers) return [];
  return typeof headers[Symbol.iterator] === 'function' ? [...headers] : Object.entries(headers);
}

function base64(text, urlSafe = false) {
  const plain = btoa(Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join(''));
  return urlSafe ? plain.replaceAll('+', '-').replaceAll('/', '_').replace(/=+$/, '') : plain;
}
