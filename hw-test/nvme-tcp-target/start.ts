import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import type { Order, Report } from './main.js';
import type { FaultSelector, TargetOptions } from './target.js';

/** A target in a process of its own, for the time of a test. */
export class TargetProcess {
  #port = 0;
  #held = 0;
  #hostsReady = 0;
  #nextId = 0;
  #changed: (() => void)[] = [];
  readonly #waiting = new Map<number, { resolve(report: Report): void; reject(error: Error): void }>();
  #gone: Error | null = null;

  private constructor(private readonly child: ChildProcess) {
    child.on('message', (report: Report) => this.#take(report));
    child.on('exit', (code, signal) => {
      this.#gone = new Error(`the target has ended with ${signal ?? code}`);
      for (const { reject } of this.#waiting.values()) reject(this.#gone);
      this.#waiting.clear();
      this.#notify();
    });
  }

  /** `project` is the project's folder, as built. */
  static async start(project: string, options: TargetOptions): Promise<TargetProcess> {
    const program = path.join(project, 'dist/hw-test/nvme-tcp-target/main.js');
    const child = fork(program, [JSON.stringify(options)], { serialization: 'advanced', execArgv: [] });
    const target = new TargetProcess(child);
    await target.#until(() => target.#port !== 0);
    return target;
  }

  get port(): string {
    return String(this.#port);
  }

  async hold(selector: FaultSelector): Promise<void> {
    await this.#order({ kind: 'hold', selector });
  }
  async refuse(selector: FaultSelector, status: number, count = 1): Promise<void> {
    await this.#order({ kind: 'refuse', selector, status, count });
  }
  async heal(): Promise<void> {
    await this.#order({ kind: 'heal' });
  }
  /** Until so many hosts are there again, each with one queue for I/O. */
  async powerLoss(hosts: number): Promise<void> {
    const before = this.#hostsReady;
    await this.#order({ kind: 'powerLoss' });
    await this.#until(() => this.#hostsReady >= before + hosts);
  }
  async enrol(count: number, firstKey: bigint): Promise<void> {
    await this.#order({ kind: 'enrol', count, firstKey });
  }
  async contents(offset: number, lengthBytes: number): Promise<Buffer> {
    const report = await this.#order({ kind: 'contents', offset, lengthBytes });
    return Buffer.from(report.kind === 'done' ? (report.contents ?? []) : []);
  }
  /** Until it holds back so many commands, at least. */
  untilHeld(count: number): Promise<void> {
    return this.#until(() => this.#held >= count);
  }

  async stop(): Promise<void> {
    if (this.#gone !== null) return;
    const ended = once(this.child, 'exit');
    this.child.kill('SIGKILL');
    await ended;
  }

  #order(order: Order): Promise<Report> {
    if (this.#gone !== null) return Promise.reject(this.#gone);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.child.send({ id, order });
    });
  }

  #take(report: Report): void {
    if (report.kind === 'listening') this.#port = report.port;
    else if (report.kind === 'held') this.#held = report.count;
    else if (report.kind === 'hostReady') this.#hostsReady++;
    else {
      this.#waiting.get(report.id)?.resolve(report);
      this.#waiting.delete(report.id);
    }
    this.#notify();
  }

  #notify(): void {
    const changed = this.#changed;
    this.#changed = [];
    for (const look of changed) look();
  }

  /** The test's own time limit ends it. */
  async #until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      if (this.#gone !== null) throw this.#gone;
      await new Promise<void>((resolve) => this.#changed.push(resolve));
    }
  }
}
