// What functions of design documents find around them. Runs once in each fresh context, before anything else;
// gives the server `open`, `compile`, `map` and `tidy`. Everything it needs later is taken now: functions may replace what they see.
(function () {
  'use strict';
  const world = globalThis;
  const evalText = world.eval;
  const { freeze, isFrozen, create, defineProperty, getOwnPropertyDescriptor, getPrototypeOf } = Object;
  const { isArray } = Array;
  const { isView } = ArrayBuffer;
  const { stringify } = JSON;
  const { ownKeys, apply } = Reflect;
  const TypeErr = TypeError, RangeErr = RangeError, EvalErr = EvalError;
  const { split, slice, lastIndexOf, toWellFormed: wellFormed } = String.prototype;
  const hidden = (value) => ({ value, writable: true, enumerable: false, configurable: true });

  // --- No code out of text: CouchDB's servers are started without `--eval`, too.
  const refuse = (what) => function () { throw new EvalErr(what + ' is turned off here'); };
  defineProperty(world, 'eval', hidden(refuse('eval')));
  const kinds = [function () {}, function* () {}, async function () {}, async function* () {}];
  for (const kind of kinds) {
    const proto = getPrototypeOf(kind);
    const closed = refuse('making functions out of text');
    defineProperty(closed, 'prototype', { value: proto, writable: false, enumerable: false, configurable: false });
    defineProperty(proto, 'constructor', hidden(closed));
    if (proto === Function.prototype) defineProperty(world, 'Function', hidden(closed));
  }
  // Threads that wait for one another, and what runs after a call: not here.
  for (const name of ['Atomics', 'SharedArrayBuffer', 'WeakRef', 'FinalizationRegistry', 'queueMicrotask', 'performance', 'navigator', 'console', 'print', 'gc']) {
    delete world[name];
  }

  // --- Loops inside the engine that no clock can stop are kept short: these run over `length` elements, whatever is there.
  // The engine looks at the clock every ten thousand steps of JavaScript; so that these cost steps, too.
  const STEPS_SHIFT = 8;
  const poll = (steps) => { for (let left = steps >>> STEPS_SHIFT; left > 0; left--); };
  const MOST_ELEMENTS = 10000000;
  const short = (list) => {
    if (typeof list !== 'object' || list === null) return;
    let length = list.length;
    if (!isArray(list)) {
      const own = getOwnPropertyDescriptor(list, 'length');
      if (own === undefined) { if (length === undefined || isView(list)) return; throw new TypeErr('no list'); }
      if (typeof own.value !== 'number') throw new TypeErr('no list');
      length = own.value;
    }
    if (length > MOST_ELEMENTS) throw new RangeErr('the list is too long');
    if (length > 1000) poll(length);
  };
  const guardLists = (name) => {
    const plain = Array.prototype[name];
    if (typeof plain !== 'function') return;
    const guarded = { [name](...args) {
      short(this);
      if (name === 'concat') for (let i = 0; i < args.length; i++) if (isArray(args[i])) short(args[i]);
      return apply(plain, this, args);
    } }[name];
    defineProperty(guarded, 'length', { value: plain.length, configurable: true });
    defineProperty(Array.prototype, name, hidden(guarded));
  };
  ['reverse', 'slice', 'splice', 'shift', 'unshift', 'copyWithin', 'join', 'toString', 'toLocaleString', 'sort', 'fill', 'flat', 'concat',
    'toSorted', 'toReversed', 'toSpliced', 'with'].forEach(guardLists);
  // Long texts: what goes over one costs steps by its length. Whatever is no text is made one first, as the engine would.
  const LONG_TEXT = 4096;
  const replaceOn = (on, name, make) => {
    const plain = on[name];
    if (typeof plain !== 'function') return;
    const guarded = make(plain);
    defineProperty(guarded, 'name', { value: name, configurable: true });
    defineProperty(guarded, 'length', { value: plain.length, configurable: true });
    defineProperty(on, name, hidden(guarded));
  };
  const asText = (what) => typeof what === 'string' || what === null || what === undefined ? what : `${what}`;
  const longText = (what) => {
    const text = asText(what);
    if (typeof text === 'string' && text.length > LONG_TEXT) poll(text.length);
    return text;
  };
  const guardText = (name) => replaceOn(String.prototype, name, (plain) => ({ guarded(...args) {
    return apply(plain, longText(this), args);
  } }).guarded);
  ['toUpperCase', 'toLowerCase', 'toLocaleUpperCase', 'toLocaleLowerCase', 'normalize', 'slice', 'substring', 'substr', 'trim', 'trimStart',
    'trimEnd', 'localeCompare', 'match', 'matchAll', 'search', 'concat', 'startsWith', 'endsWith', 'isWellFormed', 'toWellFormed'].forEach(guardText);
  // What is made longer than it was.
  ['repeat', 'padStart', 'padEnd'].forEach((name) => replaceOn(String.prototype, name, (plain) => ({ guarded(...args) {
    return longText(apply(plain, longText(this), args));
  } }).guarded));
  for (const name of ['encodeURI', 'encodeURIComponent', 'decodeURI', 'decodeURIComponent', 'escape', 'unescape', 'parseInt', 'parseFloat']) {
    replaceOn(world, name, (plain) => ({ guarded(what, base) { return plain(longText(what), base); } }).guarded);
  }
  // A search for a long text in a long one takes as long as their lengths multiplied.
  const MOST_COMPARED = 4000000000;
  const { match: matchBy, replace: replaceBy, split: splitBy } = Symbol;
  const guardSearch = (name) => replaceOn(String.prototype, name, (plain) => ({ guarded(what, second) {
    const text = longText(this);
    if (typeof text === 'string' && text.length > LONG_TEXT) {
      if (typeof what === 'object' && what !== null && what[matchBy] === undefined && what[replaceBy] === undefined && what[splitBy] === undefined) what = `${what}`;
      if (typeof what === 'string' && what.length > 256 && text.length * what.length > MOST_COMPARED) throw new RangeErr('the texts are too long');
    }
    return arguments.length < 2 ? apply(plain, text, [what]) : apply(plain, text, [what, second]);
  } }).guarded);
  ['indexOf', 'lastIndexOf', 'includes', 'split', 'replace', 'replaceAll'].forEach(guardSearch);
  // All members of an object at once.
  ['keys', 'values', 'entries', 'getOwnPropertyNames', 'getOwnPropertyDescriptors'].forEach((name) => replaceOn(Object, name, (plain) => ({ guarded(of) {
    const all = plain(of);
    if (isArray(all) && all.length > 1000) poll(all.length);
    return all;
  } }).guarded));
  replaceOn(Object, 'assign', (plain) => ({ guarded(...args) {
    for (let i = 1; i < args.length; i++) if (typeof args[i] === 'object' && args[i] !== null) poll(ownKeys(args[i]).length);
    return apply(plain, Object, args);
  } }).guarded);
  // Typed arrays, over all their elements.
  const { prototype: typed } = getPrototypeOf(Uint8Array);
  const { get: typedLength } = getOwnPropertyDescriptor(typed, 'length');
  ['sort', 'toSorted', 'fill', 'slice', 'set', 'reverse', 'toReversed', 'indexOf', 'lastIndexOf', 'includes', 'join', 'toString', 'toLocaleString', 'copyWithin', 'with',
    'subarray'].forEach((name) => replaceOn(typed, name, (plain) => ({ guarded(...args) {
    if (isView(this)) poll(apply(typedLength, this, []));
    return apply(plain, this, args);
  } }).guarded));
  // JSON: no clock is asked while a text is read or written. The names that a list lets through are looked for in each object.
  const MOST_NAMES = 1000;
  const readJson = JSON.parse;
  replaceOn(JSON, 'stringify', () => ({ guarded(value, by, space) {
    if (isArray(by) && by.length > MOST_NAMES) throw new RangeErr('too many names');
    return longText(stringify(value, by, space));
  } }).guarded);
  replaceOn(JSON, 'parse', () => ({ guarded(text, by) { return readJson(longText(text), by); } }).guarded);

  // --- CouchDB's helpers.
  const fixed = (name, value) => defineProperty(world, name, { value, writable: false, enumerable: true, configurable: false });
  const textOf = (value) => {
    const text = stringify(value);
    return text === undefined ? 'null' : text;
  };
  // Characters of rows that a document may have in one view (CouchDB has no bound; documents have 8 MB at most), and
  // what a row counts beside its text, so that a million empty ones don't come for nothing.
  const MOST_CHARACTERS = 8388608, ROW_CHARACTERS = 48;
  let rows, count = 0, characters = 0, keeps = false, full = false;
  fixed('emit', function emit(key, value) {
    count += 1;
    if (!keeps) return;
    const keyText = textOf(key), valueText = textOf(value);
    characters += keyText.length + valueText.length + ROW_CHARACTERS;
    if (characters > MOST_CHARACTERS) {
      full = true;
      rows = [];
      throw new RangeErr('emitted too much');
    }
    const at = rows.length;
    rows[at] = keyText;
    rows[at + 1] = valueText;
  });
  // What a map function emits: texts of keys and values in turn, or only whether there is anything.
  function map(run, doc, keep) {
    rows = [];
    count = characters = 0;
    full = false;
    keeps = keep;
    try {
      run(doc);
    } finally {
      keeps = false;
    }
    const made = rows;
    rows = undefined;
    if (!keep) return count > 0;
    if (full) throw new RangeErr('emitted too much');
    return made;
  }
  // Lines that one call may log, and how long they may be: enough to find a fault, too little to fill a disk.
  const MOST_LINES = 32, MOST_LINE = 1024;
  let lines = [];
  fixed('log', function log(what) {
    if (lines.length >= MOST_LINES) return;
    const text = typeof what === 'string' ? what : textOf(what);
    lines[lines.length] = apply(wellFormed, apply(slice, text, [0, MOST_LINE]), []);
  });
  fixed('sum', function sum(values) {
    let total = 0;
    for (let i = 0; i < values.length; i++) total += values[i];
    return total;
  });
  fixed('isArray', isArray);
  fixed('toJSON', function toJSON(value) { return textOf(value); });
  freeze(JSON);
  freeze(Math);
  freeze(Reflect);

  // --- CommonJS modules of the design document.
  const invalid = (message) => ['error', 'invalid_require_path', message];
  const owns = Object.prototype.hasOwnProperty;
  const MOST_TEXT = 1048576;
  let loaded = 0;
  function resolve(names, at, mod, root) {
    if (at === names.length) {
      if (typeof mod.current !== 'string') throw invalid('Must require a JavaScript string, not: ' + typeof mod.current);
      return { current: mod.current, parent: mod.parent, id: mod.id, exports: {} };
    }
    const name = names[at];
    if (name === '..') {
      if (!(mod.parent && mod.parent.parent)) throw invalid('Object has no parent ' + stringify(mod.id));
      const id = apply(slice, mod.id, [0, apply(lastIndexOf, mod.id, ['/'])]);
      return resolve(names, at + 1, { id, parent: mod.parent.parent, current: mod.parent.current });
    }
    if (name === '.') {
      if (!mod.parent) throw invalid('Object has no parent ' + stringify(mod.id));
      return resolve(names, at + 1, { id: mod.id, parent: mod.parent, current: mod.current });
    }
    if (root) mod = { current: root };
    const inside = mod.current;
    if (typeof inside !== 'object' || inside === null || !apply(owns, inside, [name])) throw invalid('Object has no property "' + name + '"');
    return resolve(names, at + 1, { current: inside[name], parent: mod, id: mod.id ? mod.id + '/' + name : name });
  }
  function requirer(root) {
    const cache = create(null);
    const load = (path, from) => {
      if (typeof path !== 'string') throw invalid('Must require a path, not: ' + typeof path);
      const module = resolve(apply(split, path, ['/']), 0, from.parent || {}, root);
      if (module.id in cache) return cache[module.id].exports;
      if (module.current.length > MOST_TEXT) throw ['error', 'compilation_error', "Module require('" + path + "') is too long"];
      // Known before it runs, so that modules that need each other find what is there so far.
      cache[module.id] = module;
      loaded += 1;
      try {
        const run = evalText('(function (module, exports, require) { ' + module.current + '\n })');
        apply(run, world, [module, module.exports, (next) => load(next, module)]);
      } catch (error) {
        delete cache[module.id];
        if (isArray(error)) throw error;
        throw ['error', 'compilation_error', "Module require('" + path + "') raised error " + error];
      }
      return module.exports;
    };
    return (path) => load(path, {});
  }
  const deepFreeze = (value) => {
    if (typeof value !== 'object' || value === null || isFrozen(value)) return value;
    freeze(value);
    for (const key of ownKeys(value)) deepFreeze(value[key]);
    return value;
  };
  let requires = create(null);

  // The text of a function as an expression. As an initial value it may have comments around it, a semicolon and helpers after it.
  function compile(text, scope) {
    loaded += 1;
    const made = evalText('(function (require) { var $function = ' + text + '\n; return $function; })');
    return made(requires[scope]);
  }
  function open(design) {
    deepFreeze(design);
    requires.design = requirer(design);
    const views = apply(owns, design, ['views']) ? design.views : undefined;
    const lib = views && apply(owns, views, ['lib']) ? views.lib : undefined;
    requires.views = requirer({ views: lib === undefined ? {} : { lib } });
    return design;
  }

  // --- Whether a call left anything behind that the next one would see.
  const watched = [world, Object, Array, String, Number, Date, RegExp, Object.prototype, Array.prototype, String.prototype, Number.prototype, Boolean.prototype,
    Function.prototype, Date.prototype, RegExp.prototype, Error.prototype, Map.prototype, Set.prototype, Symbol.prototype];
  const counts = [];
  const values = [];
  const known = create(null);
  function settle() {
    for (let i = 0; i < watched.length; i++) counts[i] = ownKeys(watched[i]).length;
    for (const key of ownKeys(world)) known[key] = true;
    for (const of of [Object.prototype, Array.prototype]) {
      for (const key of ownKeys(of)) if ('value' in getOwnPropertyDescriptor(of, key)) values[values.length] = [of, key, of[key]];
    }
  }
  // What was logged is told after whether all is clean.
  function tidy() {
    const clean = isClean();
    if (lines.length === 0) return clean;
    const told = [clean, ...lines];
    lines = [];
    return told;
  }
  // True if all is as it was, or could be made so. What a module set is not taken away: it would miss it.
  function isClean() {
    const before = loaded;
    loaded = 0;
    const keys = ownKeys(world);
    if (keys.length !== counts[0]) {
      if (before !== 0) return false;
      for (let i = 0; i < keys.length; i++) if (!known[keys[i]] && !delete world[keys[i]]) return false;
      if (ownKeys(world).length !== counts[0]) return false;
    }
    for (let i = 1; i < watched.length; i++) if (ownKeys(watched[i]).length !== counts[i]) return false;
    for (let i = 0; i < values.length; i++) if (values[i][0][values[i][1]] !== values[i][2]) return false;
    return true;
  }
  settle();
  return { open, compile, map, tidy };
})
