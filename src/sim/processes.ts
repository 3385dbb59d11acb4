import { fork } from 'node:child_process';
import { availableParallelism } from 'node:os';

/** Jobs spread over the cores: one process each, one job after the other. */

/** In a child: until there are no more. */
export function serveJobs<Job, Report>(run: (job: Job) => Promise<Report>): void {
  process.on('message', (job: Job) => {
    void run(job).then((report) => process.send!(report));
  });
  process.on('disconnect', () => process.exit(0));
}

/** `next` gives null when there are no more. The children run `program` with `args`, which must serve. */
export async function spreadJobs<Job, Report>(
  program: string,
  args: readonly string[],
  next: () => Job | null,
  done: (report: Report) => void,
): Promise<void> {
  const processes = Math.max(1, Math.min(8, availableParallelism()));
  await Promise.all(
    Array.from(
      { length: processes },
      () =>
        new Promise<void>((resolve, reject) => {
          const child = fork(program, args, { execArgv: process.execArgv });
          const feed = (): void => {
            const job = next();
            if (job !== null) child.send(job as object);
            else child.disconnect();
          };
          child.on('message', (report) => {
            done(report as Report);
            feed();
          });
          child.on('error', reject);
          child.on('exit', (code) =>
            code === 0 ? resolve() : reject(new Error(`a process of the simulator ended with ${code}`)),
          );
          feed();
        }),
    ),
  );
}
