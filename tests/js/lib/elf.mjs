// What a program file says of itself (System V ABI, "Executable and Linking Format"): 64 bits, little-endian.

const SEGMENT = { load: 1, interpreter: 3 };
const NO_SEGMENT = 0;

export class Elf {
  #segments = [];

  constructor(bytes) {
    this.bytes = bytes;
    if (bytes.toString('latin1', 0, 6) !== '\x7fELF\x02\x01') throw new Error('it is no 64-bit program for Linux');
    const [begin, size, count] = [Number(bytes.readBigUInt64LE(32)), bytes.readUInt16LE(54), bytes.readUInt16LE(56)];
    for (let n = 0; n < count; n++) {
      const at = begin + n * size;
      const [offset, length] = [at + 8, at + 32].map((place) => Number(bytes.readBigUInt64LE(place)));
      this.#segments.push({ at, type: bytes.readUInt32LE(at), end: offset + length });
    }
  }

  /** Whether it needs no other program to start. */
  get isStatic() { return !this.#of(SEGMENT.interpreter).length; }

  /** How far what is loaded goes, in bytes: the program without its symbols, nearly. */
  get loaded() { return Math.max(...this.#of(SEGMENT.load).map(({ end }) => end)); }

  /** A copy that says that it needs no other. It does not start. */
  madeStatic() {
    const copy = Buffer.from(this.bytes);
    for (const { at } of this.#of(SEGMENT.interpreter)) copy.writeUInt32LE(NO_SEGMENT, at);
    return copy;
  }

  #of(type) { return this.#segments.filter((segment) => segment.type === type); }
}
