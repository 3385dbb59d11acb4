import fs from 'node:fs/promises';

/** Who has the lock on a file, of the lines of /proc/locks; null where nobody has, or nobody whom this process can see. */
export function holderIn(locks: string, major: number, minor: number, inode: bigint): number | null {
  const hex = (part: number): string => part.toString(16).padStart(2, '0');
  const file = `${hex(major)}:${hex(minor)}:${inode}`;
  for (const line of locks.split('\n')) {
    // "1: FLOCK  ADVISORY  WRITE 1234 00:05:321 0 EOF"; those who wait for it have an arrow.
    const found = /^\d+: FLOCK\s+\S+\s+WRITE (\d+) (\S+) /.exec(line);
    if (found !== null && found[2] === file && found[1] !== '0') return Number(found[1]);
  }
  return null;
}

/** An EBUSY of a lock becomes one that names the process; every other error stays what it is. */
export async function namedHolder(error: unknown): Promise<unknown> {
  const { code, path } = error as { code?: unknown; path?: unknown };
  if (code !== 'EBUSY' || typeof path !== 'string') return error;
  const holder = await findHolder(path).catch(() => null);
  const who =
    holder === null
      ? 'another process'
      : `process ${holder.pid}${holder.name === null ? ', which has ended; the kernel is still at its I/O' : ` (${holder.name})`}`;
  return Object.assign(new Error(`EBUSY: ${who} has the lock on it, open '${path}'`, { cause: error }), {
    code: 'EBUSY',
    syscall: 'flock',
    path,
    pid: holder?.pid ?? null,
  });
}

async function findHolder(path: string): Promise<{ readonly pid: number; readonly name: string | null } | null> {
  const { dev, ino } = await fs.stat(path, { bigint: true });
  const [major, minor] = [Number((dev >> 8n) & 0xfffn), Number((dev & 0xffn) | ((dev >> 12n) & 0xfff00n))];
  const pid = holderIn(await fs.readFile('/proc/locks', 'utf8'), major, minor, ino);
  if (pid === null) return null;
  const name = await fs.readFile(`/proc/${pid}/comm`, 'utf8').catch(() => null);
  return { pid, name: name?.trim() ?? null };
}
