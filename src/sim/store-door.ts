import { FsError } from '../common/errors.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { NsdStore } from '../nsd/nsd-store.js';
import type { NodeGate } from './node-gate.js';

/**
 * The door between a node and an NSD store of its own. The store is the target's side: what a node has begun there ends there, even
 * if the node dies meanwhile (else data and checksum would part, which only the intents of the log can mend); answers are noticed through
 * the node's gate.
 *
 * `shut` is the target's fence (S4): nothing gets in any more, and it resolves when nothing is left inside.
 */
export class StoreDoor {
  #inside = 0;
  #shut = false;
  #empty: (() => void)[] = [];

  /** Takes over the store's methods. */
  constructor(
    readonly store: NsdStore,
    private readonly gate: NodeGate,
    private readonly say: (text: string) => void,
  ) {
    const read = store.read.bind(store);
    const write = store.write.bind(store);
    const flush = store.flush.bind(store);
    const discard = store.discard.bind(store);
    const versions = store.versions.bind(store);
    const checkVersions = store.checkVersions.bind(store);
    store.read = (...args) => this.#pass('read', () => read(...args));
    store.write = (sector, memory, ...rest) => {
      this.say(`disk: write [${sector}, ${sector + memory.lengthBytes / SECTOR_BYTES})`);
      return this.#pass('write', () => write(sector, memory, ...rest));
    };
    store.versions = (...args) => this.#pass('versions', () => versions(...args));
    store.checkVersions = (...args) => this.#pass('write', () => checkVersions(...args));
    store.flush = () => this.#pass('flush', () => flush());
    store.discard = (sector, count) => {
      this.say(`disk: discard [${sector}, ${sector + count})`);
      return this.#pass('discard', () => discard(sector, count));
    };
  }

  shut(): Promise<void> {
    this.#shut = true;
    if (this.#inside === 0) return Promise.resolve();
    return new Promise((resolve) => this.#empty.push(resolve));
  }

  #pass<T>(op: string, operation: () => Promise<T>): Promise<T> {
    // A dead node's code may run on to its next wait; it must not get anything done.
    if (this.gate.dead) return new Promise(() => undefined);
    if (this.#shut) {
      const detail = 'the target has shut this node out';
      return this.gate.pass(Promise.reject(new FsError('deviceError', { op, object: this.store.uuid, detail })));
    }
    this.#inside++;
    const done = operation().finally(() => {
      this.#inside--;
      if (this.#inside > 0) return;
      for (const tell of this.#empty) tell();
      this.#empty = [];
    });
    return this.gate.pass(done);
  }
}
