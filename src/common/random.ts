/** Randomness, handed in everywhere, so that the simulator's seed decides all of it. */
export interface Random {
  /** Uniform in [0, 1). */
  next(): number;
}

/** An integer in [0, boundExclusive). */
export const below = (random: Random, boundExclusive: number): number => Math.floor(random.next() * boundExclusive);
export const chance = (random: Random, probability: number): boolean => random.next() < probability;
export function pick<T>(random: Random, items: readonly T[]): T {
  return items[below(random, items.length)]!;
}

/** xoshiro128** (Blackman and Vigna, 2018), seeded through splitmix32. Same seed, same sequence, on every machine. */
export class SeededRandom implements Random {
  readonly #state = new Uint32Array(4);

  constructor(seed: number) {
    let x = seed >>> 0;
    for (let i = 0; i < 4; i++) {
      x = (x + 0x9e3779b9) >>> 0;
      let z = x;
      z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
      z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
      this.#state[i] = (z ^ (z >>> 16)) >>> 0;
    }
  }

  next(): number {
    const s = this.#state;
    const [a, b, c, d] = [s[0]!, s[1]!, s[2]!, s[3]!];
    const m = Math.imul(b, 5);
    const result = Math.imul((m << 7) | (m >>> 25), 9) >>> 0;
    const t = b << 9;
    const c2 = c ^ a;
    const d2 = d ^ b;
    s[1] = b ^ c2;
    s[0] = a ^ d2;
    s[2] = c2 ^ t;
    s[3] = (d2 << 11) | (d2 >>> 21);
    return result / 2 ** 32;
  }

  /** An independent stream; drawing from it doesn't disturb this one. */
  fork(): SeededRandom {
    return new SeededRandom(Math.floor(this.next() * 2 ** 32));
  }
}

export const systemRandom: Random = { next: () => Math.random() };
