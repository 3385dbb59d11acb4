import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';

const read = (file: string): string => readFileSync(new URL(`../../${file}`, import.meta.url), 'utf8');

test('every test that docs/bad-input.md names is there', () => {
  const rows = read('docs/bad-input.md')
    .split('\n')
    .map((line) => /\| `((?:src|hw-test|native)\/[^`]+\.test\.ts)` \| (.+) \|$/.exec(line))
    .filter((row) => row !== null);
  expect(rows.length).toBeGreaterThan(20);
  for (const [, file, name] of rows) expect(`${file}: ${read(file!).includes(name!)}: ${name}`).toContain(': true: ');
});
