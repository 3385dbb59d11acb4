import { invariant } from '../common/assert.js';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import type { Attributes, FileType } from '../fs/file-system-api.js';
import type { KernelFileHandle } from '../fs/inode-calls.js';
import type { FilePages } from './file-pages.js';
import { NODE_ROOT } from './wire/protocol.js';

/**
 * What the kernel knows of this file system by number: a node is one life of an inode. Invariant: a node is in the table from before the
 * answer that tells of it until the kernel has forgotten it; one life has one node at a time.
 */
export interface KernelNode {
  readonly id: number;
  readonly ino: InodeNumber;
  readonly generation: number;
  readonly type: FileType;
  /** Files only, from their first open on. */
  pages: FilePages | null;
  /** What the kernel has open of it. */
  readonly files: Set<KernelFileHandle>;
  /** Of those, read-only ones: their readers go by the kernel's idea of the size. */
  readers: number;
  /** Of requests that cut the file, while they may wait: until they are answered the kernel writes no page of a mapping back. */
  readonly cuts: Set<() => void>;
  /** The kernel was made to believe that the file is so long at least, and nothing said otherwise since. */
  sizeFloor: number;
}

/** Of the session: who gives out numbers, and counts what the kernel was told of them. */
export interface NodeNumbers {
  setRoot(inode: number, generation: number): void;
  addNode(inode: number, generation: number): number;
  lookedUp(node: number, count?: number): void;
  removeNode(node: number): boolean;
}

export class KernelNodes {
  readonly #numbers: NodeNumbers;
  readonly #byId = new Map<number, KernelNode>();
  readonly #byInode = new Map<InodeNumber, KernelNode>();

  constructor(
    numbers: NodeNumbers,
    root: { readonly ino: InodeNumber; readonly generation: number; readonly type: FileType },
  ) {
    this.#numbers = numbers;
    numbers.setRoot(root.ino, root.generation);
    this.#put({ ...root, id: NODE_ROOT, pages: null, files: new Set(), readers: 0, cuts: new Set(), sizeFloor: 0 });
  }

  get size(): number {
    return this.#byId.size;
  }
  all(): IterableIterator<KernelNode> {
    return this.#byId.values();
  }
  #put(node: KernelNode): KernelNode {
    this.#byId.set(node.id, node);
    this.#byInode.set(node.ino, node);
    return node;
  }

  /** @throws {FsError} staleHandle: the kernel names what it was never told of, or has forgotten. */
  get(id: number): KernelNode {
    const node = this.#byId.get(id);
    if (node === undefined) throw new FsError('staleHandle', { op: 'mount', object: `node ${id}` });
    return node;
  }
  ofInode(ino: InodeNumber): KernelNode | undefined {
    return this.#byInode.get(ino);
  }

  /** Before the answer that tells the kernel of it. @throws {FsError} tooManyOpenFiles when there are no more numbers. */
  lookedUp({ ino, generation, type }: Attributes): KernelNode {
    const known = this.#byInode.get(ino);
    const node =
      known?.generation === generation
        ? known
        : this.#put({
            id: this.#numbers.addNode(ino, generation),
            ino,
            generation,
            type,
            pages: null,
            files: new Set(),
            readers: 0,
            cuts: new Set(),
            sizeFloor: 0,
          });
    this.#numbers.lookedUp(node.id);
    return node;
  }

  /** Unless it was told of it again. */
  forgotten(id: number): void {
    if (!this.#numbers.removeNode(id)) return;
    const node = this.#byId.get(id);
    invariant(node !== undefined && id !== NODE_ROOT, `node ${id} is forgotten, and was not known`);
    this.#byId.delete(id);
    if (this.#byInode.get(node.ino) === node) this.#byInode.delete(node.ino);
  }
}
