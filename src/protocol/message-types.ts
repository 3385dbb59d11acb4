/** Every type of message between nodes. Numbers are the wire's and never reused. */
export const MessageType = {
  // NSD: requests
  nsdRead: 10,
  nsdWrite: 11,
  nsdFlush: 12,
  nsdInfo: 13,
  nsdDiscard: 14,
  nsdFence: 15,
  nsdRelease: 16,
  nsdShutOut: 17,
  nsdVersions: 18,
  // Tokens: one-way, both directions
  tokenToServer: 20,
  tokenToClient: 21,
  // Tokens: requests of tools
  tokenList: 22,
  tokenExpel: 23,
  // File locks: one-way, both directions
  lockToServer: 24,
  lockToClient: 25,
  /** Tools ask a node what its programs have locked. */
  lockReport: 26,
  // Cluster
  ping: 30,
  /** A peer measures the way to us. */
  fabricTest: 31,
  clientCall: 40,
  // File system: requests
  fsSettle: 50,
  /** To the allocation manager: where is space; who holds regions. */
  fsRegion: 51,
  fsHolders: 52,
  /** To a region's holder: space to be freed (S6). */
  fsShip: 53,
  /** To the owner of a shared file: read, write, sync. */
  fsShared: 54,
} as const;
export type MessageType = (typeof MessageType)[keyof typeof MessageType];
