import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { modeText } from './commands-files.js';

test.each([
  [constants.S_IFREG | 0o644, '-rw-r--r--'],
  [constants.S_IFDIR | 0o1777, 'drwxrwxrwt'],
  [constants.S_IFDIR | 0o1770, 'drwxrwx--T'],
  [constants.S_IFREG | 0o6755, '-rwsr-sr-x'],
  [constants.S_IFREG | 0o6644, '-rwSr-Sr--'],
  [constants.S_IFLNK | 0o777, 'lrwxrwxrwx'],
  [constants.S_IFIFO | 0o600, 'prw-------'],
  [constants.S_IFSOCK | 0o755, 'srwxr-xr-x'],
  [constants.S_IFCHR | 0o620, 'crw--w----'],
  [constants.S_IFBLK | 0o660, 'brw-rw----'],
])('a mode of %i is shown as ls shows it', (mode, text) => {
  expect(modeText({ mode })).toBe(text);
});
