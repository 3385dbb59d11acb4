import { readFileSync, realpathSync, statSync } from 'node:fs';
import path from 'node:path';
import { storageKeys } from 'napi-nvme';
import { isMap, isNode, isPair, isScalar, LineCounter, type ParsedNode, parseDocument } from 'yaml';
import type { z } from 'zod';
import { FsError } from '../common/errors.js';
import { configSchema, type DaemonConfig } from './config-schema.js';

/**
 * Reads a daemon's configuration. Owns the way from a file to checked values with absolute paths.
 *
 * Invariant: a configuration that is returned can be started as far as this machine tells; one that can't is refused with one
 * sentence that names file, line and key. Fault model: the file may hold anything.
 */
/** In the environment, set to 1: settings that lose data on purpose are allowed. */
const TEST_FAULTS = 'HOLDFAST_TEST_FAULTS';

type KeyPath = readonly (string | number)[];

class Located {
  readonly #lines = new LineCounter();
  readonly document;

  constructor(
    readonly file: string,
    text: string,
  ) {
    this.document = parseDocument(text, { lineCounter: this.#lines, prettyErrors: false, uniqueKeys: true });
    const broken = this.document.errors[0];
    if (broken !== undefined) {
      const { line } = this.#lines.linePos(broken.pos[0]);
      throw this.#error(
        line,
        null,
        broken.code === 'DUPLICATE_KEY' ? 'a key is there twice' : firstLine(broken.message),
      );
    }
  }

  error(keyPath: KeyPath, what: string): FsError {
    return this.#error(this.#line(keyPath), keyText(keyPath), what);
  }

  /** The line of the key, or of the nearest thing around it that is there. */
  #line(keyPath: KeyPath): number {
    for (let length = keyPath.length; length > 0; length--) {
      const parent = length === 1 ? this.document.contents : this.document.getIn(keyPath.slice(0, length - 1), true);
      const key = keyPath[length - 1];
      const pair = isMap(parent)
        ? parent.items.find((item) => isPair(item) && isScalar(item.key) && item.key.value === key)
        : undefined;
      const found: unknown = pair === undefined ? this.document.getIn(keyPath.slice(0, length), true) : pair.key;
      if (isNode(found) && found.range != null) return this.#lines.linePos(found.range[0]).line;
    }
    const whole = this.document.contents as ParsedNode | null;
    return whole?.range == null ? 1 : this.#lines.linePos(whole.range[0]).line;
  }

  #error(line: number, key: string | null, what: string): FsError {
    const place = `${this.file}:${line}`;
    const detail = key === null ? what : `${key}: ${what}`;
    return new FsError('badConfiguration', { op: 'configuration', object: place, detail });
  }
}

const keyText = (keyPath: KeyPath): string =>
  keyPath.map((key, i) => (typeof key === 'number' ? `[${key}]` : i === 0 ? key : `.${key}`)).join('');
const firstLine = (text: string): string => text.split('\n')[0]!;

/** @throws {FsError} badConfiguration. */
export function loadConfig(file: string): DaemonConfig {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    const detail = `can't be read: ${error instanceof Error ? error.message : String(error)}`;
    throw new FsError('badConfiguration', { op: 'configuration', object: file, detail, cause: error });
  }
  const located = new Located(file, text);
  const result = configSchema.safeParse(located.document.toJS() ?? {});
  if (!result.success) throw issueError(located, result.error.issues[0]!);
  return resolved(result.data, located, path.dirname(path.resolve(file)));
}

function issueError(located: Located, issue: z.core.$ZodIssue): FsError {
  const keyPath = issue.path.filter((key): key is string | number => typeof key !== 'symbol');
  if (issue.code === 'unrecognized_keys') {
    const key = issue.keys[0]!;
    return located.error([...keyPath, key], 'there is no such key');
  }
  const missing = located.document.getIn(keyPath) === undefined && keyPath.length > 0;
  if (missing) return located.error(keyPath, 'is missing');
  return located.error(keyPath, issue.message.replace(/^Invalid input: /, ''));
}

/** Paths made absolute, and everything checked that concerns more than one key, or this machine. */
function resolved(config: DaemonConfig, located: Located, directory: string): DaemonConfig {
  const absolute = (file: string): string => path.resolve(directory, file);
  const clusterKeyFile = absolute(config.clusterKeyFile);
  if (!isThere(clusterKeyFile)) throw located.error(['clusterKeyFile'], `there is no file ${clusterKeyFile}`);
  if (config.dirtyMax !== undefined && config.dirtyMax > config.pagePool / 2)
    throw located.error(['dirtyMax'], 'must not be more than half of pagePool');

  const names = new Map<string, number>();
  const places = new Map<string, number>();
  const nsds = config.nsds.map((nsd, index) => {
    const nsdPath = absolute(nsd.path);
    const sameName = names.get(nsd.name);
    if (sameName !== undefined) throw located.error(['nsds', index, 'name'], `nsds[${sameName}] has this name`);
    names.set(nsd.name, index);
    if (nsd.fault !== undefined && process.env[TEST_FAULTS] !== '1')
      throw located.error(['nsds', index, 'fault'], `is for tests only, and loses data; ${TEST_FAULTS}=1 allows it`);
    if (nsd.size === undefined && !isThere(nsdPath))
      throw located.error(['nsds', index, 'path'], `there is no ${nsdPath}, and no size to create it with`);
    for (const place of identities(nsdPath)) {
      const other = places.get(place);
      if (other !== undefined && other !== index)
        throw located.error(
          ['nsds', index, 'path'],
          `is the same storage as nsds[${other}], their blocks would overlap`,
        );
      places.set(place, index);
    }
    return { ...nsd, path: nsdPath };
  });
  return { ...config, clusterKeyFile, socket: absolute(config.socket), nsds };
}

function isThere(file: string): boolean {
  return statSync(file, { throwIfNoEntry: false }) !== undefined;
}

/** Everything by which a path's storage may be met again: its real path, its inode, and of a device its other names and parts. */
function identities(file: string): string[] {
  const keys = storageKeys(file);
  return keys.length === 0 ? [`path ${realDirectory(file)}`] : [`path ${realpathSync(file)}`, ...keys];
}

function realDirectory(file: string): string {
  const directory = path.dirname(file);
  return isThere(directory) ? path.join(realpathSync(directory), path.basename(file)) : file;
}
