/** What an RDMA link is made with. */
export interface RdmaSettings {
  /** Receives posted per link, and the size of each: what a peer may send without hearing from us. */
  readonly receives: number;
  readonly unitBytes: number;
  /** Units that may be under way from us and not inline. */
  readonly sendSlots: number;
  /** Work requests under way per link. */
  readonly sendsMax: number;
  /** Up to so many bytes a unit travels in its work request. As far as the device takes them. */
  readonly inlineBytes: number;
  /** A window of at most so many bytes is not bound: its bytes travel in messages. docs/performance.md has the measurement. */
  readonly oneSidedAboveBytes: number;
  /** One write or read; and how many bytes of them are under way at once, so that messages needn't wait for long. */
  readonly pieceBytes: number;
  readonly bulkBytesMax: number;
  /** The watchdog: work that has not completed by then ends the link. */
  readonly workDeadlineMs: number;
  /** Type-2 windows in use at once, over all links. */
  readonly windowsMax: number;
  /** Links at once, over all peers. */
  readonly linksMax: number;
}

export const DEFAULT_RDMA_SETTINGS: RdmaSettings = {
  receives: 64,
  unitBytes: 8192,
  sendSlots: 64,
  sendsMax: 512,
  inlineBytes: 256,
  oneSidedAboveBytes: 16 * 1024,
  pieceBytes: 256 * 1024,
  bulkBytesMax: 4 * 1024 * 1024,
  workDeadlineMs: 10_000,
  windowsMax: 16_384,
  linksMax: 1024,
};
