import { z } from 'zod';

/**
 * The daemon's configuration as it is written: keys, types, defaults and what each key means. docs/configuration.md is
 * made from this table, and a test compares the two.
 */
const UNITS: Readonly<Record<string, number>> = {
  '': 1,
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
};
const DURATIONS: Readonly<Record<string, number>> = { ms: 1, s: 1000, min: 60_000 };

/** '256MiB', '2 GB', 4096: bytes; null when it is no size. */
export function parseSize(text: string | number): number | null {
  const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]*)$/.exec(String(text).trim());
  const unit = match === null ? undefined : UNITS[match[2]!];
  if (match === null || unit === undefined) return null;
  const bytes = Number(match[1]) * unit;
  return Number.isSafeInteger(bytes) ? bytes : null;
}

/** '5s', '500 ms', '2min': milliseconds; null when it is no duration. */
export function parseDuration(text: string): number | null {
  const match = /^(\d+(?:\.\d+)?)\s*(ms|s|min)$/.exec(text.trim());
  return match === null ? null : Number(match[1]) * DURATIONS[match[2]!]!;
}

const size = (minBytes: number, maxBytes: number) =>
  z.union([z.string(), z.number()]).transform((text, context) => {
    const bytes = parseSize(text);
    if (bytes !== null && bytes >= minBytes && bytes <= maxBytes) return bytes;
    const bounds = `from ${formatSize(minBytes)} to ${formatSize(maxBytes)}`;
    context.addIssue({
      code: 'custom',
      message: `expected a size like 256MiB, ${bounds}, not ${JSON.stringify(text)}`,
    });
    return z.NEVER;
  });
const duration = (minMs: number, maxMs: number) =>
  z.string().transform((text, context) => {
    const ms = parseDuration(text);
    if (ms !== null && ms >= minMs && ms <= maxMs) return ms;
    const message = `expected a duration like 5s or 500ms, from ${minMs} ms to ${maxMs} ms, not ${JSON.stringify(text)}`;
    context.addIssue({ code: 'custom', message });
    return z.NEVER;
  });

/** The largest binary unit that divides it. */
export function formatSize(bytes: number): string {
  for (const unit of ['TiB', 'GiB', 'MiB', 'KiB']) {
    const factor = UNITS[unit]!;
    if (bytes >= factor && bytes % factor === 0) return `${bytes / factor}${unit}`;
  }
  return `${bytes}B`;
}

const name = z
  .string()
  .regex(/^[A-Za-z0-9._-]{1,64}$/, 'expected 1 to 64 letters, digits, dots, dashes or underscores');
const host = z.string().min(1);
const path = z
  .string()
  .min(1)
  .refine((text) => !text.includes('\0'), 'expected a path without NUL');
const endpoint = z.string().regex(/^https?:\/\/[^\s/]+$/, 'expected an endpoint like http://127.0.0.1:2379');

const nsd = z.strictObject({
  name: name.describe('The name of the NSD, one of its kind in the cluster.'),
  path: path.describe('A block device, or a file. Relative paths start at the directory of the configuration file.'),
  size: size(2 ** 26, 2 ** 50)
    .optional()
    .describe('Creates the file with this size when it is missing; without it the path must exist.'),
  failureGroup: z.int().min(0).max(65_535).default(0).describe('NSDs that can fail together share a number.'),
  shared: z
    .boolean()
    .default(false)
    .describe('Other nodes have a path to it too: one of them serves it, `holdfast nsd takeover` moves it.'),
  format: z
    .boolean()
    .optional()
    .describe(
      'Makes an NSD of an empty device. Without it: yes, unless it is shared; of those that share it, say so at one.',
    ),
  target: z
    .strictObject({
      node: z.int().min(1).max(32_767).describe('The node on the machine that exports the namespace to this one.'),
      subsystem: z
        .string()
        .regex(/^nqn\.[\x21-\x7e]{1,219}$/, 'expected an NVMe qualified name (nqn.…)')
        .describe("The subsystem there that is this node's alone; shutting it shuts this node out of the NSD."),
    })
    .optional()
    .describe('Where the path of this node can be shut, when another takes over and this one does not answer.'),
  fault: z
    .strictObject({
      seed: z
        .int()
        .min(0)
        .max(2 ** 32 - 1)
        .describe('Decides what goes out early, and how.'),
      early: z
        .number()
        .min(0)
        .max(1)
        .optional()
        .describe('How likely an operation sends a held sector out early; 0.05 without it.'),
    })
    .optional()
    .describe(
      'For tests only, refused unless HOLDFAST_TEST_FAULTS=1 is in the environment: a killed daemon loses or tears a part of what was not flushed.',
    ),
});

export const configSchema = z.strictObject({
  clusterName: name.describe('The cluster. Everything in etcd is under `holdfast/<clusterName>/`.'),
  nodeId: z.int().min(1).max(32_767).describe('The node, 1 to 32767; one of its kind in the cluster, for good.'),
  name: name.describe('What people call the node.'),
  listen: z
    .strictObject({
      host: host.describe('Address that this node listens at and that the others reach it by.'),
      port: z.int().min(0).max(65_535).default(0).describe('Port; 0 takes any that is free.'),
    })
    .describe('Where the other nodes reach this one.'),
  etcd: z.array(endpoint).min(1).describe('Endpoints of etcd.'),
  clusterKeyFile: path.describe(
    'File with the secret that all nodes share: at least 16 bytes, readable by the daemon only.',
  ),
  socket: path.describe('Unix socket for clients on this machine; tools use the same path with `.admin` behind it.'),
  fabric: z
    .strictObject({
      rdma: z
        .enum(['auto', 'off', 'required'])
        .default('auto')
        .describe(
          '`auto`: RDMA with every peer that has it too, TCP otherwise; `required`: nothing else, and no start without.',
        ),
      device: z.string().min(1).optional().describe('RDMA device, as `rdma link` names it. Without it: the first.'),
      address: host
        .optional()
        .describe(
          'IPv4 address of that device that the others connect to. Without it: `listen.host` if it is one of the device, else its first.',
        ),
      port: z
        .int()
        .min(0)
        .max(65_535)
        .optional()
        .describe('Port for RDMA connections, a number of its own kind. Without it: the port listened at.'),
    })
    .prefault({})
    .describe('What carries messages and pages between nodes.'),
  tokenServer: z.boolean().default(true).describe('Whether this node serves tokens.'),
  pagePool: size(2 ** 23, 2 ** 44)
    .prefault('256MiB')
    .describe('Memory for cached pages and transfers.'),
  dirtyMax: size(2 ** 20, 2 ** 44)
    .optional()
    .describe('Bytes that may be dirty before writers wait. Without it: two fifths of the cache.'),
  dirtyAge: duration(10, 600_000).prefault('5s').describe('Dirty for this long: written out.'),
  logWriteMax: size(0, 512 * 1024)
    .optional()
    .describe(
      'A synchronous write, or what fsync finds dirty of a file, goes into the log first if it has at most so many bytes; 0: never. 64KiB without it.',
    ),
  accessTimes: z
    .enum(['relatime', 'none'])
    .default('relatime')
    .describe('Whether reads move atime: as `relatime` of Linux, or never.'),
  leaseTtl: duration(1000, 600_000).prefault('5s').describe('How long the others wait for a silent node.'),
  fileSystem: name
    .optional()
    .describe('The file system that clients of this node see. Without it: the only one of the cluster.'),
  nsds: z.array(nsd).default([]).describe('What this node serves.'),
  logLevel: z
    .enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal'])
    .default('info')
    .describe('Least urgent log line.'),
  metrics: z
    .strictObject({
      host: host.default('127.0.0.1').describe('Address of the metrics endpoint.'),
      port: z.int().min(0).max(65_535).describe('Port of the metrics endpoint; 0 takes any that is free.'),
    })
    .nullable()
    .default(null)
    .describe('Prometheus metrics over HTTP at `/metrics`, or null.'),
});

export type DaemonConfig = Readonly<z.output<typeof configSchema>>;
export type DaemonConfigInput = z.input<typeof configSchema>;
