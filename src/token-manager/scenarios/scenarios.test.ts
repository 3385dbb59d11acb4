import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Player } from './play.js';

const FOLDER = new URL('.', import.meta.url);
const files = readdirSync(FOLDER).filter((name) => name.endsWith('.scenario'));

/** Comments and commands as they are; below each command what it makes happen, indented. */
function replay(text: string): string {
  const player = new Player();
  const lines: string[] = [];
  for (const line of text.split('\n')) {
    if (line.startsWith('    ')) continue;
    lines.push(line);
    if (line === '' || line.startsWith('#')) continue;
    for (const happened of player.play(line)) lines.push(`    ${happened}`);
  }
  return lines.join('\n');
}

describe('scenarios', () => {
  // UPDATE_SCENARIOS=1 writes the traces anew; read the difference before committing it.
  for (const name of files) {
    const text = readFileSync(new URL(name, FOLDER), 'utf8');
    it(text.split('\n')[0]!.slice(2), () => {
      const played = replay(text);
      if (process.env['UPDATE_SCENARIOS'] === '1') writeFileSync(new URL(name, FOLDER), played);
      else expect(played).toBe(text);
    });
  }
});
