import type { Socket } from 'node:net';
import { Command, type Outcome } from './command.js';
import type { Controller } from './controller.js';
import { IN_CAPSULE_BYTES, QUEUE_ENTRIES_MAX, TRANSFER_BYTES_MAX } from './identify.js';
import {
  capsuleResponse,
  dataToHost,
  FATAL,
  initializeResponse,
  PDU,
  type Pdu,
  PduReader,
  ProtocolError,
  readyToTransfer,
  terminate,
} from './pdu.js';

/** What a controller takes in a capsule of the admin queue, and of a queue that isn't connected yet (NVMe/TCP, section 3.3.1). */
const ADMIN_CAPSULE_DATA_BYTES = 8192;

/**
 * One connection, which is one queue pair: it brings in commands with their data and takes out what becomes of them. A host that
 * breaks the protocol is told and cut off.
 */
export class Queue {
  id = 0;
  /** Null until the host has said which by Connect. */
  controller: Controller | null = null;
  readonly #reader = new PduReader();
  readonly #inFlight = new Set<Command>();
  readonly #transfers = new Map<number, { readonly command: Command; receivedBytes: number }>();
  #initialized = false;
  #entries = QUEUE_ENTRIES_MAX;
  #head = 0;
  #nextTag = 0;

  constructor(
    private readonly socket: Socket,
    private readonly execute: (queue: Queue, command: Command) => void,
    ended: (queue: Queue) => void,
  ) {
    socket.setNoDelay(true);
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
    socket.on('error', () => socket.destroy());
    socket.on('close', () => {
      this.#inFlight.clear();
      this.#transfers.clear();
      ended(this);
    });
  }

  connected(controller: Controller, id: number, entries: number): void {
    this.controller = controller;
    this.id = id;
    this.#entries = entries;
  }

  /** What comes too late, for a connection that is gone, is nobody's any more. */
  answer(command: Command, { status, result = 0n, data }: Outcome): void {
    if (!this.#inFlight.delete(command)) return;
    this.#head = (this.#head + 1) % this.#entries;
    if (data !== undefined && status === 0 && command.dataBytes > 0)
      this.socket.write(dataToHost(command.id, data.subarray(0, command.dataBytes)));
    const { id: commandId } = command;
    this.socket.write(capsuleResponse({ commandId, status, result, queueId: this.id, queueHead: this.#head }));
  }

  close(): void {
    this.socket.destroy();
  }

  #take(chunk: Buffer): void {
    try {
      for (const pdu of this.#reader.push(chunk)) this.#handle(pdu);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.socket.end(terminate(error.fatalStatus));
    }
  }

  #handle({ type, header, data }: Pdu): void {
    if (type === PDU.icReq) {
      if (this.#initialized) throw new ProtocolError(FATAL.sequence, 'initialized twice');
      if (header.getUint16(8, true) !== 0) throw new ProtocolError(FATAL.unsupported, 'another format version');
      this.#initialized = true;
      this.socket.write(initializeResponse());
    } else if (type === PDU.h2cTermReq) this.socket.destroy();
    else if (!this.#initialized) throw new ProtocolError(FATAL.sequence, 'not initialized');
    else if (type === PDU.capsuleCmd) this.#begin(header, data);
    else this.#receive(header, data);
  }

  #begin(header: DataView, data: Uint8Array): void {
    const command = new Command(new DataView(header.buffer, header.byteOffset + 8, 64));
    if (this.#inFlight.size >= this.#entries) throw new ProtocolError(FATAL.sequence, 'more commands than entries');
    if (command.dataBytes > TRANSFER_BYTES_MAX || (command.dataBytes > 0 && !command.describesData))
      throw new ProtocolError(FATAL.headerField, 'data that this controller can not take');
    this.#inFlight.add(command);
    if (!command.bringsData) {
      this.execute(this, command);
    } else if (command.inCapsule) {
      const limit = this.id === 0 ? ADMIN_CAPSULE_DATA_BYTES : IN_CAPSULE_BYTES;
      if (data.byteLength !== command.dataBytes || data.byteLength > limit)
        throw new ProtocolError(FATAL.outOfRange, 'not the data that the command names');
      command.data = data;
      this.execute(this, command);
    } else {
      command.data = new Uint8Array(command.dataBytes);
      while (this.#transfers.has(this.#nextTag)) this.#nextTag = (this.#nextTag + 1) % 0x10000;
      this.#transfers.set(this.#nextTag, { command, receivedBytes: 0 });
      this.socket.write(readyToTransfer(command.id, this.#nextTag, command.dataBytes));
      this.#nextTag = (this.#nextTag + 1) % 0x10000;
    }
  }

  /** H2CData: in order, since one R2T at a time is what a command gets. */
  #receive(header: DataView, data: Uint8Array): void {
    const tag = header.getUint16(10, true);
    const transfer = this.#transfers.get(tag);
    const offset = header.getUint32(12, true);
    if (transfer === undefined || transfer.command.id !== header.getUint16(8, true))
      throw new ProtocolError(FATAL.headerField, `data for transfer ${tag}, which there is not`);
    const { command, receivedBytes } = transfer;
    if (offset !== receivedBytes || data.byteLength !== header.getUint32(16, true))
      throw new ProtocolError(FATAL.outOfRange, 'data out of its order');
    if (receivedBytes + data.byteLength > command.dataBytes)
      throw new ProtocolError(FATAL.outOfRange, 'more data than was asked for');
    command.data.set(data, offset);
    transfer.receivedBytes += data.byteLength;
    if (transfer.receivedBytes < command.dataBytes) return;
    this.#transfers.delete(tag);
    this.execute(this, command);
  }
}
