import type { Socket } from 'node:net';
import { encodeFrame } from './frames.js';

/** Writes frames to a socket, all of one tick in one system call: corked at the first, uncorked when the tick ends. */
export class FrameWriter {
  #corked = false;

  constructor(readonly socket: Socket) {}

  /** @throws {FsError} tooLarge; nothing was written then. */
  send(frame: Parameters<typeof encodeFrame>[0]): void {
    const head = encodeFrame(frame);
    const { socket } = this;
    if (socket.destroyed || !socket.writable) return;
    if (!this.#corked) {
      this.#corked = true;
      socket.cork();
      process.nextTick(() => {
        this.#corked = false;
        socket.uncork();
      });
    }
    socket.write(head);
    if (frame.payload !== undefined && frame.payload.length > 0) socket.write(frame.payload);
  }
}
