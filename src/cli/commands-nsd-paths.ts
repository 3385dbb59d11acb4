import type { Command } from 'commander';
import { InvalidArgumentError, Option } from 'commander';
import {
  connect,
  disconnectSubsystem,
  FabricsError,
  type FabricsTimeouts,
  ioFailsAfterMs,
  listSubsystems,
  Nvmet,
  NvmetError,
  timeoutsBelow,
  waitForNamespace,
} from 'napi-nvme';
import { FsError, type Reason } from '../common/errors.js';
import { parseDuration } from '../daemon/config-schema.js';
import { durationText, facts, print, printJson, UsageError } from './output.js';
import { parseCount, withJson } from './target.js';

/**
 * A namespace of this machine exported to other servers, and others' namespaces attached here: the paths by which one NSD has several servers.
 *
 * They work on this machine's kernel (nvmet through configfs, /dev/nvme-fabrics), not on a daemon, and need its privileges. One subsystem per server host:
 * shutting a server out (S4) is taking its subsystem away.
 */
type Transport = 'rdma' | 'tcp' | 'loop';
interface Place {
  readonly transport: Transport;
  readonly address?: string;
  readonly port: number;
}
interface Json {
  readonly json?: boolean;
}

const PORT = 4420;
/** The lease of a configuration that doesn't name one. */
const LEASE = '5s';
const NAMESPACE_MS = 30_000;

export function addNsdPathCommands(nsd: Command): void {
  withJson(withPlace(nsd.command('export')))
    .argument('<device>', 'block device of the namespace, on this machine')
    .requiredOption('--subsystem <nqn>', 'name of the subsystem to make; one for each server')
    .requiredOption('--host <nqn...>', 'host that may connect: of the one server (its /etc/nvme/hostnqn)')
    .option('--nsid <n>', 'its number there', parseCount(1, 0xfffffffe), 1)
    .description('give another server a path to a namespace of this machine (nvmet)')
    .addHelpText(
      'after',
      '\nExamples:\n' +
        '  holdfast nsd export /dev/nvme0n1 --subsystem nqn.2026-01.org.example:disk1-for-node2 \\\n' +
        '    --host nqn.2014-08.org.nvmexpress:uuid:… --transport rdma --address 10.0.0.1\n' +
        '  holdfast nsd export /dev/nvme0n1 --subsystem nqn.2026-01.org.example:disk1-here \\\n' +
        '    --host nqn.2014-08.org.nvmexpress:uuid:… --transport loop\n',
    )
    .action(
      async (device: string, options: Place & Json & { subsystem: string; host: readonly string[]; nsid: number }) => {
        const { subsystem, host, nsid } = options;
        await told('nsd.export', subsystem, options.transport, () =>
          new Nvmet().export({
            subsystemNqn: subsystem,
            devicePath: device,
            allowedHosts: host,
            nsid,
            port: placeOf(options),
          }),
        );
        const made = { subsystem, device, nsid, hosts: host, ...placeOf(options) };
        if (options.json === true) printJson(made);
        else print(`${device} is exported as ${subsystem} ${placeText(options)}`);
      },
    );

  withJson(nsd.command('unexport'))
    .argument('<subsystem>', 'as it was exported')
    .description('take an export back: no command of its hosts is under way then, and none can come')
    .addHelpText('after', '\nExample:\n  holdfast nsd unexport nqn.2026-01.org.example:disk1-for-node2\n')
    .action(async (subsystem: string, options: Json) => {
      const gone = await told('nsd.unexport', subsystem, null, () => new Nvmet().unexport(subsystem));
      if (!gone)
        throw new FsError('notFound', { op: 'nsd.unexport', object: subsystem, detail: 'there is no such export' });
      if (options.json === true) printJson({ subsystem });
      else print(`${subsystem} is not exported any more`);
    });

  withJson(withPlace(nsd.command('attach')))
    .argument('<subsystem>', 'as it is exported there')
    .option('--host <nqn>', 'name to connect by (default: that in /etc/nvme/hostnqn)')
    .option('--nsid <n>', 'which of its namespaces', parseCount(1, 0xfffffffe), 1)
    .option(
      '--lease <duration>',
      'leaseTtl of the daemons: a lost path fails its I/O and is given up before it is over',
      parseLease,
      parseLease(LEASE),
    )
    .description('attach a namespace that another machine exports, to be an NSD here')
    .addHelpText(
      'after',
      '\nExamples:\n' +
        '  holdfast nsd attach nqn.2026-01.org.example:disk1-for-node2 --transport rdma --address 10.0.0.1\n' +
        '  holdfast nsd attach nqn.2026-01.org.example:disk1-for-node2 --transport tcp --address 10.0.0.1 --lease 20s --json\n',
    )
    .action(async (subsystem: string, options: Place & Json & { host?: string; nsid: number; lease: number }) => {
      const timeouts = timeoutsBelow(options.lease);
      const made = await told('nsd.attach', subsystem, options.transport, () => attach(subsystem, options, timeouts));
      if (options.json === true) printJson({ ...made, subsystem, ...placeOf(options), ...timeouts });
      else
        print(
          facts([
            ['subsystem', subsystem],
            ['device', made.device],
            ['passthrough', made.characterDevice],
            ['controller', made.controller],
            ['silent target', `I/O fails within ${durationText(ioFailsAfterMs(timeouts))}`],
          ]),
        );
    });

  withJson(nsd.command('detach'))
    .argument('<subsystem>', 'as it was attached')
    .description('give the paths to a subsystem up')
    .addHelpText('after', '\nExample:\n  holdfast nsd detach nqn.2026-01.org.example:disk1-for-node2\n')
    .action(async (subsystem: string, options: Json) => {
      const controllers = await told('nsd.detach', subsystem, null, () => disconnectSubsystem(subsystem));
      if (controllers === 0)
        throw new FsError('notFound', { op: 'nsd.detach', object: subsystem, detail: 'it is not attached' });
      if (options.json === true) printJson({ subsystem, controllers });
      else print(`${subsystem} is detached`);
    });
}

async function attach(
  subsystem: string,
  options: Place & { readonly host?: string; readonly nsid: number },
  timeouts: FabricsTimeouts,
): Promise<{ readonly device: string; readonly characterDevice: string | null; readonly controller: string }> {
  const attached = (await listSubsystems()).find(({ nqn }) => nqn === subsystem);
  if (attached !== undefined && attached.controllers.length > 0)
    throw new FsError('busy', {
      op: 'nsd.attach',
      object: subsystem,
      detail: `it is attached already, by ${attached.controllers.map(({ name }) => name).join(', ')}`,
    });
  const controller = await connect({
    ...placeOf(options),
    nqn: subsystem,
    timeouts,
    ...(options.host === undefined ? {} : { hostNqn: options.host }),
  });
  try {
    const { blockPath, genericPath } = await waitForNamespace(controller.name, options.nsid, {
      timeoutMs: NAMESPACE_MS,
    });
    return { device: blockPath, characterDevice: genericPath, controller: controller.name };
  } catch (error) {
    await disconnectSubsystem(subsystem).catch(() => undefined);
    throw new FsError('notFound', {
      op: 'nsd.attach',
      object: subsystem,
      detail: `it was attached, but has no namespace ${options.nsid}`,
      cause: error,
    });
  }
}

function withPlace(command: Command): Command {
  return command
    .addOption(new Option('--transport <name>', 'how').choices(['rdma', 'tcp', 'loop']).default('rdma'))
    .option('--address <ip>', 'of the machine that exports (not for loop)')
    .option('--port <n>', 'port there (not for loop)', parseCount(1, 65_535), PORT);
}

function placeOf({ transport, address, port }: Place) {
  if (transport === 'loop') {
    if (address !== undefined) throw new UsageError('loop has no --address');
    return { transport };
  }
  if (address === undefined) throw new UsageError(`${transport} wants an --address`);
  return { transport, address, service: String(port) };
}
const placeText = ({ transport, address, port }: Place): string =>
  transport === 'loop' ? 'over loop' : `over ${transport} at ${address} port ${port}`;

function parseLease(text: string): number {
  const ms = parseDuration(text);
  if (ms === null) throw new InvalidArgumentError('Expected a duration like 5s.');
  try {
    timeoutsBelow(ms);
  } catch (error) {
    throw new InvalidArgumentError(error instanceof Error ? `${error.message}.` : String(error));
  }
  return ms;
}

const REASONS: Readonly<Record<string, Reason>> = {
  ENOENT: 'notFound',
  ENODEV: 'notSupported',
  EACCES: 'accessDenied',
  EPERM: 'notPermitted',
  EEXIST: 'exists',
  EBUSY: 'busy',
  EALREADY: 'busy',
  ETIMEDOUT: 'deadlinePassed',
  EINVAL: 'invalidArgument',
};

/** In words, with what to do about it where this machine lacks something. */
async function told<T>(op: string, object: string, transport: Transport | null, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof RangeError) throw new UsageError(error.message);
    if (!(error instanceof FabricsError || error instanceof NvmetError)) throw error;
    const reason = REASONS[error.code] ?? 'deviceError';
    throw new FsError(reason, { op, object, detail: `${error.message}${whatToDo(error, transport)}`, cause: error });
  }
}

function whatToDo(error: FabricsError | NvmetError, transport: Transport | null): string {
  if (error.code === 'EACCES' || error.code === 'EPERM') return '; run it as root';
  const missing = error.code === 'ENODEV' || error.code === 'EINVAL' || error.code === 'EOPNOTSUPP';
  if (error instanceof NvmetError) {
    if (!missing) return '';
    const modules = transport === null ? 'nvmet' : `nvmet nvmet-${transport === 'loop' ? 'loop' : transport}`;
    const all = transport === 'loop' ? 'nvmet nvme-loop' : modules;
    return `; try: modprobe -a ${all}; mount -t configfs none /sys/kernel/config`;
  }
  if ((missing || error.code === 'ENOENT') && transport !== null && error.operation === 'connect')
    return `; try: modprobe nvme-${transport}`;
  return '';
}
