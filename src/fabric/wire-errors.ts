import { errorFromRecord, errorToRecord, FsError, type FsErrorRecord } from '../common/errors.js';
import { TransferStatus } from '../protocol/frame.js';

/** Errors as they cross: a handler's as JSON in a reply, a transfer's as a status. */
export function transferError(status: TransferStatus, writing: boolean): FsError {
  const op = writing ? 'fabric.writeRemote' : 'fabric.readRemote';
  switch (status) {
    case TransferStatus.outOfBounds:
      return new FsError('outOfRange', { op, detail: "beyond the end of the peer's window" });
    case TransferStatus.windowDenied:
      return new FsError('wrongKeyWindow', { op, detail: "the peer's window is not open to us for that" });
    default:
      return new FsError('wrongKeyWindow', { op, detail: 'no such window at the peer, or it has been closed' });
  }
}

const ERROR_TEXT_MAX = 4096;

export function encodeError(error: FsError): Uint8Array {
  const record = errorToRecord(error);
  const clip = (text: string | undefined) => text?.slice(0, ERROR_TEXT_MAX);
  return Buffer.from(
    JSON.stringify({ ...record, op: clip(record.op), object: clip(record.object), detail: clip(record.detail) }),
  );
}

/** Whatever arrives: an error that can be shown, with texts no longer than ours. */
export function decodeError(body: Uint8Array): FsError {
  try {
    const record = JSON.parse(Buffer.from(body).toString('utf8')) as Partial<
      Record<keyof FsErrorRecord, unknown>
    > | null;
    const reason = record?.reason;
    const op = textOf(record?.op);
    const [object, detail] = [textOf(record?.object), textOf(record?.detail)];
    if (typeof reason === 'number' && op !== undefined)
      return errorFromRecord({
        reason,
        op,
        ...(object === undefined ? {} : { object }),
        ...(detail === undefined ? {} : { detail }),
      });
  } catch {
    // Falls through: the peer's answer is no error record.
  }
  return new FsError('remoteFailure', { op: 'fabric.request', detail: "the peer's error can't be read" });
}
const textOf = (value: unknown): string | undefined =>
  typeof value === 'string' ? value.slice(0, ERROR_TEXT_MAX) : undefined;
