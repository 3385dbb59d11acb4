/** Branded ids: numbers that can't be mixed up. */
declare const brand: unique symbol;
type Branded<T, Name> = T & { readonly [brand]: Name };

/** A node of the cluster, 1 to 65535; fixed for its life, chosen in the configuration or at join. */
export type NodeId = Branded<number, 'NodeId'>;
/** One life of a node: counted up by the cluster store at every join, never reused. */
export type Incarnation = Branded<number, 'Incarnation'>;
/** A configuration of the cluster's membership: moves up by compare-and-swap, from 1. */
export type Epoch = Branded<number, 'Epoch'>;
/** Inode number within the file system; a safe integer, 1 is the inode file itself, 2 the root directory. */
export type InodeNumber = Branded<number, 'InodeNumber'>;
/** A file system among those of its cluster, from 0; given by the cluster store when it is made, never reused. */
export type FileSystemNumber = Branded<number, 'FileSystemNumber'>;
/** Token objects carry it beside an inode number, within a safe integer. */
export const FILE_SYSTEM_NUMBER_MAX = 2047;
/** Index of an NSD in the superblock's list; what block pointers carry. */
export type NsdIndex = Branded<number, 'NsdIndex'>;

export const nodeId = (value: number): NodeId => value as NodeId;
export const incarnation = (value: number): Incarnation => value as Incarnation;
export const epoch = (value: number): Epoch => value as Epoch;
export const inodeNumber = (value: number): InodeNumber => value as InodeNumber;
export const fileSystemNumber = (value: number): FileSystemNumber => value as FileSystemNumber;
export const nsdIndex = (value: number): NsdIndex => value as NsdIndex;
