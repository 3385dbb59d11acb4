import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import {
  allocateMemory,
  Device,
  EventChannel,
  listDevices,
  liveObjects,
  RdmaError,
  rdmaSupport,
} from '../lib/index.js';
import { native, nativeCall } from '../lib/native.js';

const folder = fileURLToPath(new URL('..', import.meta.url));
const support = rdmaSupport();

describe('a machine without RDMA', () => {
  it.runIf(!support.usable)('gets one clear error that names what is missing, and no crash', () => {
    expect(support).toMatchObject({ usable: false });
    const error = (support as { error: RdmaError }).error;
    expect(error).toBeInstanceOf(RdmaError);
    expect(error.message).toMatch(/RDMA can't be used here: /);
    expect(['addon', 'library', 'module', 'device']).toContain(error.missing);
    for (const use of [() => listDevices(), () => Device.open('rxe0'), () => new EventChannel()])
      expect(use).toThrow(RdmaError);
  });

  it('says when the addon is not built, or not where it belongs', () => {
    const elsewhere = mkdtempSync(path.join(folder, 'node_modules-less-'));
    try {
      cpSync(path.join(folder, 'dist'), path.join(elsewhere, 'dist'), { recursive: true });
      const result = spawnSync(
        process.execPath,
        [
          '--input-type=module',
          '-e',
          `import { rdmaSupport } from ${JSON.stringify(path.join(elsewhere, 'dist/index.js'))};
           const { usable, error } = rdmaSupport();
           console.log(JSON.stringify({ usable, missing: error.missing, message: error.message }));`,
        ],
        { encoding: 'utf8', env: { ...process.env, LD_PRELOAD: '' } },
      );
      const said = JSON.parse(result.stdout) as Record<string, unknown>;
      expect(said).toMatchObject({ usable: false, missing: 'addon' });
      expect(said['message']).toMatch(/install librdmacm-dev and libibverbs-dev, then run `npm rebuild node-rdma-cm`/);
    } finally {
      rmSync(elsewhere, { recursive: true });
    }
  });
});

describe.runIf(support.usable || support.error.missing !== 'addon')('the addon', () => {
  it('names every status, operation and event of the verbs, each once', () => {
    const { abi } = native();
    expect(abi.statusNames).toHaveLength(24);
    expect(abi.statusNames[0]).toBe('success');
    expect(abi.statusNames[5]).toBe('flushed');
    expect(abi.statusNames[10]).toBe('remoteAccessError');
    expect(abi.statusNames[13]).toBe('receiverNotReadyRetryExceeded');
    expect(abi.cmEventNames).toHaveLength(16);
    expect(abi.asyncEventNames).toHaveLength(20);
    for (const names of [abi.statusNames, abi.cmEventNames, abi.asyncEventNames, abi.operationNames])
      expect(new Set(names).size).toBe(names.length);
    for (const [name, number] of Object.entries(abi.operations)) expect(abi.operationNames[number]).toBe(name);
  });

  it('lays records out without overlaps, aligned', () => {
    const { abi } = native();
    for (const record of [abi.request, abi.receive, abi.segment, abi.completion]) expect(record.bytes % 8).toBe(0);
    for (const at of [
      abi.request.id,
      abi.request.remoteAddress,
      abi.request.compareAdd,
      abi.request.swap,
      abi.request.bindOffset,
      abi.request.bindLength,
    ])
      expect(at % 8).toBe(0);
    expect(new Set(Object.values(abi.request)).size).toBe(Object.keys(abi.request).length);
  });

  it('knows how children are kept from registered memory', () => {
    expect(['kernel', 'library', 'no']).toContain(native().forkSafety);
  });

  it('allocates memory at a page’s boundary, zeroed, and says when it can’t', () => {
    const memory = allocateMemory(12_345);
    expect(memory.byteLength).toBe(12_345);
    expect(new Uint8Array(memory).every((byte) => byte === 0)).toBe(true);
    for (const wrong of [0, -1, 1.5, Number.NaN]) expect(() => allocateMemory(wrong)).toThrow(RangeError);
    expect(() => allocateMemory(2 ** 52)).toThrow(/ENOMEM/);
  });

  it('refuses wrong arguments', () => {
    const addon = native();
    expect(() => Device.open('')).toThrow(TypeError);
    expect(() => Device.open(7 as unknown as string)).toThrow(TypeError);
    expect(() => addon.openDevice('none', undefined as unknown as () => void)).toThrow(TypeError);
    expect(() => addon.openDevice(1 as unknown as string, () => {})).toThrow(TypeError);
    expect(() => addon.createEventChannel(1 as unknown as () => void)).toThrow(TypeError);
    expect(() => nativeCall('device none', () => addon.openDevice('none', () => {}))).toThrow(RdmaError);
  });

  it('loads in workers, and ends with them', async () => {
    const program = `import { liveObjects, rdmaSupport } from ${JSON.stringify(new URL('../dist/index.js', import.meta.url).href)};
      import { parentPort } from 'node:worker_threads';
      rdmaSupport();
      parentPort.postMessage(liveObjects().devices);`;
    for (let round = 0; round < 3; round++) {
      const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(program)}`));
      const [devices, code] = await Promise.all([
        new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject)),
        new Promise((resolve) => worker.once('exit', resolve)),
      ]);
      expect([devices, code]).toEqual([0, 0]);
    }
    expect(Object.values(liveObjects()).every((count) => count === 0)).toBe(true);
  });
});

describe('an error', () => {
  it('carries code, operation, object and cause', () => {
    const cause = new Error('below');
    const error = new RdmaError('EIO', 'write', 'remoteAccessError', {
      object: 'queue pair 17',
      workStatus: 'remoteAccessError',
      cause,
    });
    expect(error.message).toBe('EIO: remoteAccessError, write of queue pair 17');
    expect(error).toMatchObject({
      code: 'EIO',
      operation: 'write',
      object: 'queue pair 17',
      workStatus: 'remoteAccessError',
      missing: null,
      cause,
    });
  });

  it('of the addon becomes one; wrong arguments stay what they are', () => {
    const thrown = Object.assign(new Error('no'), { code: 'ENOMEM', syscall: 'ibv_reg_mr', postedCount: 3 });
    const call = (error: Error) => (): never =>
      nativeCall('8 bytes', () => {
        throw error;
      });
    expect(call(thrown)).toThrow(RdmaError);
    expect(call(thrown)).toThrow('ENOMEM: no, ibv_reg_mr of 8 bytes');
    expect(call(new TypeError('x'))).toThrow(TypeError);
    expect(call(new Error('else'))).toThrow('else');
  });
});
