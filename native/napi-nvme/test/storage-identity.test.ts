import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { deviceKeys, namespaceFiles, storageKeys } from '../lib/storage-identity.js';

let root: string;
beforeEach(() => {
  root = fs.mkdtempSync(path.join(os.tmpdir(), 'napi-nvme-sys-'));
});
afterEach(() => fs.rmSync(root, { recursive: true, force: true }));

function write(file: string, text: string): void {
  fs.mkdirSync(path.dirname(path.join(root, file)), { recursive: true });
  fs.writeFileSync(path.join(root, file), `${text}\n`);
}
function link(from: string, to: string): void {
  fs.mkdirSync(path.dirname(path.join(root, from)), { recursive: true });
  fs.symlinkSync(path.join(root, to), path.join(root, from));
}
/** A namespace as sysfs shows it, with one partition. */
function namespace(number: string, minor: number, wwid: string): void {
  const block = `class/block/nvme${number}`;
  write(`${block}/dev`, `259:${minor}`);
  write(`${block}/wwid`, wwid);
  write(`${block}/nvme${number}p1/partition`, '1');
  write(`${block}/nvme${number}p1/dev`, `259:${minor + 1}`);
  link(`dev/block/259:${minor}`, block);
  link(`dev/block/259:${minor + 1}`, `${block}/nvme${number}p1`);
  write(`class/nvme-generic/ng${number}/dev`, `240:${minor}`);
  link(`dev/char/240:${minor}`, `class/nvme-generic/ng${number}`);
}
const overlap = (a: readonly string[], b: readonly string[]): boolean => a.some((key) => b.includes(key));

describe('one storage', () => {
  it('is a namespace by its block device, its character device, and over another path; its partitions overlap it alone', () => {
    const roots = { sys: root, dev: '/dev' };
    namespace('0n1', 0, 'uuid.1');
    namespace('1n1', 10, 'uuid.1');
    namespace('2n1', 20, 'uuid.2');
    // Made up by the kernel of what the device says about itself: two such may be two.
    namespace('3n1', 30, 'nvme.1b36-61-62-00000001');
    namespace('4n1', 40, 'nvme.1b36-61-62-00000001');
    const block = (numbers: string) => deviceKeys('block', numbers, roots);
    const character = (numbers: string) => deviceKeys('char', numbers, roots);
    expect(overlap(block('259:0'), character('240:0'))).toBe(true);
    expect(overlap(block('259:0'), character('240:10'))).toBe(true);
    expect(overlap(character('240:0'), block('259:1'))).toBe(true);
    expect(overlap(block('259:0'), block('259:1'))).toBe(true);
    expect(overlap(block('259:1'), block('259:11'))).toBe(false);
    expect(overlap(block('259:0'), block('259:20'))).toBe(false);
    expect(overlap(character('240:30'), character('240:40'))).toBe(false);
    expect(overlap(character('240:30'), block('259:30'))).toBe(true);
    expect(character('1:3')).toEqual([]);
    expect(block('8:0')).toEqual(['block 8:0']);
  });

  it('is a loop device and its file', () => {
    const file = path.join(root, 'backing');
    fs.writeFileSync(file, '');
    write('devices/loop0/loop/backing_file', file);
    link('dev/block/7:0', 'devices/loop0');
    expect(overlap(deviceKeys('block', '7:0', { sys: root, dev: '/dev' }), storageKeys(file))).toBe(true);
  });

  it('is nothing where a path leads nowhere, and itself where it is a file', () => {
    expect(storageKeys(path.join(root, 'none'))).toEqual([]);
    expect(storageKeys('/dev/null')).toHaveLength(1);
    expect(namespaceFiles('/dev/null')).toEqual([]);
    expect(namespaceFiles(path.join(root, 'none'))).toEqual([]);
    expect(namespaceFiles(root)).toEqual([]);
  });
});
