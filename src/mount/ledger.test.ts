import { describe, expect, it } from 'vitest';
import { FUSE_SESSION_DEFAULTS, FuseSession } from './fuse-session.js';
import { Ledger } from './ledger.js';
import { closeDescriptor, openFuseDevice, parseMountInfo } from './mount-point.js';
import { MemoryFileSystem } from './testing/memory-file-system.js';
import { canMount } from './testing/mounted.js';

const settings = { ...FUSE_SESSION_DEFAULTS, smallSlots: 4, largeSlots: 1, nodesMax: 64, handlesMax: 4 };

/** A session over a device that nothing is mounted on: its ledger and its nodes work all the same. */
describe.skipIf(!canMount())('the ledger of a mount', () => {
  async function withSession(body: (open: () => { session: FuseSession; ledger: Ledger }) => void): Promise<void> {
    const device = openFuseDevice();
    const descriptor = FuseSession.createLedger(settings);
    const sessions: FuseSession[] = [];
    try {
      body(() => {
        const session = new FuseSession([device], descriptor, new ArrayBuffer(4096), settings, new MemoryFileSystem());
        sessions.push(session);
        return { session, ledger: new Ledger(session.ledgerMemory()) };
      });
    } finally {
      for (const session of sessions) await session.close();
      closeDescriptor(device);
      closeDescriptor(descriptor);
    }
  }
  const file = { node: 2 ** 33 + 7, kind: 'file', flags: 0x8002, uid: 1000, gid: 100 } as const;

  it('keeps handles for whoever comes next; a closed one is never another', () =>
    withSession((open) => {
      const { ledger } = open();
      const first = ledger.openHandle(file)!;
      const second = ledger.openHandle({ ...file, kind: 'directory', node: 9 })!;
      expect(ledger.handle(first)).toEqual({ ...file, handle: first });
      expect(ledger.closeHandle(first)).toBe(true);
      expect(ledger.closeHandle(first)).toBe(false);
      const third = ledger.openHandle(file)!;
      expect(third).not.toBe(first);
      expect(ledger.handle(first)).toBe(null);

      const later = open().ledger;
      expect([...later.handles()].map(({ handle }) => handle).sort((a, b) => a - b)).toEqual(
        [second, third].sort((a, b) => a - b),
      );
      expect(later.handle(second)).toMatchObject({ kind: 'directory', node: 9 });
      expect(later.openHandle(file)).not.toBe(null);
      expect(later.openHandle(file)).toBe(null); // its places are 1 to 3
    }));

  it('keeps nodes with what the kernel knows of them; an id that was given up is never live again', () =>
    withSession((open) => {
      const { session, ledger } = open();
      session.setRoot(128, 1);
      const a = session.addNode(2 ** 40 + 1, 3);
      const b = session.addNode(77, 0);
      session.lookedUp(a, 5);
      expect([...ledger.nodes()]).toEqual([
        { node: 1, inode: 128, generation: 1, lookups: 0 },
        { node: a, inode: 2 ** 40 + 1, generation: 3, lookups: 5 },
        { node: b, inode: 77, generation: 0, lookups: 0 },
      ]);
      expect(session.removeNode(a)).toBe(false);
      expect(session.removeNode(b)).toBe(true);

      const later = open();
      expect([...later.ledger.nodes()].map(({ node }) => node)).toEqual([1, a]);
      const again = Array.from({ length: 62 - 1 }, () => later.session.addNode(5, 0));
      expect(new Set(again).size).toBe(61);
      expect(again).not.toContain(b);
      expect(() => later.session.addNode(5, 0)).toThrow(/EMFILE/);
    }));

  it('is refused when it is something else', () => {
    const device = openFuseDevice();
    expect(() => new FuseSession([device], device, new ArrayBuffer(4096), settings, new MemoryFileSystem())).toThrow(
      /ledger/,
    );
    closeDescriptor(device);
  });
});

describe('the table of mounts', () => {
  it('gives the connection, and targets with what was escaped in them', () => {
    expect(
      parseMountInfo('36 35 0:42 / /mnt/a\\040b rw,noatime shared:1 - fuse.holdfast hf\\0401 rw,user_id=0\nnonsense\n'),
    ).toEqual([{ connection: 42, target: '/mnt/a b', type: 'fuse.holdfast', source: 'hf 1' }]);
  });
});
