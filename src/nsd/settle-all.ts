/** Waits for every one, then throws the first failure: memory may be reused only when nothing is in flight any more (S3). */
export async function settleAll(operations: readonly Promise<unknown>[]): Promise<void> {
  const results = await Promise.allSettled(operations);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}
