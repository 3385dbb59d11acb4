import { connect, createServer, type Server, type Socket } from 'node:net';

/** A port in front of a port on loopback, whose connections can be cut: what a test breaks instead of the network. */
export class TcpCutter {
  readonly #sockets = new Set<Socket>();
  /** Connections that were cut. */
  cuts = 0;

  private constructor(readonly server: Server) {}

  static async start(port: number, target: number): Promise<TcpCutter> {
    const server = createServer((near) => cutter.#join(near, connect(target, '127.0.0.1')));
    const cutter = new TcpCutter(server);
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(port, '127.0.0.1', resolve);
    });
    return cutter;
  }

  #join(near: Socket, far: Socket): void {
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      this.#sockets.add(from);
      from.setNoDelay(true);
      from.on('error', () => undefined);
      from.on('close', () => {
        this.#sockets.delete(from);
        to.destroy();
      });
      from.pipe(to);
    }
  }

  cut(): void {
    this.cuts += this.#sockets.size / 2;
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  async stop(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.server.close(() => resolve()));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }
}
