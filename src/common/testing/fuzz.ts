/**
 * How long a decoder is fuzzed: a fixed number of cases, or, where HOLDFAST_FUZZ_SECONDS says so (CI), for that time. The parts that one
 * decoder's fuzzing is split into share it.
 */
export function fuzzRuns(
  cases: number,
  parts = 1,
): { numRuns: number; interruptAfterTimeLimit?: number; markInterruptAsFailure?: false } {
  const seconds = process.env['HOLDFAST_FUZZ_SECONDS'];
  if (seconds === undefined) return { numRuns: cases };
  return {
    numRuns: Number.MAX_SAFE_INTEGER,
    interruptAfterTimeLimit: (Number(seconds) * 1000) / parts,
    markInterruptAsFailure: false,
  };
}
