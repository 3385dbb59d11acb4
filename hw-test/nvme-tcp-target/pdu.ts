/**
 * What travels on a connection of NVMe/TCP, as the controller sees it: NVMe/TCP Transport Specification 1.0, section 3.6. Without digests,
 * without padding. Pure; what can't be a PDU of a host is a ProtocolError with the fatal error status (figure 26) that the host is told.
 */
export const PDU = {
  icReq: 0x00,
  icResp: 0x01,
  h2cTermReq: 0x02,
  c2hTermReq: 0x03,
  capsuleCmd: 0x04,
  capsuleResp: 0x05,
  h2cData: 0x06,
  c2hData: 0x07,
  r2t: 0x09,
} as const;

export const FATAL = { headerField: 1, sequence: 2, outOfRange: 4, unsupported: 6 } as const;

export class ProtocolError extends Error {
  constructor(
    readonly fatalStatus: number,
    detail: string,
  ) {
    super(detail);
  }
}

export interface Pdu {
  readonly type: number;
  /** Common and specific header. */
  readonly header: DataView;
  readonly data: Uint8Array;
}

const COMMON_BYTES = 8;
const INITIALIZE_BYTES = 128;
const CAPSULE_COMMAND_BYTES = 72;
const SHORT_HEADER_BYTES = 24;
const LAST_PDU = 4;
/** More than any host is allowed to send at once: MAXH2CDATA, or a capsule with its data. */
export const DATA_BYTES_MAX = 128 * 1024;

const HEADER_BYTES: Readonly<Record<number, number>> = {
  [PDU.icReq]: INITIALIZE_BYTES,
  [PDU.h2cTermReq]: SHORT_HEADER_BYTES,
  [PDU.capsuleCmd]: CAPSULE_COMMAND_BYTES,
  [PDU.h2cData]: SHORT_HEADER_BYTES,
};

/** Cuts a stream into PDUs. */
export class PduReader {
  #pending = Buffer.alloc(0);

  /** @throws {ProtocolError} */
  push(chunk: Uint8Array): Pdu[] {
    this.#pending = Buffer.concat([this.#pending, chunk]);
    const found: Pdu[] = [];
    while (this.#pending.length >= COMMON_BYTES) {
      const type = this.#pending.readUInt8(0);
      const headerBytes = HEADER_BYTES[type];
      const dataOffset = this.#pending.readUInt8(3);
      const bytes = this.#pending.readUInt32LE(4);
      if (headerBytes === undefined || this.#pending.readUInt8(2) !== headerBytes)
        throw new ProtocolError(FATAL.headerField, `a PDU of type ${type} that a host has no use for`);
      if (bytes < headerBytes || bytes > headerBytes + DATA_BYTES_MAX)
        throw new ProtocolError(FATAL.headerField, `a PDU of ${bytes} bytes`);
      if (bytes > headerBytes && type !== PDU.h2cTermReq && dataOffset !== headerBytes)
        throw new ProtocolError(FATAL.headerField, `data at ${dataOffset}, and no alignment was asked for`);
      if (this.#pending.length < bytes) break;
      // A copy: data outlives the chunk, and a command may be held for long.
      const pdu = Uint8Array.from(this.#pending.subarray(0, bytes));
      this.#pending = this.#pending.subarray(bytes);
      found.push({ type, header: new DataView(pdu.buffer, 0, headerBytes), data: pdu.subarray(headerBytes) });
    }
    return found;
  }
}

function pdu(type: number, headerBytes: number, flags = 0, data: Uint8Array | null = null): DataView {
  const bytes = new Uint8Array(headerBytes + (data?.byteLength ?? 0));
  const view = new DataView(bytes.buffer);
  view.setUint8(0, type);
  view.setUint8(1, flags);
  view.setUint8(2, headerBytes);
  view.setUint8(3, data === null ? 0 : headerBytes);
  view.setUint32(4, bytes.byteLength, true);
  if (data !== null) bytes.set(data, headerBytes);
  return view;
}

const bytesOf = (view: DataView): Uint8Array => new Uint8Array(view.buffer);

/** Format version 0, no alignment, no digests. */
export function initializeResponse(): Uint8Array {
  const view = pdu(PDU.icResp, INITIALIZE_BYTES);
  view.setUint32(12, DATA_BYTES_MAX, true);
  return bytesOf(view);
}

export function terminate(fatalStatus: number): Uint8Array {
  const view = pdu(PDU.c2hTermReq, SHORT_HEADER_BYTES);
  view.setUint16(8, fatalStatus, true);
  return bytesOf(view);
}

export function readyToTransfer(commandId: number, transferTag: number, lengthBytes: number): Uint8Array {
  const view = pdu(PDU.r2t, SHORT_HEADER_BYTES);
  view.setUint16(8, commandId, true);
  view.setUint16(10, transferTag, true);
  view.setUint32(16, lengthBytes, true);
  return bytesOf(view);
}

export function dataToHost(commandId: number, data: Uint8Array): Uint8Array {
  const view = pdu(PDU.c2hData, SHORT_HEADER_BYTES, LAST_PDU, data);
  view.setUint16(8, commandId, true);
  view.setUint32(16, data.byteLength, true);
  return bytesOf(view);
}

/** Around a completion queue entry (NVM Express Base Specification 2.0, section 3.3.3.2). */
export function capsuleResponse(completion: {
  readonly commandId: number;
  readonly status: number;
  readonly result: bigint;
  readonly queueId: number;
  readonly queueHead: number;
}): Uint8Array {
  const view = pdu(PDU.capsuleResp, SHORT_HEADER_BYTES);
  view.setBigUint64(8, completion.result, true);
  view.setUint16(16, completion.queueHead, true);
  view.setUint16(18, completion.queueId, true);
  view.setUint16(20, completion.commandId, true);
  view.setUint16(22, completion.status << 1, true);
  return bytesOf(view);
}
