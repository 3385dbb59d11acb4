import fc from 'fast-check';
import { expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { fuzzRuns } from '../common/testing/fuzz.js';
import {
  decodeLockQuestion,
  decodeLockReport,
  encodeLockQuestion,
  encodeLockReport,
  LOCK_REPORT_MAX,
} from './lock-report-messages.js';

test('what is asked and told about locks decodes to what was encoded', () => {
  for (const relayTo of [null, 65_535])
    expect(decodeLockQuestion(encodeLockQuestion(relayTo, 7))).toEqual({ relayTo, limit: 7 });
  const lock = { object: 2 ** 50, exclusive: true, start: 5, end: 2 ** 53 - 1, pid: 2 ** 32 - 1 };
  const locks = [
    { ...lock, kind: 'held', deny: 'none', process: true },
    { ...lock, kind: 'flockWaiting', deny: 'none', process: false },
    { ...lock, kind: 'share', deny: 'readwrite', process: false },
  ] as const;
  expect(decodeLockReport(encodeLockReport({ locks, more: true }))).toEqual({ locks, more: true });
});

test('any other bytes are refused as a bad frame, and no question asks for more than there may be', () => {
  expect(() => decodeLockQuestion(encodeLockQuestion(null, LOCK_REPORT_MAX + 1))).toThrow(FsError);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 60 }), (body) => {
      for (const decode of [decodeLockQuestion, decodeLockReport])
        try {
          decode(body);
        } catch (error) {
          expect(FsError.is(error) && error.reason).toBe('badFrame');
        }
    }),
    fuzzRuns(500),
  );
});
