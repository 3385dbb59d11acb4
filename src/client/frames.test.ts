import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FsError } from '../common/errors.js';
import { fuzzRuns } from '../common/testing/fuzz.js';
import { encodeFrame, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameDecoder, FrameKind } from './frames.js';

const wire = (payload = Buffer.from('payload')): Buffer =>
  Buffer.concat([
    encodeFrame({ kind: FrameKind.call, id: 2 ** 40, ack: 7, op: 4, json: { handle: 1 }, payload }),
    payload,
  ]);

const reasonOf = (bytes: Buffer): string => {
  try {
    new FrameDecoder().push(bytes);
    return 'none';
  } catch (error) {
    return FsError.is(error) ? error.reason : `not an FsError: ${String(error)}`;
  }
};

describe('frames of the client protocol', () => {
  it('come out as they went in, however the stream is cut', () => {
    const bytes = Buffer.concat([wire(), wire(Buffer.alloc(0)), wire(Buffer.alloc(100_000, 7))]);
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1 }), (cuts) => {
        const decoder = new FrameDecoder();
        const frames = [];
        for (let at = 0, i = 0; at < bytes.length; at += cuts[i++ % cuts.length]!)
          frames.push(...decoder.push(bytes.subarray(at, at + cuts[i % cuts.length]!)));
        expect(frames.map((f) => f.payload.length)).toEqual([7, 0, 100_000]);
        expect(frames[0]).toMatchObject({ kind: FrameKind.call, id: 2 ** 40, ack: 7, op: 4, json: { handle: 1 } });
        expect(decoder.inFrame).toBe(false);
      }),
      { numRuns: 30 },
    );
  });

  it('are refused for every single bit that is flipped', () => {
    const good = wire();
    for (let bit = 0; bit < good.length * 8; bit++) {
      const bad = Buffer.from(good);
      bad[bit >> 3]! ^= 1 << (bit & 7);
      expect(reasonOf(bad), `bit ${bit}`).toMatch(/^bad(Frame|Checksum)$/);
    }
  });

  it('are refused when they claim to be larger than the limit, before anything is allocated', () => {
    const huge = encodeFrame({ kind: FrameKind.call, id: 1 });
    huge.writeUInt32LE(FRAME_BYTES_MAX + 1, 0);
    expect(reasonOf(huge)).toBe('badChecksum');
    expect(() => encodeFrame({ kind: FrameKind.call, id: 1, payload: new Uint8Array(FRAME_BYTES_MAX) })).toThrow(
      /the limit is/,
    );
  });

  it('wait for the rest when they are cut short', () => {
    const good = wire();
    for (let length = 1; length < good.length; length += 3) {
      const decoder = new FrameDecoder();
      expect(decoder.push(good.subarray(0, length))).toEqual([]);
      expect(decoder.inFrame).toBe(true);
    }
  });

  it('never make the decoder fail in any other way than with an FsError', () => {
    const header = wire().subarray(0, FRAME_HEADER_BYTES);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), fc.boolean(), (noise, behindHeader) => {
        const bytes = behindHeader ? Buffer.concat([header, noise]) : Buffer.from(noise);
        expect(reasonOf(bytes)).not.toMatch(/not an FsError/);
      }),
      fuzzRuns(500),
    );
  });
});
