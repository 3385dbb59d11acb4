import { connect, createServer, type Server, type Socket } from 'node:net';

/** A socket in front of a socket, that can be cut: what a test breaks instead of the daemon. */
export class Cutter {
  readonly #pairs = new Set<Socket>();
  /** Nobody gets through while true. */
  refusing = false;
  /** Connections that came through since the start. */
  accepted = 0;

  private constructor(
    readonly path: string,
    readonly server: Server,
  ) {}

  static async start(path: string, target: string): Promise<Cutter> {
    const server = createServer((near) => cutter.#accept(near, target));
    const cutter = new Cutter(path, server);
    await new Promise<void>((resolve) => server.listen(path, resolve));
    return cutter;
  }

  #accept(near: Socket, target: string): void {
    if (this.refusing) {
      near.destroy();
      return;
    }
    this.accepted++;
    const far = connect(target);
    for (const [a, b] of [
      [near, far],
      [far, near],
    ] as const) {
      this.#pairs.add(a);
      a.on('error', () => undefined);
      a.on('data', (chunk) => b.write(chunk));
      a.on('close', () => {
        this.#pairs.delete(a);
        b.destroy();
      });
    }
  }

  cut(): void {
    for (const socket of this.#pairs) socket.destroy();
  }

  async stop(): Promise<void> {
    this.cut();
    await new Promise<void>((resolve) => this.server.close(() => resolve()));
  }
}
