// Many feeds of a pod on one connection: the reference client for FEEDS.md, for browsers and for Node.
//
//   const feeds = new Feeds('https://pod.example', { session: { name: 'ann', password: '…' } });
//   const mine = feeds.subscribe('notes--me', { since: 'now', include_docs: true }, (change) => show(change.doc));
//   mine.close();
//
//   // Or under PouchDB, which then needs one connection for all its live databases:
//   const remote = new PouchDB('https://pod.example/notes--me', { fetch: feeds.fetch });
//
// It goes over a WebSocket, and where none gets through, over an event stream. It depends on nothing. Node before 22 has no
// WebSocket of its own: give one, as `{ WebSocket }`, or it is the event stream at once.

const PROTOCOL = 'adea.feeds.v1';
/** Batches that may be on their way for one subscription: the server goes on when one of them has been worked through. */
const CREDIT = 4;
/** After a failure the next attempt comes after up to this long, in ms, then after up to twice as long, and so on. */
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 30_000;
/** A connection on which nothing has come for this long, in ms, is asked whether it is there, and given up when silent. */
const QUIET_MS = 45_000;
const PONG_MS = 15_000;
/** A connection that has not begun after this long, in ms, is given up: what is in between swallows it, or gathers it first. */
const HELLO_MS = 10_000;
/** A browser that was offline and is not any more: a connection that does not answer within this long, in ms, is gone. */
const BACK_MS = 3_000;
/** So many times in a row does one way fail, while requests get through, until the other is tried. */
const REFUSALS = 2;
/** Messages that go in one request beside an event stream: fewer than the server takes. */
const MESSAGES_AT_ONCE = 256;
/** A long poll that nobody asks for again ends after this long, in ms. */
const IDLE_POLL_MS = 10_000;
/** How long a long poll without heartbeat waits, in ms: CouchDB's default. */
const POLL_MS = 60_000;
/**
 * A log-in asks to last longer when this share of its time is over: the server gives more from a half of it on, and what is
 * left is enough to try again. Waits are at least and at most so long, in ms: a browser counts none beyond 24 days.
 */
const STAY_SHARE = 0.6;
const SHORTEST_STAY_MS = 1_000;
const LONGEST_STAY_MS = 86_400_000;
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
  #way; #ways; #refusals = 0; #user; #hello = null; #back = () => this.#backOnline();
  #subscriptions = new Map(); #next = 0; #polls = new Map(); #limit = Infinity; #renewing = null;
  #stay = null; #leaves = null;

  /**
   * `url` is the pod's, without a database. `session`: a session as `POST /_session` gives it (`{name, password}`), or a
   * user's name and password, with which sessions are then made, or a function that gives one of both, or nothing for
   * whoever the browser's cookie says, or nobody in particular. `transport`: `websocket` or `events`, where it is not to find
   * out by itself which gets through. `onError` hears of what concerns all feeds: a log-in that is refused.
   */
  constructor(url, { session = null, WebSocket, fetch, transport, onError = () => {} } = {}) {
    this.#url = String(url).replace(/\/+$/, '');
    this.#given = session;
    this.#WebSocket = WebSocket ?? globalThis.WebSocket;
    this.#plainFetch = fetch ?? globalThis.fetch.bind(globalThis);
    this.#onError = onError;
    this.#ways = transport ? [transport] : this.#WebSocket ? ['websocket', 'events'] : ['events'];
    this.#way = this.#ways[0];
    if (this.#way === 'websocket' && !this.#WebSocket) throw new Error('there is no WebSocket here: give one as an option');
    globalThis.addEventListener?.('online', this.#back);
    this.fetch = (input, init) => this.#fetch(input, init);
  }

  /** Whether the connection is up. */
  get connected() { return this.#open; }

  /** What it goes over, or is about to: `websocket` or `events`. */
  get transport() { return this.#way; }

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
    globalThis.removeEventListener?.('online', this.#back);
    clearTimeout(this.#timer);
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
      const socket = this.#socket = this.#opened(session);
      this.#hello = later(() => { this.#lost(1006, session); socket.close(); }, HELLO_MS);
      socket.onmessage = ({ data, message = JSON.parse(data) }) => { if (this.#socket === socket) this.#heed(message); };
      socket.onclose = ({ code }) => { if (this.#socket === socket) this.#lost(code, session); };
      // It is closed next, or it should be: Node 20's own WebSocket does not say so when the handshake has failed.
      socket.onerror = () => later(() => { if (this.#socket === socket) this.#lost(1006, session); }, 0);
    } catch (error) {
      if (this.#socket === mine) this.#drop();
      if (error instanceof FeedError && [400, 401, 403].includes(error.status)) this.#refuseAll(error);
      else this.#again();
    }
  }

  #opened(session) {
    if (this.#way === 'events') return new EventLine(`${this.#url}/_feeds`, this.#plainFetch, session && basic(session));
    const protocols = [PROTOCOL];
    if (session) protocols.push(`adea.session.${base64(`${session.name}:${session.password}`, true)}`);
    return new this.#WebSocket(`${this.#url.replace(/^http/, 'ws')}/_feeds`, protocols);
  }

  #heed(message) {
    this.#heard = Date.now();
    const sub = this.#subscriptions.get(message.id);
    switch (message.op) {
      case 'hello':
        clearTimeout(this.#hello);
        // A cookie that is over, or is another's now. What one was told is no place for another to go on from.
        if (this.#user !== undefined && this.#user !== message.user) return this.#another();
        this.#user = message.user;
        this.#open = true;
        this.#failures = this.#refusals = 0;
        this.#limit = message.limits.subscriptions;
        this.#keepWatch();
        if (message.user !== null) this.#stayLater();
        for (const one of this.#subscriptions.values()) { clearTimeout(one.timer); this.#ask(one); }
        break;
      case 'changes': sub?.take(message.results); break;
      case 'caught_up': sub?.take(null, message.last_seq); break;
      case 'ended':
      case 'error': if (sub) this.#refused(sub, message); break;
      default: // pong, subscribed, a sign of life, and what later servers say
    }
  }

  async #lost(code, session) {
    const begun = this.#open;
    this.#drop();
    if (this.#closed) return;
    // A browser does not tell why a WebSocket was refused: a request does. And if that gets through, the other way may too.
    if (!begun || (session && code === LOG_IN_ENDED)) {
      try {
        const headers = session ? { authorization: basic(session) } : {};
        const answer = await this.#plainFetch(`${this.#url}/_session`, { headers, credentials: 'include' });
        if (answer.status === 401 && session) {
          if (this.#session === session) this.#session = null;
          if (isSession(this.#given)) return this.#refuseAll(new FeedError({ status: 401, ...await answer.json() }));
        } else if (!begun && answer.ok && !this.#socket && ++this.#refusals >= REFUSALS) {
          this.#refusals = 0;
          this.#way = this.#ways[(this.#ways.indexOf(this.#way) + 1) % this.#ways.length];
        }
      } catch { /* the pod is away: try again later */ }
    }
    this.#again();
  }

  #drop() {
    this.#socket = null;
    this.#open = false;
    for (const timer of [this.#watch, this.#hello, this.#stay]) clearTimeout(timer);
    this.#watch = null;
  }

  /** The browser has a network again: not the time to sit a long pause out, nor to trust a connection of before. */
  #backOnline() {
    if (this.#timer) {
      clearTimeout(this.#timer);
      this.#timer = null;
      this.#failures = 0;
      this.#connect();
    } else if (this.#open) {
      const socket = this.#socket, asked = Date.now();
      this.#send({ op: 'ping' });
      later(() => { if (this.#socket === socket && this.#heard < asked) { this.#lost(1006); socket.close(); } }, BACK_MS).unref?.();
    }
  }

  #again() {
    if (this.#closed || this.#timer || !this.#subscriptions.size) return;
    this.#timer = later(() => { this.#timer = null; this.#connect(); }, pause(this.#failures++));
  }

  #another() {
    const socket = this.#socket;
    this.#drop();
    socket.close();
    this.#user = undefined;
    this.#refuseAll(new FeedError({ status: 401, error: 'unauthorized', reason: 'The log-in has ended.' }));
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
    this.#leaves = null;
    if (!given || isSession(given)) return this.#session = given ?? null;
    // A pod may give cookies otherwise, which don't count here.
    const body = JSON.stringify({ name: given.name, password: given.password, session: true });
    const answer = await this.#plainFetch(`${this.#url}/_session`, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
    const json = await answer.json();
    if (!answer.ok) throw new FeedError({ status: answer.status, ...json });
    const { name: own, password, left_ms: left } = json.session;
    this.#leaves = left === undefined ? null : Date.now() + left;
    return this.#session = { name: own, password };
  }

  /**
   * A connection that is open counts as no request, so the log-in is prolonged by one now and then. `#leaves`: when it ends,
   * by this clock; unknown for a cookie, or for a session that was made elsewhere, until the server has said it.
   */
  #stayLater() {
    const left = this.#leaves === null ? 0 : this.#leaves - Date.now();
    const wait = Math.min(Math.max(left * STAY_SHARE, this.#leaves === null ? 0 : SHORTEST_STAY_MS), LONGEST_STAY_MS);
    clearTimeout(this.#stay);
    this.#stay = later(() => this.#stayNow(), wait);
    this.#stay.unref?.();
  }

  async #stayNow() {
    const socket = this.#socket, session = this.#session;
    try {
      const headers = session ? { authorization: basic(session) } : {};
      const answer = await this.#plainFetch(`${this.#url}/_session`, { method: 'PUT', headers, credentials: 'include' });
      const told = await answer.json();
      if (answer.status === 429 || answer.status >= 500) throw new Error(`it can't be prolonged now: ${answer.status}`);
      if (this.#socket !== socket || this.#session !== session) return;
      // An older pod, or nothing that ends. When the log-in is over the server says so on the connection.
      if (!answer.ok || !told.session) return;
      this.#leaves = Date.now() + told.session.left_ms;
      if (told.session.expires === told.session.longest) return;
    } catch {
      // The pod is away or has too much to do, for a moment; without an idea of the time left there is no hurry, nor when it
      // is over by this clock and the connection still stands.
      if (this.#socket !== socket) return;
      if (!(this.#leaves > Date.now())) this.#leaves = Date.now() + QUIET_MS;
    }
    this.#stayLater();
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

/**
 * An event stream, and the requests beside it, with the face of a WebSocket. It is read with fetch and not by an EventSource:
 * that can't show who asks, does not tell why it was refused, and comes back by itself to where it once began.
 */
class EventLine {
  #url; #fetch; #headers; #connection = null; #waiting = []; #sending = false; #over = new AbortController();

  constructor(url, fetch, authorization) {
    this.#url = url;
    this.#fetch = fetch;
    this.#headers = authorization ? { authorization } : {};
    this.#listen();
  }

  send(text) {
    this.#waiting.push(text);
    this.#post();
  }

  close() { this.#over.abort(); }

  async #listen() {
    let code = 1006;
    try {
      const headers = { ...this.#headers, accept: 'text/event-stream' };
      const answer = await this.#fetch(this.#url, { headers, credentials: 'include', cache: 'no-store', signal: this.#over.signal });
      if (!answer.ok) await answer.body?.cancel();
      else code = await this.#events(answer.body.getReader());
    } catch { /* it broke off, or was closed */ }
    this.#over.abort();
    this.onclose?.({ code });
  }

  /** Reads to the end; gives the code that it has ended with. */
  async #events(reader) {
    const decoder = new TextDecoder();
    let code = 1006, parts = [];
    for (;;) {
      const { done, value } = await reader.read();
      // What the last event lacks does not come any more.
      if (done) return code;
      // A sign of life is one too, though there is nothing to tell; a large event comes in many pieces.
      this.onmessage?.({ message: { op: 'alive' } });
      parts.push(decoder.decode(value, { stream: true }));
      if (!parts.at(-1).includes('\n')) continue;
      const lines = parts.join('').split('\n');
      parts = [lines.pop()];
      for (const line of lines) {
        if (!line.startsWith('data: ')) continue;
        const message = JSON.parse(line.slice(6));
        if (message.op === 'hello') this.#connection = message.connection;
        if (message.op === 'close') code = message.code;
        this.onmessage?.({ message });
      }
    }
  }

  /** One request after the other, so that what is said comes in its order. */
  async #post() {
    if (this.#sending) return;
    this.#sending = true;
    try {
      // What is said in one go, goes in one.
      await null;
      while (this.#waiting.length && !this.#over.signal.aborted) {
        const messages = this.#waiting.splice(0, MESSAGES_AT_ONCE).map((text) => JSON.parse(text));
        const headers = { ...this.#headers, 'content-type': 'application/json' };
        const body = JSON.stringify({ connection: this.#connection, messages });
        const answer = await this.#fetch(this.#url, { method: 'POST', headers, body, credentials: 'include', signal: this.#over.signal });
        await answer.body?.cancel();
        if (!answer.ok) throw new Error(`the connection takes no messages: ${answer.status}`);
      }
    } catch {
      // What was said is lost, so nothing else on this connection would be right.
      this.#over.abort();
    } finally {
      this.#sending = false;
    }
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
