// What is done to the pods of a ring, by chance, and the watch over how long they are without a write master.
import { about } from './ring.mjs';
import { PROGRAMS } from './machines.mjs';
import { sleep, until } from './wait.mjs';

/** Notes who is master, several times a second, and how long it took until another was when one fell. */
export class Watch {
  constructor(machines) { Object.assign(this, { machines, masters: new Set(), failovers: [], fallen: null }); }

  async run(round) {
    await Promise.all(this.machines.map(async (machine) => {
      while (!round.stop) {
        try {
          const said = await about(machine.pod);
          if (said.role === 'master') this.masters.add(machine.number);
          else this.masters.delete(machine.number);
        } catch { this.masters.delete(machine.number); }
        this.#look();
        await sleep(100);
      }
    }));
  }

  /** These pods are going to fall. It counts if one of them takes the writes. */
  falls(numbers) {
    // With one on each side of a split there is another one at once.
    if (this.fallen || this.masters.size !== 1 || !numbers.some((number) => this.masters.has(number))) return;
    this.fallen = { at: Date.now(), numbers };
  }

  /** They are back: who isn't replaced by now won't be. */
  rises(numbers) {
    if (this.fallen?.numbers.some((number) => numbers.includes(number))) this.fallen = null;
  }

  #look() {
    const { fallen } = this;
    if (!fallen || ![...this.masters].some((number) => !fallen.numbers.includes(number))) return;
    this.failovers.push(Date.now() - fallen.at);
    this.fallen = null;
  }
}

/** The faults. Each is a promise that is kept when the fault is over. */
export class Faults {
  constructor(net, machines, random, watch, log) {
    Object.assign(this, { net, machines, random, watch, log, broken: new Set(), counts: {}, rules: new Map() });
  }

  ms(least, most) { return least + this.random.below(most - least + 1); }

  /** A pod that nothing is done to at the moment; often the master, whose fall is felt most. */
  #victim() {
    const free = this.machines.filter((machine) => !this.broken.has(machine));
    const choice = this.random.below(1000), wantsMaster = this.random.below(5) < 2;
    const masters = free.filter((machine) => this.watch.masters.has(machine.number));
    if (wantsMaster && masters.length) return masters[0];
    return free[choice % free.length] ?? null;
  }

  /** Begins some fault; null if there is nothing to break. All choices are made here, in order, so that a seed repeats them. */
  begin() {
    const { random } = this;
    const machine = this.#victim();
    if (!machine || this.broken.size >= 2) return null;
    const choice = random.below(12);
    if (choice < 3) return this.#killOne(machine, random.pick(PROGRAMS), this.ms(200, 2500));
    if (choice < 5) return this.#killAll(machine, this.ms(300, 4000));
    if (choice < 7) return this.#stop(machine, random.below(2) ? PROGRAMS : [random.pick(PROGRAMS)], this.ms(200, 8000));
    if (choice < 9) return this.#cut([machine], this.ms(1000, 8000));
    if (choice < 11) {
      const others = this.machines.filter((other) => other !== machine && !this.broken.has(other));
      return others.length ? this.#cut([machine, random.pick(others)], this.ms(1000, 8000)) : null;
    }
    return this.#slow(machine, { delay_ms: this.ms(10, 150), jitter_ms: this.ms(0, 30), loss: this.ms(0, 15) / 100 }, this.ms(2000, 8000));
  }

  async #during(kind, machines, what, over) {
    const names = machines.map((machine) => machine.id).join(' and ');
    for (const machine of machines) this.broken.add(machine);
    this.counts[kind] = (this.counts[kind] ?? 0) + 1;
    const masters = [...this.watch.masters].map((number) => `pod-${number}`).join(', ');
    this.log(`${kind} ${names} ${over} (master ${masters || 'none'})`);
    try { await what(); } finally { for (const machine of machines) this.broken.delete(machine); }
    this.log(`over: ${kind} ${names}`);
  }

  #killOne(machine, program, ms) {
    return this.#during(`kill ${program}`, [machine], async () => {
      // Without its proxy a master is master all the same.
      if (program !== 'proxy') this.watch.falls([machine.number]);
      const { ended } = machine;
      machine.signal('SIGKILL', [program]);
      if (program === 'adea') await ended;
      await sleep(ms);
      this.watch.rises([machine.number]);
      machine.start();
      await machine.up();
    }, `for ${ms} ms`);
  }

  #killAll(machine, ms) {
    return this.#during('kill all of', [machine], async () => {
      this.watch.falls([machine.number]);
      await machine.kill();
      await sleep(ms);
      this.watch.rises([machine.number]);
      machine.start();
      await machine.up();
    }, `for ${ms} ms`);
  }

  #stop(machine, programs, ms) {
    return this.#during(`stop ${programs.join('+')} of`, [machine], async () => {
      if (String(programs) !== 'proxy') this.watch.falls([machine.number]);
      machine.signal('SIGSTOP', programs);
      await sleep(ms);
      this.watch.rises([machine.number]);
      machine.signal('SIGCONT', programs);
      await machine.up();
    }, `for ${ms} ms`);
  }

  /** Between these and all others nothing goes. */
  #cut(side, ms) {
    const others = this.machines.filter((machine) => !side.includes(machine));
    const rule = { cut: true };
    return this.#during('cut off', side, async () => {
      this.watch.falls(side.map((machine) => machine.number));
      await this.#impose(side, others, rule);
      await sleep(ms);
      this.watch.rises(side.map((machine) => machine.number));
      await this.#lift(side, others, rule);
    }, `for ${ms} ms`);
  }

  #slow(machine, rule, ms) {
    const others = this.machines.filter((other) => other !== machine);
    return this.#during('slow links of', [machine], async () => {
      await this.#impose([machine], others, rule);
      await sleep(ms);
      await this.#lift([machine], others, rule);
    }, `${JSON.stringify(rule)} for ${ms} ms`);
  }

  #impose(side, others, rule) {
    return this.#eachLink(side, others, (rules) => rules.push(rule));
  }

  #lift(side, others, rule) {
    return this.#eachLink(side, others, (rules) => rules.splice(rules.indexOf(rule), 1));
  }

  /** A link may be in two faults at a time: the worse of both holds. */
  async #eachLink(side, others, change) {
    for (const a of side) {
      for (const b of others) {
        const ends = [a.number, b.number].sort();
        const rules = this.rules.get(String(ends)) ?? [];
        change(rules);
        this.rules.set(String(ends), rules);
        const worst = (name) => Math.max(0, ...rules.map((rule) => rule[name] ?? 0));
        const holds = { delay_ms: worst('delay_ms'), jitter_ms: worst('jitter_ms'), loss: worst('loss'), cut: rules.some((rule) => rule.cut) };
        await this.net.link(...ends, holds);
      }
    }
  }

  /** Kills all but one, in any order at any moments; `check` is given the one that is left. Then all come back. */
  async allButOne(check) {
    const order = [...this.machines];
    for (let n = order.length - 1; n > 0; n--) {
      const other = this.random.below(n + 1);
      [order[n], order[other]] = [order[other], order[n]];
    }
    const pauses = order.map(() => this.ms(0, 1500)), last = order.pop();
    this.counts['all but one'] = (this.counts['all but one'] ?? 0) + 1;
    for (const machine of order) {
      this.log(`kill all of ${machine.id}, ${last.id} will be left`);
      this.watch.falls([machine.number]);
      await machine.kill();
      await sleep(pauses.pop());
    }
    try { await check(last); } finally {
      this.watch.rises(order.map((machine) => machine.number));
      for (const machine of order) machine.start();
    }
    await Promise.all(order.map((machine) => machine.up()));
    this.log(`over: all but ${last.id}`);
  }

  /** Everything is as it should be again. */
  async heal() {
    await this.net.heal();
    for (const machine of this.machines) {
      machine.signal('SIGCONT');
      machine.start();
    }
    await Promise.all(this.machines.map((machine) => until(() => machine.up(2000), `${machine.id} to be up`, 60_000)));
  }
}
