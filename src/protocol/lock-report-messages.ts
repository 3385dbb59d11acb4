/**
 * What a node's programs have locked of files, and what they wait for; a question and its answer, as the tools' `locks` asks every node.
 *
 *   question  u16 node to be asked in the sender's place, 0: the receiver itself · u32 at most so many
 *   answer    u8 1: there are more · u32 n · n × (u8 kind · u64 object · u8 exclusive · u8 deny · u64 start · u64 end · u32 pid · u8 process)
 *
 * Kinds: 1 held, 2 waited for, each of a range; 3 and 4 the same of a whole file (flock); 5 a share mode (deny: 1 read, 2 write, 3 both).
 */
import { ByteReader, ByteWriter } from './codec.js';

export const LOCK_REPORT_MAX = 4096;
const KINDS = ['held', 'waiting', 'flockHeld', 'flockWaiting', 'share'] as const;
const DENIES = ['none', 'read', 'write', 'readwrite'] as const;

export interface ReportedLock {
  readonly kind: (typeof KINDS)[number];
  /** A token object; of a share mode an inode of the file system that is mounted there. */
  readonly object: number;
  readonly exclusive: boolean;
  readonly deny: (typeof DENIES)[number];
  readonly start: number;
  readonly end: number;
  readonly pid: number;
  /** A process's (fcntl), else a handle's. */
  readonly process: boolean;
}
export interface LockReport {
  readonly locks: readonly ReportedLock[];
  readonly more: boolean;
}

export const encodeLockQuestion = (relayTo: number | null, limit: number): Uint8Array =>
  new ByteWriter(6)
    .u16(relayTo ?? 0)
    .u32(limit)
    .finish();

export function decodeLockQuestion(body: Uint8Array): { relayTo: number | null; limit: number } {
  const reader = new ByteReader(body, 'lock question');
  const relayTo = reader.u16();
  const limit = reader.u32();
  if (reader.remainingBytes > 0 || limit < 1 || limit > LOCK_REPORT_MAX) throw reader.bad(`a limit of ${limit}`);
  return { relayTo: relayTo === 0 ? null : relayTo, limit };
}

export function encodeLockReport({ locks, more }: LockReport): Uint8Array {
  const writer = new ByteWriter(5 + 40 * locks.length).u8(more ? 1 : 0).u32(locks.length);
  for (const { kind, object, exclusive, deny, start, end, pid, process } of locks)
    writer
      .u8(KINDS.indexOf(kind) + 1)
      .u64(object)
      .u8(exclusive ? 1 : 0)
      .u8(DENIES.indexOf(deny))
      .u64(start)
      .u64(end)
      .u32(pid)
      .u8(process ? 1 : 0);
  return writer.finish();
}

export function decodeLockReport(body: Uint8Array): LockReport {
  const reader = new ByteReader(body, 'lock report');
  const more = reader.u8() !== 0;
  const count = reader.u32();
  if (count > LOCK_REPORT_MAX) throw reader.bad(`${count} locks`);
  const locks: ReportedLock[] = [];
  for (let i = 0; i < count; i++) {
    const kind = KINDS[reader.u8() - 1];
    const object = reader.u64();
    const exclusive = reader.u8() !== 0;
    const deny = DENIES[reader.u8()];
    const [start, end] = [reader.u64(), reader.u64()];
    const pid = reader.u32();
    const process = reader.u8() !== 0;
    if (kind === undefined || deny === undefined || end < start) throw reader.bad('a lock of no kind');
    locks.push({ kind, object, exclusive, deny, start, end, pid, process });
  }
  if (reader.remainingBytes > 0) throw reader.bad('bytes behind the last lock');
  return { locks, more };
}
