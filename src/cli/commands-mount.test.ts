import { expect, test } from 'vitest';
import { parseMountOptions } from './commands-mount.js';

test('mount options are those of mount(8)', () => {
  expect(parseMountOptions([])).toMatchObject({ readOnly: false, noSuid: true, noDevices: true, noExecute: false });
  expect(parseMountOptions(['ro,noexec', 'suid'])).toMatchObject({ readOnly: true, noExecute: true, noSuid: false });
  expect(parseMountOptions(['ro', 'ro'])).toMatchObject({ readOnly: true });
});

test('mount options that contradict each other, or do not exist, are refused by name', () => {
  expect(() => parseMountOptions(['ro', 'noexec,rw'])).toThrow("'ro' and 'rw' contradict each other");
  expect(() => parseMountOptions(['quick'])).toThrow("no mount option 'quick'");
});
