/** Makes the per-sector checksums (S1). Handed in: the native core's in the daemon, the table-driven one elsewhere. */
export interface Checksums {
  /** CRC32C (Castagnoli) of `sectorCount` sectors from `offsetBytes` on, into `out` from `outIndex` on. */
  sectors(bytes: Uint8Array, offsetBytes: number, sectorCount: number, out: Uint32Array, outIndex: number): void;
  /** CRC32C of all the bytes, whatever their number. */
  bytes(bytes: Uint8Array): number;
}
