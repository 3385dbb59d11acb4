/** What the kernel blocks on is waited for in a thread, and here for a bounded time only. */
export class TimeLimitError extends Error {
  readonly code = 'ETIMEDOUT';
}

/** `work`, or a TimeLimitError after `timeoutMs`; then `late` gets what it still may bring. */
export async function bounded<T>(
  work: Promise<T>,
  timeoutMs: number,
  what: string,
  late: (value: T) => void = () => undefined,
): Promise<T> {
  if (!Number.isSafeInteger(timeoutMs) || timeoutMs <= 0) throw new RangeError('a time limit is a whole number of ms');
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      work.then(late, () => undefined);
      reject(new TimeLimitError(`ETIMEDOUT: not within ${timeoutMs} ms, ${what}`));
    }, timeoutMs);
  });
  try {
    return await Promise.race([work, limit]);
  } finally {
    clearTimeout(timer);
  }
}

/** Asks again every few milliseconds until the answer isn't null; at most `timeoutMs`. */
export async function untilFound<T>(ask: () => Promise<T | null>, timeoutMs: number, what: string): Promise<T> {
  const endMs = performance.now() + timeoutMs;
  for (;;) {
    const answer = await ask();
    if (answer !== null) return answer;
    if (performance.now() >= endMs) throw new TimeLimitError(`ETIMEDOUT: not within ${timeoutMs} ms, ${what}`);
    await new Promise((resolve) => setTimeout(resolve, ASK_EVERY_MS));
  }
}

const ASK_EVERY_MS = 20;
