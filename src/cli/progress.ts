import { type Bar, Presets, SingleBar } from 'cli-progress';
import { bytesText, countText, note } from './output.js';

/** Progress of a copy on stderr: a bar on a terminal, a line now and then elsewhere, nothing when it is `quiet`. */
const LINE_INTERVAL_MS = 2000;

export class Progress {
  #files = 0;
  #bytes = 0;
  #lastLineMs = performance.now();
  readonly #bar: Bar | null;

  constructor(
    readonly label: string,
    readonly totalFiles: number,
    readonly totalBytes: number,
    readonly quiet: boolean,
  ) {
    this.#bar =
      quiet || !process.stderr.isTTY
        ? null
        : new SingleBar(
            {
              stream: process.stderr,
              format: `${label} [{bar}] {percentage} % | {files} files | {size} | {eta_formatted}`,
              hideCursor: true,
            },
            Presets.legacy,
          );
    this.#bar?.start(Math.max(1, totalBytes + totalFiles), 0, { files: 0, size: bytesText(0) });
  }

  get files(): number {
    return this.#files;
  }

  /** What has been done beyond what was told before. */
  add(files: number, bytes: number): void {
    this.#files += files;
    this.#bytes += bytes;
    if (this.#bar !== null) {
      // A file counts like a byte, so that a tree of empty files moves too.
      this.#bar.update(this.#bytes + this.#files, { files: countText(this.#files), size: bytesText(this.#bytes) });
      return;
    }
    const nowMs = performance.now();
    if (this.quiet || nowMs - this.#lastLineMs < LINE_INTERVAL_MS) return;
    this.#lastLineMs = nowMs;
    note(
      `${this.label}: ${countText(this.#files)} of ${countText(this.totalFiles)} files, ${bytesText(this.#bytes)} of ${bytesText(this.totalBytes)}`,
    );
  }

  stop(): void {
    this.#bar?.stop();
  }
}
