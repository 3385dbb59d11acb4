import type { Logger } from '../common/logger.js';

/**
 * What happened in a world, as lines of text: a number that sums up all of them (two runs of one seed must agree on it), and the last
 * ones, for whoever has to understand a failure.
 */
export interface TraceLine {
  readonly atMs: number;
  /** 0: the world itself. */
  readonly node: number;
  /** Inode that it is about; 0: none in particular. */
  readonly ino: number;
  readonly text: string;
}

const KEPT_DEFAULT = 20_000;

export class Trace {
  #hash = 0x811c9dc5;
  #count = 0;
  readonly #lines: TraceLine[] = [];

  constructor(
    private readonly nowMs: () => number,
    private readonly keptMax: number = KEPT_DEFAULT,
  ) {}

  add(node: number, ino: number, text: string): void {
    const line = { atMs: this.nowMs(), node, ino, text };
    this.#count++;
    let hash = Math.imul(this.#hash ^ Math.round(line.atMs * 1000), 0x01000193);
    hash = Math.imul(hash ^ (node * 65_537 + ino), 0x01000193);
    for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
    this.#hash = hash;
    this.#lines.push(line);
    if (this.#lines.length > 2 * this.keptMax) this.#lines.splice(0, this.#lines.length - this.keptMax);
  }

  /** FNV-1a over all lines there ever were, and their number. */
  get digest(): string {
    return `${(this.#hash >>> 0).toString(16).padStart(8, '0')}-${this.#count}`;
  }

  get lines(): readonly TraceLine[] {
    return this.#lines;
  }

  /** The last lines about an inode, with what concerns nobody in particular among them. */
  last(count: number, ino: number): string[] {
    const concerned = this.#lines.filter((line) => ino === 0 || line.ino === ino || line.ino === 0);
    return concerned.slice(-count).map(textOf);
  }

  /** The nodes' loggers: warnings are part of the story, and errors are handed on. */
  logger(node: () => number, onError: (message: string, fields: object) => void): Logger {
    const tell = (level: string) => (fields: object, message: string) =>
      this.add(node(), inoOf(fields), `${level}: ${message} ${briefly(fields)}`);
    return {
      debug: () => undefined,
      info: tell('info'),
      warn: tell('warn'),
      error: (fields, message) => {
        tell('error')(fields, message);
        onError(message, fields);
      },
    };
  }
}

const inoOf = (fields: object): number => ('ino' in fields && typeof fields.ino === 'number' ? fields.ino : 0);

function briefly(fields: object): string {
  return Object.entries(fields)
    .filter(([name]) => name !== 'ino')
    .map(([name, value]) => `${name}=${value instanceof Error ? value.message : (JSON.stringify(value) ?? '')}`)
    .join(' ')
    .slice(0, 300);
}

export function textOf({ atMs, node, ino, text }: TraceLine): string {
  const who = node === 0 ? 'world ' : `node ${node}`;
  return `${atMs.toFixed(3).padStart(11)} ms  ${who}  ${ino === 0 ? '      ' : `i${ino}`.padEnd(6)} ${text}`;
}
