import Table from 'cli-table3';
import { FsError } from '../common/errors.js';

/**
 * What commands print: tables for people and JSON for programs on stdout, everything else (progress, errors) on stderr; and
 * the exit codes.
 */
export const Exit = { ok: 0, failed: 1, usage: 2, unreachable: 3 } as const;

/** Wrong arguments, beyond what the parser sees. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

export const print = (text: string): void => {
  process.stdout.write(text.endsWith('\n') ? text : `${text}\n`);
};
export const note = (text: string): void => {
  process.stderr.write(`${text}\n`);
};
export const printJson = (value: unknown): void => print(JSON.stringify(value, null, process.stdout.isTTY ? 2 : 0));

type Cell = string | number | null;
const NO_FRAME = Object.fromEntries(
  ['top', 'top-mid', 'top-left', 'top-right', 'bottom', 'bottom-mid', 'bottom-left', 'bottom-right', 'left']
    .concat(['left-mid', 'mid', 'mid-mid', 'right', 'right-mid', 'middle'])
    .map((part) => [part, '']),
);

/** Columns with a name and a side; no frame, so that it can be cut with awk. */
export function table(
  columns: readonly (string | { name: string; align: 'right' })[],
  rows: readonly (readonly Cell[])[],
): string {
  const built = new Table({
    head: columns.map((column) => (typeof column === 'string' ? column : column.name)),
    colAligns: columns.map((column) => (typeof column === 'string' ? 'left' : column.align)),
    chars: { ...NO_FRAME, middle: '  ' },
    style: { 'padding-left': 0, 'padding-right': 0, head: [], border: [], compact: true },
  });
  for (const row of rows) built.push(row.map((cell) => (cell === null ? '-' : String(cell))));
  return built
    .toString()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n');
}

/** A table of names and values. */
export const facts = (rows: readonly (readonly [string, Cell])[]): string => {
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, value]) => `${name.padEnd(width)}  ${value === null ? '-' : value}`).join('\n');
};

export function bytesText(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}
export const countText = (count: number): string => Math.round(count).toLocaleString('en-US');
export const durationText = (ms: number): string => {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 60) return `${s.toFixed(1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`;
};

const codeOf = (error: unknown): string =>
  typeof error === 'object' && error !== null && 'code' in error ? String(error.code) : '';

/** The same for programs, which asked for JSON. */
export function errorJson(error: unknown): { error: Record<string, string> } {
  const from = FsError.is(error) ? { reason: error.reason, op: error.op } : {};
  const code = codeOf(error) || codeOf(error instanceof Error ? error.cause : undefined);
  return { error: { ...(code === '' ? {} : { code }), ...from, message: sentence(error) } };
}

/** One sentence for people, without stack. */
export function sentence(error: unknown): string {
  const text = plain(error);
  // As the socket says it.
  return /^connect E(NOENT|CONNREFUSED|ACCES) /.test(text) ? `no daemon answers: ${text}` : text;
}

function plain(error: unknown): string {
  if (FsError.is(error) && error.detail !== undefined && error.reason !== 'remoteFailure') {
    const object = error.object === undefined || error.detail.includes(error.object) ? '' : ` (${error.object})`;
    return `${error.detail}${object}`;
  }
  const text = error instanceof Error ? error.message : String(error);
  return text.split('\n')[0]!;
}
