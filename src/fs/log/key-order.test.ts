import { describe, expect, test } from 'vitest';
import { below, SeededRandom } from '../../common/random.js';
import { keyOrder } from './key-order.js';

describe('the order of keys', () => {
  test.each([0, 1, 100, 5000])('of %i of them is by key, and of equal ones by place', (count) => {
    const random = new SeededRandom(count + 1);
    for (const keys of [
      Float64Array.from({ length: count }, () => below(random, 50)),
      Float64Array.from({ length: count }, () => 2 ** 40 + below(random, 300)),
      Float64Array.from({ length: count }, () => below(random, 2 ** 21) * 2 ** 32 + below(random, 2 ** 31) * 2),
    ]) {
      const expected = Array.from(keys, (_, i) => i).sort((a, b) => keys[a]! - keys[b]! || a - b);
      expect([...keyOrder(keys)]).toEqual(expected);
    }
  });
});
