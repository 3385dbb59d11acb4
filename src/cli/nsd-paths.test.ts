import { expect, it } from 'vitest';
import { nsdCommand } from './nsd-paths-testing.js';

const PLACE = ['--transport', 'tcp', '--address', '127.0.0.1'];

it.each([
  ['a lease that the kernel can’t count below', ['attach', 'nqn.x', ...PLACE, '--lease', '3s'], /a lease of at least/],
  ['no duration', ['attach', 'nqn.x', ...PLACE, '--lease', 'soon'], /Expected a duration/],
  ['no transport', ['attach', 'nqn.x', '--transport', 'fc'], /rdma, tcp, loop/],
  ['no address', ['attach', 'nqn.x', '--transport', 'tcp'], /tcp wants an --address/],
  ['an address over loop', ['attach', 'nqn.x', '--transport', 'loop', '--address', '::1'], /loop has no --address/],
  ['no IP address', ['attach', 'nqn.x', '--transport', 'tcp', '--address', 'here'], /no IP address: here/],
  ['no name', ['attach', 'disk1', ...PLACE], /no NVMe qualified name: "disk1"/],
  ['no host', ['export', '/dev/null', '--subsystem', 'nqn.x', ...PLACE], /--host/],
  ['no name to export by', ['export', '/dev/null', '--subsystem', 'x', '--host', 'nqn.h', ...PLACE], /qualified name/],
])(
  'a path to a namespace with %s is a mistake in the command, said before anything is tried',
  async (_, args, words) => {
    const error: unknown = await nsdCommand(...args).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(Error);
    expect((error as Error).message).toMatch(words);
    expect((error as Error).constructor.name).toMatch(/UsageError|CommanderError|InvalidArgumentError/);
  },
);
