import { expect, test } from 'vitest';
import { fileSystemNumber, nodeId, nsdIndex } from '../common/ids.js';
import { below, SeededRandom } from '../common/random.js';
import {
  decodeHoldersQuestion,
  decodeHoldersReply,
  decodeRegionQuestion,
  decodeRegionReply,
  decodeShipment,
  decodeShipmentReply,
  encodeHoldersQuestion,
  encodeHoldersReply,
  encodeRegionQuestion,
  encodeRegionReply,
  encodeShipment,
  encodeShipmentReply,
  type RegionReply,
} from './region-messages.js';

const question = {
  fileSystem: fileSystemNumber(3),
  regionCount: 900,
  regionBytes: 8192,
  count: 256,
  first: 17,
  tried: [1, 899],
  reports: [
    { region: 4, free: { subBlocks: 70_000, inRow: 256 } },
    { region: 5, free: null },
  ],
};
const shipment = {
  fsUuid: '6f1d2c3b-0a19-4857-8e6d-5c4b3a291807',
  fileSystem: fileSystemNumber(0),
  relayTo: nodeId(7),
  timeoutMs: 2000,
  shipment: {
    region: 9,
    slot: 255,
    sequence: 2 ** 40 + 5,
    extents: [{ nsd: nsdIndex(1), sector: 2 ** 33, count: 256 }],
  },
};
const replies: RegionReply[] = [
  { kind: 'unknown' },
  { kind: 'none' },
  { kind: 'full' },
  { kind: 'free', region: 5 },
  { kind: 'held', region: 6, holder: nodeId(2) },
];

test('what is said about regions comes back as it was', () => {
  expect(decodeRegionQuestion(encodeRegionQuestion(question))).toEqual(question);
  for (const reply of replies) expect(decodeRegionReply(encodeRegionReply(reply))).toEqual(reply);
  const holders = { fileSystem: fileSystemNumber(1), regionBytes: 4096, regions: [0, 5, 77] };
  expect(decodeHoldersQuestion(encodeHoldersQuestion(holders))).toEqual(holders);
  for (const reply of [null, [], [nodeId(3), null]])
    expect(decodeHoldersReply(encodeHoldersReply(reply))).toEqual(reply);
  for (const relayTo of [null, nodeId(7)])
    expect(decodeShipment(encodeShipment({ ...shipment, relayTo }))).toEqual({ ...shipment, relayTo });
  for (const applied of [true, false]) expect(decodeShipmentReply(encodeShipmentReply(applied))).toBe(applied);
});

test('bytes that are none of these are refused as badFrame, whatever they are', () => {
  const random = new SeededRandom(3);
  const bodies: [Uint8Array, (body: Uint8Array) => unknown][] = [
    [encodeRegionQuestion(question), decodeRegionQuestion],
    [encodeRegionReply(replies[4]!), decodeRegionReply],
    [encodeHoldersQuestion({ ...question, regions: [1, 2] }), decodeHoldersQuestion],
    [encodeHoldersReply([nodeId(1), null]), decodeHoldersReply],
    [encodeShipment(shipment), decodeShipment],
    [encodeShipmentReply(true), decodeShipmentReply],
  ];
  for (const [whole, decode] of bodies) {
    for (let length = 0; length < whole.length; length++)
      expect(() => decode(whole.slice(0, length))).toThrowError(expect.objectContaining({ reason: 'badFrame' }));
    for (let i = 0; i < 500; i++) {
      const bytes = whole.slice();
      for (let n = 1 + below(random, 3); n > 0; n--) bytes[below(random, bytes.length)] = below(random, 256);
      try {
        decode(bytes);
      } catch (error) {
        expect(error).toMatchObject({ reason: 'badFrame' });
      }
    }
  }
});
