import fc from 'fast-check';
import { expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { nodeId } from '../common/ids.js';
import { fuzzRuns } from '../common/testing/fuzz.js';
import { decodeSettle, decodeSettleReply, encodeSettle, encodeSettleReply } from './space-messages.js';

test('what is asked and answered about freed space decodes to what was encoded', () => {
  const request = { fsUuid: '6f1d2c3b-0a19-4857-8e6d-5c4b3a291807', what: 2, relayTo: null, timeoutMs: 2000 } as const;
  expect(decodeSettle(encodeSettle(request))).toEqual(request);
  const relayed = { ...request, what: 1, relayTo: nodeId(65_535) } as const;
  expect(decodeSettle(encodeSettle(relayed))).toEqual(relayed);
  const reply = { mounted: true, freedSubBlocks: 2 ** 40 + 1, unusedNumbers: 256 };
  expect(decodeSettleReply(encodeSettleReply(reply))).toEqual(reply);
});

test('any other bytes are refused as a bad frame, and nothing else happens', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 40 }), (body) => {
      for (const decode of [decodeSettle, decodeSettleReply]) {
        try {
          decode(body);
        } catch (error) {
          expect(FsError.is(error) && error.reason).toBe('badFrame');
        }
      }
    }),
    fuzzRuns(500),
  );
});
