/** One namespace by two names: neither in one configuration, nor opened by two at a time. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { BlockEngine } from 'napi-nvme';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import { attach, LoopDevice } from '../../hw-test/nvme-targets.js';
import { loadConfig } from './config.js';

const namespaces = (process.env['HOLDFAST_HW_NVME'] ?? '').split(',').filter((name) => name !== '');
const genericOf = (name: string): string => name.replace(/nvme(\d+n\d+)$/, 'ng$1');
const directory = mkdtempSync(path.join(tmpdir(), 'same-storage-'));
const engines: BlockEngine[] = [];
afterAll(() => rmSync(directory, { recursive: true, force: true }));
afterEach(async () => {
  for (const engine of engines.splice(0)) await engine.close();
});

function engine(): BlockEngine {
  const made = new BlockEngine({ queueDepth: 8 });
  engines.push(made);
  return made;
}

function load(first: string, second: string): ReturnType<typeof loadConfig> {
  const file = path.join(directory, 'node.yaml');
  writeFileSync(path.join(directory, 'cluster.key'), 'x'.repeat(32));
  writeFileSync(
    file,
    `clusterName: dev
nodeId: 1
name: node-1
listen: { host: 127.0.0.1 }
etcd: [http://127.0.0.1:2379]
clusterKeyFile: cluster.key
socket: node-1.sock
nsds:
  - { name: a, path: ${first} }
  - { name: b, path: ${second} }
`,
  );
  return loadConfig(file);
}

describe('a namespace', () => {
  const path1 = namespaces[0]!;

  test('by both of its names is one storage to a configuration', () => {
    expect(() => load(path1, genericOf(path1))).toThrow(/nsds\[1\]\.path: is the same storage as nsds\[0\]/);
    expect(() => load(genericOf(path1), path1)).toThrow(/is the same storage/);
    if (namespaces[1] !== undefined) expect(load(path1, genericOf(namespaces[1])).nsds).toHaveLength(2);
  });

  test('that is opened with the lock is busy for another by any of its names, however either works with it', async () => {
    const wishes = [
      [path1, 'auto'],
      [genericOf(path1), 'passthrough'],
      [path1, 'block'],
    ] as const;
    for (const [name, access] of wishes) {
      const held = await engine().open(name, { access, lock: true });
      for (const [other, otherAccess] of wishes)
        await expect(engine().open(other, { access: otherAccess, lock: true })).rejects.toMatchObject({
          code: 'EBUSY',
          pid: process.pid,
        });
      await held.close();
    }
    await engine().open(path1, { lock: true });
    // Who doesn't want the lock isn't kept out.
    await engine().open(genericOf(path1), { readOnly: true });
  });
});

test('a namespace attached over fabrics is one storage by both of its names, and so are a loop device and its file', async () => {
  const device = new LoopDevice(16 << 20);
  const attached = await attach('tcp', device.path);
  try {
    const { blockPath, genericPath } = attached.namespace;
    expect(() => load(blockPath, genericPath!)).toThrow(/is the same storage/);
    expect(() => load(device.file, device.path)).toThrow(/is the same storage/);
    await engine().open(blockPath, { lock: true });
    await expect(engine().open(genericPath!, { lock: true })).rejects.toMatchObject({ code: 'EBUSY' });
  } finally {
    for (const made of engines.splice(0)) await made.close();
    await attached.detach();
    device.close();
  }
});
