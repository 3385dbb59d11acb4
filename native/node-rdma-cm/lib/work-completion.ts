import type { QueuePair } from './queue-pair.js';

/** What became of a work request: `ibv_wc_status`, in words. */
export type WorkStatus =
  | 'success'
  | 'localLengthError'
  | 'localQueuePairOperationError'
  | 'localEecOperationError'
  | 'localProtectionError'
  /** Not executed, or not known to be: the queue pair was in error before it was its turn. */
  | 'flushed'
  | 'windowBindError'
  | 'badResponseError'
  | 'localAccessError'
  | 'remoteInvalidRequestError'
  /** The remote key doesn't allow it: wrong key, outside of the range, invalidated. */
  | 'remoteAccessError'
  | 'remoteOperationError'
  /** The peer doesn't answer any more. */
  | 'retryExceeded'
  /** The peer had no receive posted for too long. */
  | 'receiverNotReadyRetryExceeded'
  | 'localRddViolationError'
  | 'remoteInvalidRdRequest'
  | 'remoteAborted'
  | 'invalidEecNumber'
  | 'invalidEecState'
  | 'fatalError'
  | 'responseTimeout'
  | 'generalError'
  | 'tagMatchingError'
  | 'tagMatchingRendezvousIncomplete';

export type Operation =
  | 'send'
  | 'sendWithImmediate'
  | 'sendWithInvalidate'
  | 'write'
  | 'writeWithImmediate'
  | 'read'
  | 'compareAndSwap'
  | 'fetchAndAdd'
  | 'bindWindow'
  | 'invalidateLocal'
  /** A receive, consumed by a peer's send. */
  | 'receive'
  /** A receive, consumed by a peer's write with immediate: the bytes are where the peer wrote them. */
  | 'receiveWriteWithImmediate';

/** One completion, copied out of the shared record. */
export interface Completion {
  /** As given when the request was queued. */
  readonly id: number;
  readonly status: WorkStatus;
  /** Always that of the request, after errors too. */
  readonly operation: Operation;
  /** Null when it was closed meanwhile. */
  readonly queuePair: QueuePair | null;
  /** Bytes received or transferred; 0 after an error. */
  readonly lengthBytes: number;
  /** Of a receive: the 32 bits that the peer sent along; null if it sent none. */
  readonly immediate: number | null;
  /** Of a receive: the key of ours that the peer invalidated; null if it invalidated none. */
  readonly invalidatedKey: number | null;
  /** The device's own code after an error. */
  readonly vendorError: number;
}

/**
 * A batch of completions: typed records in memory that the addon shares, decoded when asked for. The same object comes with every
 * batch of a completion queue and is valid until the callback (or the next `poll`) returns; `at` copies one out.
 *
 * Exactly one completion comes for each signalled send-side request and for each receive; one for an unsignalled request
 * only if it fails. That holds when the queue pair is closed, too: what was outstanding then comes as `flushed`.
 */
export interface Completions extends Iterable<Completion> {
  readonly count: number;
  /** How many of them have another status than success: a batch without errors needs no look at each. */
  readonly errorCount: number;
  id(index: number): number;
  ok(index: number): boolean;
  status(index: number): WorkStatus;
  operation(index: number): Operation;
  queuePair(index: number): QueuePair | null;
  lengthBytes(index: number): number;
  immediate(index: number): number | null;
  invalidatedKey(index: number): number | null;
  at(index: number): Completion;
}
