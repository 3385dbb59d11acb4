import fs, { type FileHandle } from 'node:fs/promises';
import { deviceNode } from './device-node.js';
import { errnoName, NvmeCommandError } from './errors.js';
import { native } from './native.js';
import { CNS, getLogPageCommand, identifyCommand, LOG_PAGE, type NvmeCommand } from './nvme-commands.js';
import {
  hasShortGuard,
  type IdentifyController,
  type IdentifyNamespace,
  type IdentifyNvmController,
  parseIdentifyController,
  parseIdentifyNamespace,
  parseIdentifyNvmController,
  parseNamespaceList,
} from './nvme-identify.js';
import {
  ERROR_LOG_ENTRY_BYTES,
  type ErrorLogEntry,
  FIRMWARE_LOG_BYTES,
  type FirmwareLog,
  parseErrorLog,
  parseFirmwareLog,
  parseSmartLog,
  SMART_LOG_BYTES,
  type SmartLog,
} from './nvme-logs.js';
import { decodeStatus, errnoOfStatus } from './nvme-status.js';

export interface CommandResult {
  /** Dword 0 of the completion. */
  readonly result: number;
  /** Dword 1. */
  readonly resultHigh: number;
  /** What the command moved, or was to move; null for none. */
  readonly data: Uint8Array | null;
  readonly metadata: Uint8Array | null;
}

/**
 * A controller (/dev/nvmeX) or a namespace (/dev/ngXnY, /dev/nvmeXnY), for single commands: what it is, its logs, and whatever else is
 * sent to it. Each command waits in a thread of libuv's, at most for its timeout (the kernel's own, usually 60 s for admin commands and 30 s for
 * others, unless one is given). Not for bulk I/O: that is the engine's.
 *
 * Fault model: a path that is no NVMe device (ENOTTY, without opening it), a command refused by the controller (its status in
 * words), refused or given up by the kernel (errno), a device that vanishes, closed meanwhile.
 */
export class NvmeDevice {
  #closed = false;

  private constructor(
    readonly path: string,
    /** Null for a controller. */
    readonly nsid: number | null,
    private readonly file: FileHandle,
  ) {}

  static async open(path: string, options: { readonly readOnly?: boolean } = {}): Promise<NvmeDevice> {
    const node = await deviceNode(path);
    if (node.kind !== 'namespace' && node.kind !== 'controller')
      throw new NvmeCommandError('ENOTTY', 'open', path, null, 'this is no NVMe device');
    const file = await fs.open(path, options.readOnly ? 'r' : 'r+');
    try {
      const nsid = native().namespaceId(file.fd);
      return new NvmeDevice(path, nsid === 0 ? null : nsid, file);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** @throws {NvmeCommandError} */
  async send(command: NvmeCommand): Promise<CommandResult> {
    if (this.#closed) throw new NvmeCommandError('EBADF', command.name, this.path, null, 'the device is closed');
    const { errno, status, ...moved } = await native().sendCommand(
      this.file.fd,
      command.set === 'io',
      command.bytes,
      command.dataBytes,
      command.data,
      command.metadataBytes,
      command.metadata,
    );
    if (errno !== 0) {
      const code = errno === EINTR ? 'ETIMEDOUT' : errnoName(errno);
      const detail = errno === EINTR ? 'it timed out or its controller was reset' : 'the kernel did not pass it on';
      throw new NvmeCommandError(code, command.name, this.path, null, detail);
    }
    if (status !== 0) {
      const decoded = decodeStatus(status);
      throw new NvmeCommandError(errnoOfStatus(status), command.name, this.path, decoded, decoded.words);
    }
    return moved;
  }

  async identifyController(): Promise<IdentifyController> {
    return parseIdentifyController(await this.#data(identifyCommand(CNS.controller)));
  }

  async identifyNamespace(nsid = this.#ownNsid()): Promise<IdentifyNamespace> {
    return parseIdentifyNamespace(await this.#data(identifyCommand(CNS.namespace, nsid)));
  }

  /** Null where the controller doesn't have this data structure (before NVMe 2.0). */
  async identifyNvmController(): Promise<IdentifyNvmController | null> {
    const bytes = await this.#optional(identifyCommand(CNS.nvmController));
    return bytes === null ? null : parseIdentifyNvmController(bytes);
  }

  /** Whether protection information in LBA format `index` is the classic one of 8 bytes with a guard of 16 bits. */
  async hasShortGuard(index: number, nsid = this.#ownNsid()): Promise<boolean> {
    const bytes = await this.#optional(identifyCommand(CNS.nvmNamespace, nsid));
    return bytes === null || hasShortGuard(bytes, index);
  }

  /** Ids of the active namespaces of this controller, all of them. */
  async namespaceIds(): Promise<number[]> {
    const ids: number[] = [];
    for (;;) {
      const more = parseNamespaceList(await this.#data(identifyCommand(CNS.namespaceList, ids.at(-1) ?? 0)));
      ids.push(...more);
      if (more.length < 1024) return ids;
    }
  }

  async smartLog(): Promise<SmartLog> {
    return parseSmartLog(await this.logPage(LOG_PAGE.smart, SMART_LOG_BYTES));
  }

  /** Newest first. */
  async errorLog(entryCountMax = 64): Promise<ErrorLogEntry[]> {
    const { elpe } = await this.identifyController();
    const count = Math.min(entryCountMax, elpe + 1);
    return parseErrorLog(await this.logPage(LOG_PAGE.errors, count * ERROR_LOG_ENTRY_BYTES));
  }

  async firmwareLog(): Promise<FirmwareLog> {
    return parseFirmwareLog(await this.logPage(LOG_PAGE.firmware, FIRMWARE_LOG_BYTES));
  }

  logPage(page: number, lengthBytes: number, offsetBytes = 0): Promise<Uint8Array> {
    return this.#data(getLogPageCommand(page, lengthBytes, { offsetBytes }));
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.file.close();
  }

  #ownNsid(): number {
    if (this.nsid === null)
      throw new NvmeCommandError(
        'EINVAL',
        'identify',
        this.path,
        null,
        'a controller has several namespaces: name one',
      );
    return this.nsid;
  }

  async #data(command: NvmeCommand): Promise<Uint8Array> {
    const { data } = await this.send(command);
    return data ?? new Uint8Array(0);
  }

  async #optional(command: NvmeCommand): Promise<Uint8Array | null> {
    try {
      return await this.#data(command);
    } catch (error) {
      if (error instanceof NvmeCommandError && error.status?.type === 'generic') return null;
      throw error;
    }
  }
}

/** How the kernel reports a command that it gave up. */
const EINTR = 4;
