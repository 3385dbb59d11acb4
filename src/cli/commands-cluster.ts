import type { Command } from 'commander';
import { ADMIN_METHODS, type FileSystemInfo, type NsdLine } from '../daemon/admin-api.js';
import { addCheckCommand } from './commands-check.js';
import { addNsdPathCommands } from './commands-nsd-paths.js';
import { bytesText, countText, durationText, facts, print, printJson, table, UsageError } from './output.js';
import { parseCount, type TargetOptions, withAdmin, withJson, withTarget } from './target.js';

/** What a cluster and its file systems are made of: status, node, nsd, token, fs. */
export function addClusterCommands(program: Command): void {
  withJson(withTarget(program.command('status')))
    .description('one daemon: its place in the cluster, its lease, its counters')
    .option('--counters', 'all counters')
    .addHelpText(
      'after',
      '\nExamples:\n  holdfast status\n  holdfast status --node 2 --counters\n  holdfast status --socket /run/holdfast/a.sock --json\n',
    )
    .action(async (options: TargetOptions & { counters?: boolean }) => {
      const [status, counters] = await withAdmin(options, async (admin) =>
        Promise.all([admin.call('status', {}), options.counters === true ? admin.call('counters', {}) : null]),
      );
      if (options.json === true) {
        printJson(counters === null ? status : { ...status, counters });
        return;
      }
      print(
        facts([
          ['cluster', `${status.clusterName} (${status.clusterId})`],
          ['node', `${status.nodeId} ${status.name}, incarnation ${status.incarnation}`],
          ['state', status.suspended ? 'suspended' : status.phase],
          ['epoch', status.epoch],
          ['nodes', `${status.nodes}, token servers ${status.tokenServers.join(', ') || 'none'}`],
          ['being expelled', status.expelling.join(', ') || 'none'],
          ['lease', status.leaseLeftMs > 0 ? `${durationText(status.leaseLeftMs)} left` : 'out'],
          ['file system', status.fileSystem ?? 'none mounted'],
          ...status.refusedNsds.map(({ nsd, nodeId, count, detail }): [string, string] => [
            'NSD refused',
            `${nsd} by node ${nodeId}, ${count} times: ${detail}`,
          ]),
          ...status.staleNsds.map(({ nsd, state }): [string, string] => ['NSD not up to date', `${nsd}: ${state}`]),
          ['up', `${durationText(status.uptimeMs)}, pid ${status.pid}, ${bytesText(status.residentBytes)} resident`],
          ['socket', status.socket],
          ['RDMA', `${status.fabric.device ?? 'none'}: ${status.fabric.reason}`],
        ]),
      );
      if (status.fabric.peers.length > 0) {
        print('');
        print(
          table(
            ['PEER', 'TRANSPORT', 'WHY'],
            status.fabric.peers.map((peer) => [peer.nodeId, peer.transport ?? 'not connected', peer.reason]),
          ),
        );
      }
      if (counters !== null) {
        print('');
        print(
          table(
            ['COUNTER', { name: 'VALUE', align: 'right' }],
            Object.entries(counters).map(([name, value]) => [name, countText(value)]),
          ),
        );
      }
    });

  const node = program.command('node').description('nodes of the cluster');
  withJson(withTarget(node.command('list')))
    .description('every node in the present view')
    .addHelpText('after', '\nExample:\n  holdfast node list --json\n')
    .action(async (options: TargetOptions) => {
      const nodes = await withAdmin(options, (admin) => admin.call('nodes', {}));
      if (options.json === true) printJson(nodes);
      else
        print(
          table(
            ['NODE', 'NAME', 'INCARNATION', 'ADDRESS', 'TOKENS', 'NSDS'],
            nodes.map((n) => [
              `${n.nodeId}${n.self ? '*' : ''}`,
              n.name,
              n.incarnation,
              n.address ?? 'library',
              n.tokenServer ? 'serves' : null,
              n.nsds.join(' ') || null,
            ]),
          ),
        );
    });

  withJson(withTarget(node.command('expel')))
    .argument('<node>', 'number of the node', parseCount(1, 65_535))
    .description('say that a node is dead: it is shut out everywhere, its log is redone, its tokens fall')
    .addHelpText(
      'after',
      '\nA node that lives all the same loses what it had not written.\n\nExample:\n  holdfast node expel 3 --node 1\n',
    )
    .action(async (number: number, options: TargetOptions) => {
      const expelled = await withAdmin(options, (admin) => admin.call('expel', { node: number }));
      if (options.json === true) printJson(expelled);
      else if (expelled.done) print(`node ${expelled.nodeId} (incarnation ${expelled.incarnation}) is out`);
      else
        print(
          `node ${expelled.nodeId} (incarnation ${expelled.incarnation}) is being expelled: holdfast status tells when it is over`,
        );
    });

  const nsd = program.command('nsd').description('network shared disks');
  withJson(withTarget(nsd.command('list')))
    .description('every NSD that the cluster knows')
    .addHelpText('after', '\nExample:\n  holdfast nsd list\n')
    .action(async (options: TargetOptions) => {
      const nsds = await withAdmin(options, (admin) => admin.call('nsds', {}));
      if (options.json === true) printJson(nsds);
      else
        print(
          table(
            [
              'NAME',
              { name: 'SIZE', align: 'right' },
              'FAILURE GROUP',
              'FILE SYSTEM',
              'SERVED BY',
              'SERVERS',
              'COPIES',
              'UUID',
            ],
            nsds.map((n) => [
              n.name,
              bytesText(n.lengthBytes),
              n.failureGroup,
              n.fileSystem ?? 'free',
              servedBy(n),
              servers(n.servers, n.serversUp),
              n.copies,
              n.uuid,
            ]),
          ),
        );
    });

  withJson(withTarget(nsd.command('takeover')))
    .argument('<nsd>', 'name of the NSD')
    .option('--to <node>', 'the server that is to serve it (default: the daemon that is asked)', parseCount(1, 65_535))
    .description('move an NSD to another of its servers; the present one lets go of it, or is shut out at the target')
    .addHelpText('after', '\nExamples:\n  holdfast nsd takeover nsd-1\n  holdfast nsd takeover nsd-1 --to 3\n')
    .action(async (name: string, options: TargetOptions & { to?: number }) => {
      const moved = await withAdmin(options, (admin) =>
        admin.call('nsdTakeover', { nsd: name, to: options.to ?? null }),
      );
      if (options.json === true) printJson(moved);
      else print(`${moved.name} is served by node ${moved.serving}`);
    });

  addNsdPathCommands(nsd);

  withJson(withTarget(program.command('locks')))
    .description('who has locked which files, who waits, and who denies what to others, on every node')
    .addHelpText('after', '\nFiles are told by inode: see holdfast stat.\n\nExample:\n  holdfast locks --json\n')
    .action(async (options: TargetOptions) => {
      const { locks, silent, more } = await withAdmin(options, (admin) => admin.call('locks', {}));
      if (options.json === true) {
        printJson({ locks, silent, more });
        return;
      }
      const right = (name: string) => ({ name, align: 'right' as const });
      print(
        table(
          ['NODE', right('PID'), 'FILE SYSTEM', right('INODE'), 'KIND', 'STATE', 'TYPE', right('START'), right('END')],
          locks.map((l) => [l.node, l.pid, l.fileSystem, l.inode, l.kind, l.state, l.type, l.start, l.end ?? 'end']),
        ),
      );
      for (const node of silent) print(`node ${node} did not answer`);
      if (more) print('... and more than a node tells at once');
    });

  const token = program.command('token').description('tokens');
  withJson(withTarget(token.command('list')))
    .description('who holds what, from every token server')
    .option('--limit <n>', 'at most so many', parseCount(1, 1_000_000), 100)
    .addHelpText('after', '\nExamples:\n  holdfast token list\n  holdfast token list --limit 10000 --json\n')
    .action(async (options: TargetOptions & { limit: number }) => {
      const list = await withAdmin(options, (admin) => admin.call('tokens', { limit: options.limit }));
      if (options.json === true) {
        printJson(list);
        return;
      }
      print(
        table(
          [
            'SERVER',
            'NODE',
            'FILE SYSTEM',
            'CLASS',
            { name: 'OBJECT', align: 'right' },
            'MODE',
            { name: 'START', align: 'right' },
            { name: 'END', align: 'right' },
          ],
          list.tokens.map((t) => [t.server, t.node, t.fileSystem, t.class, t.object, t.mode, t.start, t.end ?? 'end']),
        ),
      );
      if (list.more) print(`... and more; ask for them with --limit`);
    });

  const fs = program.command('fs').description('file systems');
  withJson(withTarget(fs.command('create')))
    .argument('<name>', 'name of the new file system')
    .description('make a file system over NSDs that belong to none')
    .option('--nsd <names...>', 'NSDs to use (default: every free one)')
    .option(
      '--metadata-copies <copies>',
      'of metadata and of logs: 1, or 2 on two NSDs (default: 2 where they are in two failure groups)',
      parseCount(1, 2),
    )
    .addHelpText('after', '\nExamples:\n  holdfast fs create data\n  holdfast fs create data --nsd nsd-1 nsd-2\n')
    .action(async (name: string, options: TargetOptions & { nsd?: string[]; metadataCopies?: 1 | 2 }) => {
      const refused = ADMIN_METHODS.createFileSystem.shape.name.safeParse(name).error?.issues[0];
      if (refused !== undefined) throw new UsageError(`a file system has ${refused.message}`);
      const made = await withAdmin(options, (admin) =>
        admin.call('createFileSystem', { name, nsds: options.nsd, metadataCopies: options.metadataCopies }),
      );
      if (options.json === true) printJson(made);
      else print(describe(made));
    });
  addCheckCommand(fs);
  withJson(withTarget(fs.command('info')))
    .argument('[name]', 'default: all')
    .description('what a file system is made of, and how full it is')
    .addHelpText('after', '\nExample:\n  holdfast fs info data\n')
    .action(async (name: string | undefined, options: TargetOptions) => {
      const all = await withAdmin(options, (admin) => admin.call('fileSystems', {}));
      const found = name === undefined ? all : all.filter((one) => one.name === name);
      if (name !== undefined && found.length === 0) throw new Error(`there is no file system ${name}`);
      if (options.json === true) printJson(name === undefined ? found : found[0]);
      else
        print(
          found.length === 0 ? 'no file systems; make one: holdfast fs create NAME' : found.map(describe).join('\n\n'),
        );
    });
}

const servers = (all: readonly number[], up: readonly number[]): string =>
  all.map((id) => (up.includes(id) ? `${id}` : `${id} (down)`)).join(' ') || 'none';

function describe({ name, uuid, createdMs, nsds, usage }: FileSystemInfo): string {
  const rows: [string, string | null][] = [
    ['name', name],
    ['uuid', uuid],
    ['created', new Date(createdMs).toISOString()],
    ['nsds', nsds.join(', ')],
  ];
  if (usage !== null) {
    const used = usage.totalBytes - usage.freeBytes;
    const percent = usage.totalBytes === 0 ? 0 : (100 * used) / usage.totalBytes;
    rows.push(
      ['block size', bytesText(usage.blockBytes)],
      ['size', bytesText(usage.totalBytes)],
      ['used', `${bytesText(used)} (${percent.toFixed(1)} %)`],
      ['inodes', `${countText(usage.totalInodes - usage.freeInodes)} used, ${countText(usage.freeInodes)} free`],
    );
  } else rows.push(['used', 'not known: it is not mounted at this daemon, or one of its NSDs is away']);
  return facts(rows);
}

const servedBy = ({ serving, moving }: NsdLine): string =>
  moving !== null ? `moving from ${moving.from} to ${moving.to}` : serving === null ? 'nobody' : String(serving);
