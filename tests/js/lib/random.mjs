// Choices that can be repeated: a small generator with a seed (mulberry32).

export class Random {
  constructor(seed) { this.state = seed >>> 0; }

  /** A whole number from 0 to `bound` - 1. */
  below(bound) {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let x = this.state;
    x = Math.imul(x ^ (x >>> 15), x | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return Math.floor((((x ^ (x >>> 14)) >>> 0) / 4294967296) * bound);
  }

  pick(list) { return list[this.below(list.length)]; }
}
