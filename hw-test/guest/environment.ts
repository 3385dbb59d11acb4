/** What a test may know about the machine it runs on: the variables of docs/hw-test.md, typed. */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

export interface HardwareEnvironment {
  readonly kind: 'guest' | 'native';
  /** From 1. */
  readonly guest: number;
  readonly guests: number;
  readonly address: string;
  readonly peer: string;
  readonly netdev: string;
  readonly rdma: string;
  /** Block devices of namespaces that may be overwritten. */
  readonly nvme: readonly string[];
  readonly loop: boolean;
  readonly share: string;
}

function variable(name: string): string {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set: hardware tests run under npm run hw-test`);
  return value;
}

export function hardware(): HardwareEnvironment {
  return {
    kind: variable('HOLDFAST_HW') === 'native' ? 'native' : 'guest',
    guest: Number(variable('HOLDFAST_HW_GUEST')),
    guests: Number(variable('HOLDFAST_HW_GUESTS')),
    address: variable('HOLDFAST_HW_ADDRESS'),
    peer: variable('HOLDFAST_HW_PEER'),
    netdev: variable('HOLDFAST_HW_NETDEV'),
    rdma: variable('HOLDFAST_HW_RDMA'),
    nvme: variable('HOLDFAST_HW_NVME')
      .split(',')
      .filter((device) => device !== ''),
    loop: variable('HOLDFAST_HW_LOOP') === '1',
    share: variable('HOLDFAST_HW_SHARE'),
  };
}

/** So many namespaces for this guest alone: each guest has its own by the same names, processes on one machine share them out. */
export function ownNamespaces(count: number): readonly string[] {
  const { kind, guest, nvme } = hardware();
  const first = kind === 'native' ? (guest - 1) * count : 0;
  const own = nvme.slice(first, first + count);
  if (own.length < count)
    throw new Error(`${first + count} namespaces are wanted that may be written to: name them with --nvme`);
  return own;
}

/** /dev/nvme0n1 -> /dev/ng0n1, the same namespace's character device. */
export function characterDevice(block: string): string {
  return block.replace(/\/nvme(\d+n\d+)$/, '/ng$1');
}

/** Where in the port's table the GID of our own IPv4 address is, as RoCE v2; tools other than RDMA CM must be told. */
export function gidIndex({ rdma, address }: HardwareEnvironment): number {
  const port = `/sys/class/infiniband/${rdma}/ports/1`;
  const hex = address.split('.').map((part) => Number(part).toString(16).padStart(2, '0'));
  const gid = `0000:0000:0000:0000:0000:ffff:${hex[0]}${hex[1]}:${hex[2]}${hex[3]}`;
  for (const name of readdirSync(path.join(port, 'gids'))) {
    if (readFileSync(path.join(port, 'gids', name), 'utf8').trim() !== gid) continue;
    if (readFileSync(path.join(port, 'gid_attrs/types', name), 'utf8').includes('v2')) return Number(name);
  }
  throw new Error(`${rdma} has no GID for ${address}`);
}
