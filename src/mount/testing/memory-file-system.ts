import { constants } from 'node:os';
import { inodeNumber } from '../../common/ids.js';
import { type Attributes, FileType } from '../../fs/file-system-api.js';
import type { FuseSession, FuseSessionHandlers } from '../fuse-session.js';
import type { Ledger } from '../ledger.js';
import { NODE_ROOT, OpenReplyFlag, VALID_FOR_EVER_SECONDS, WriteFlag } from '../wire/protocol.js';
import { ReplyWriter } from '../wire/reply.js';
import type { Request, RequestOp } from '../wire/request.js';

/**
 * A small file system in memory behind a FuseSession, for tests of the transport: everything in one turn, unless a test holds a request.
 * Without tokens: the kernel keeps what a test lets it keep (`entrySeconds`, `attributeSeconds`).
 */
const { EBADF, EEXIST, EINTR, EINVAL, EIO, EISDIR, ENODATA, ENOENT, ENOTDIR, ENOTEMPTY } = constants.errno;
const BLOCK_BYTES = 4096;

class Inode {
  nlink = 1;
  mode: number;
  data = Buffer.alloc(0);
  readonly children = new Map<string, Inode>();
  node = 0;
  constructor(
    readonly ino: number,
    readonly type: FileType,
    mode: number,
  ) {
    this.mode = mode;
  }
}

/** A request that a test keeps back. */
export interface Held {
  readonly id: number;
  readonly request: Request;
  /** Served as it would have been. */
  release(): void;
  answer(errno: number): void;
}

interface Hold {
  readonly matches: (request: Request) => boolean;
  readonly found: (held: Held) => void;
}

export class MemoryFileSystem implements FuseSessionHandlers {
  session!: FuseSession;
  entrySeconds = VALID_FOR_EVER_SECONDS;
  attributeSeconds = VALID_FOR_EVER_SECONDS;
  /** Also answered from the reader's tables from then on. */
  teachReader = false;
  readonly root = new Inode(1, FileType.directory, 0o755);
  readonly inodes = new Map<number, Inode>([[NODE_ROOT, this.root]]);
  readonly handles = new Map<number, Inode>();
  readonly interruptedIds: number[] = [];
  readonly forgottenNodes: number[] = [];
  readonly seen: Request['op'][] = [];
  readonly writes: { offset: number; bytes: number; writeFlags: number; flags: number }[] = [];
  agreement: { minor: number; flags: number; flags2: number } | null = null;
  endedWith: number | null = null;
  /** Writable handles bypass the kernel's pages (M1). */
  directWrites = true;
  #nextIno = 2;
  #nextHandle = 1;
  readonly #holds: Hold[] = [];
  readonly #held = new Map<number, Request>();
  readonly #reply = new ReplyWriter((1 << 20) + 4096);
  readonly #teach = new ReplyWriter(256);
  #changed = (): void => undefined;

  constructor() {
    this.root.node = NODE_ROOT;
  }

  /** Handles are in it, if a test wants them to outlive this server. */
  ledger: Ledger | null = null;

  /** What an earlier server told the kernel. */
  adopt(node: number, ino: number): void {
    const inode = [this.root, ...this.root.children.values()].find((one) => one.ino === ino);
    if (inode === undefined) return;
    inode.node = node;
    this.inodes.set(node, inode);
  }
  adoptHandle(handle: number, node: number): void {
    const inode = this.inodes.get(node);
    if (inode !== undefined) this.handles.set(handle, inode);
  }

  /** The next request that matches is kept back. */
  hold(op: RequestOp, which: (request: Request) => boolean = () => true): Promise<Held> {
    return new Promise((resolve) => {
      this.#holds.push({ matches: (request) => request.op === op && which(request), found: resolve });
    });
  }

  /** Resolves when `condition` holds; looked at after every event. */
  until(condition: () => boolean): Promise<void> {
    if (condition()) return Promise.resolve();
    return new Promise((resolve) => {
      const before = this.#changed;
      this.#changed = () => {
        before();
        if (condition()) resolve();
      };
    });
  }

  put(name: string, data: string | Buffer, parent = this.root): Inode {
    const inode = new Inode(this.#nextIno++, FileType.regular, 0o644);
    inode.data = Buffer.from(data);
    parent.children.set(name, inode);
    return inode;
  }
  putDirectory(name: string, parent = this.root): Inode {
    const inode = new Inode(this.#nextIno++, FileType.directory, 0o755);
    parent.children.set(name, inode);
    return inode;
  }
  count(op: RequestOp): number {
    return this.seen.filter((seen) => seen === op).length;
  }

  agreed(agreement: { minor: number; flags: number; flags2: number }): void {
    this.agreement = agreement;
    this.#changed();
  }
  ended(errno: number): void {
    this.endedWith = errno;
    this.#changed();
  }
  forgotten(node: number): void {
    const inode = this.inodes.get(node);
    if (inode !== undefined && this.session.removeNode(node)) {
      this.inodes.delete(node);
      inode.node = 0;
      this.forgottenNodes.push(node);
    }
    this.#changed();
  }
  interrupted(id: number): void {
    this.interruptedIds.push(id);
    if (this.#held.delete(id)) this.session.answer(id, EINTR);
    this.#changed();
  }
  request(id: number, request: Request): void {
    this.seen.push(request.op);
    const at = this.#holds.findIndex((hold) => hold.matches(request));
    if (at >= 0) {
      const [hold] = this.#holds.splice(at, 1);
      this.#held.set(id, request);
      const once = (what: () => void) => () => {
        if (this.#held.delete(id)) what();
      };
      hold!.found({
        id,
        request,
        release: once(() => this.#serve(id, request)),
        answer: (errno) => once(() => this.session.answer(id, errno))(),
      });
    } else {
      this.#serve(id, request);
    }
    this.#changed();
  }

  attributesOf(inode: Inode): Attributes {
    return {
      ino: inodeNumber(inode.ino),
      generation: 0,
      type: inode.type,
      mode: inode.mode,
      nlink: inode.nlink,
      uid: 0,
      gid: 0,
      rdev: 0,
      sizeBytes: inode.type === FileType.regular ? inode.data.length : 0,
      allocatedBytes: inode.data.length,
      atimeNs: 0n,
      mtimeNs: 1_500_000_000n,
      ctimeNs: 0n,
      birthtimeNs: 2_250_000_000n,
    };
  }

  #nodeOf(inode: Inode): number {
    if (inode.node === 0) {
      inode.node = this.session.addNode(inode.ino, 0);
      this.inodes.set(inode.node, inode);
    }
    this.session.lookedUp(inode.node);
    return inode.node;
  }
  #valid() {
    return { entrySeconds: this.entrySeconds, attributeSeconds: this.attributeSeconds };
  }
  #entry(inode: Inode): ReplyWriter {
    return this.#reply.clear().entry(this.#nodeOf(inode), this.attributesOf(inode), this.#valid(), BLOCK_BYTES);
  }
  teach(inode: Inode): void {
    this.session.putAttributes(
      inode.node,
      this.#teach.clear().known(this.attributesOf(inode), this.attributeSeconds, BLOCK_BYTES),
    );
  }

  #serve(id: number, request: Request): void {
    const { session } = this;
    const inode = this.inodes.get(request.header.node);
    if (inode === undefined) {
      session.answer(id, request.op === 'statfs' ? EIO : ENOENT);
      return;
    }
    const errno = this.#do(id, request, inode);
    if (errno !== null) session.answer(id, errno);
  }

  /** An errno (0 too) to answer with, or null when it was answered. */
  #do(id: number, request: Request, inode: Inode): number | null {
    const { session } = this;
    switch (request.op) {
      case 'lookup': {
        const child = inode.children.get(request.name);
        if (child === undefined) {
          if (this.entrySeconds === 0) return ENOENT;
          session.answerWith(id, this.#reply.clear().noEntry(this.entrySeconds));
          return null;
        }
        const entry = this.#entry(child);
        if (this.teachReader) {
          this.teach(child);
          session.putName(inode.node, request.name, child.node, this.entrySeconds);
        }
        session.answerWith(id, entry);
        return null;
      }
      case 'getattr':
        session.answerWith(id, this.#reply.clear().attr(this.attributesOf(inode), this.attributeSeconds, BLOCK_BYTES));
        return null;
      case 'statx':
        session.answerWith(id, this.#reply.clear().statx(this.attributesOf(inode), this.attributeSeconds, BLOCK_BYTES));
        return null;
      case 'setattr':
        if (request.wishes.size !== undefined) this.#resize(inode, request.wishes.size);
        if (request.wishes.mode !== undefined) inode.mode = request.wishes.mode;
        session.answerWith(id, this.#reply.clear().attr(this.attributesOf(inode), this.attributeSeconds, BLOCK_BYTES));
        return null;
      case 'mkdir':
      case 'create': {
        if (inode.children.has(request.name)) return EEXIST;
        const type = request.op === 'mkdir' ? FileType.directory : FileType.regular;
        const child = new Inode(this.#nextIno++, type, request.mode & ~request.umask & 0o7777);
        inode.children.set(request.name, child);
        const entry = this.#entry(child);
        if (request.op === 'create') entry.open(this.#handle(child), this.#openFlags(request.flags));
        session.answerWith(id, entry);
        return null;
      }
      case 'unlink':
      case 'rmdir': {
        const child = inode.children.get(request.name);
        if (child === undefined) return ENOENT;
        if (request.op === 'rmdir' && child.children.size > 0) return ENOTEMPTY;
        inode.children.delete(request.name);
        child.nlink--;
        return 0;
      }
      case 'rename': {
        const to = this.inodes.get(request.toDirectory);
        const child = inode.children.get(request.name);
        if (to === undefined || child === undefined) return ENOENT;
        inode.children.delete(request.name);
        to.children.set(request.toName, child);
        return 0;
      }
      case 'open': {
        if (inode.type === FileType.directory) return EISDIR;
        if ((request.flags & 0o1000) !== 0) this.#resize(inode, 0);
        const flags = this.#openFlags(request.flags);
        session.answerWith(id, this.#reply.clear().open(this.#handle(inode), flags));
        return null;
      }
      case 'opendir':
        if (inode.type !== FileType.directory) return ENOTDIR;
        session.answerWith(id, this.#reply.clear().open(this.#handle(inode), 0));
        return null;
      case 'read': {
        if (!this.handles.has(request.handle)) return EBADF;
        const data = inode.data.subarray(request.offset, request.offset + request.size);
        session.answerBytes(id, data);
        return null;
      }
      case 'write': {
        const { offset, data } = request;
        this.writes.push({ offset, bytes: data.length, writeFlags: request.writeFlags, flags: request.flags });
        const end =
          (request.writeFlags & WriteFlag.cache) !== 0
            ? Math.min(offset + data.length, inode.data.length)
            : offset + data.length;
        if (end > inode.data.length) this.#resize(inode, end);
        inode.data.set(data.subarray(0, end - offset), offset);
        session.answerWith(id, this.#reply.clear().count(data.length));
        return null;
      }
      case 'readdir':
      case 'readdirplus': {
        const entries = [...inode.children];
        const reply = this.#reply.clear();
        for (let i = request.offset; i < entries.length; i++) {
          const [name, child] = entries[i]!;
          if (request.op === 'readdir') {
            if (!reply.dirent(request.size, name, child.ino, child.type, i + 1)) break;
          } else {
            if (child.node === 0) child.node = session.addNode(child.ino, 0);
            this.inodes.set(child.node, child);
            const looked = {
              node: child.node,
              attributes: this.attributesOf(child),
              valid: this.#valid(),
              blockBytes: BLOCK_BYTES,
            };
            if (!reply.direntPlus(request.size, name, child.ino, child.type, i + 1, looked)) break;
            session.lookedUp(child.node);
          }
        }
        session.answerWith(id, reply);
        return null;
      }
      case 'statfs':
        session.answerWith(
          id,
          this.#reply.clear().statfs({
            blockBytes: 1 << 20,
            subBlockBytes: BLOCK_BYTES,
            totalBytes: 1 << 30,
            freeBytes: 1 << 29,
            totalInodes: 1000,
            freeInodes: 900,
            nameBytesMax: 255,
          }),
        );
        return null;
      case 'release':
      case 'releasedir':
        this.handles.delete(request.handle);
        this.ledger?.closeHandle(request.handle);
        return 0;
      case 'flush':
      case 'fsync':
      case 'fsyncdir':
      case 'access':
      case 'syncfs':
      case 'setlk':
        return 0;
      case 'getlk':
        session.answerWith(id, this.#reply.clear().lock({ type: 'write', offset: 10, length: 5, pid: 42 }));
        return null;
      case 'getxattr':
      case 'listxattr':
        return ENODATA;
      case 'lseek':
        session.answerWith(id, this.#reply.clear().offset(request.offset));
        return null;
      default:
        return EINVAL;
    }
  }

  #resize(inode: Inode, size: number): void {
    const data = Buffer.alloc(size);
    inode.data.copy(data, 0, 0, Math.min(size, inode.data.length));
    inode.data = data;
  }
  #handle(inode: Inode): number {
    const kind = inode.type === FileType.directory ? 'directory' : 'file';
    const kept = this.ledger?.openHandle({ node: inode.node, kind, flags: 0, uid: 0, gid: 0 });
    const handle = kept ?? this.#nextHandle++;
    this.handles.set(handle, inode);
    return handle;
  }
  #openFlags(flags: number): number {
    const writable = (flags & 3) !== 0;
    return OpenReplyFlag.keepCache | (writable && this.directWrites ? OpenReplyFlag.directIo : 0);
  }
}
