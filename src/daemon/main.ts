#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import { pino } from 'pino';
import { serveSocket } from '../client/socket-server.js';
import { FsError } from '../common/errors.js';
import { nodeId } from '../common/ids.js';
import { PAGE_BYTES } from '../common/units.js';
import { daemonAdmin, identityOf } from './admin.js';
import { adminSocketPath } from './admin-api.js';
import { serveAdmin } from './admin-server.js';
import { loadConfig } from './config.js';
import type { DaemonConfig } from './config-schema.js';
import { startNode } from './engine.js';
import { serveMetrics } from './main-metrics.js';
import { Mounts } from './mounts.js';
import type { NsdConfig } from './open-stores.js';
import { systemClock } from './system-clock.js';

/**
 * holdfastd: one node as a process. Owns the order of starting (engine, clients' socket, admin socket, metrics) and of ending
 * (the opposite), the log, and the signals.
 *
 * Fault model: SIGTERM and SIGINT end it cleanly within a bound; a second signal, or a failure while ending, at once. An
 * engine that can't go on takes the process down with it (F7): never serve what may be wrong.
 */
const STOP_TIMEOUT_MS = 30_000;
const Exit = { ok: 0, failed: 1, usage: 2 } as const;

async function run(configFile: string): Promise<void> {
  let config: DaemonConfig;
  try {
    config = loadConfig(configFile);
  } catch (error) {
    process.stderr.write(`holdfastd: ${FsError.from(error, 'configuration', configFile).message}\n`);
    process.exitCode = Exit.usage;
    return;
  }
  const logger = pino(
    { level: config.logLevel, base: { node: config.nodeId }, timestamp: pino.stdTimeFunctions.isoTime },
    pino.destination({ fd: 1, sync: true }),
  );
  const undo: (() => Promise<void>)[] = [];
  let ending = false;
  const end = async (code: number, why: string): Promise<void> => {
    if (ending) return;
    ending = true;
    logger.info({ why }, 'ending');
    setTimeout(() => {
      logger.error({ afterMs: STOP_TIMEOUT_MS }, 'did not end in time');
      process.exit(Exit.failed);
    }, STOP_TIMEOUT_MS).unref();
    for (let step = undo.pop(); step !== undefined; step = undo.pop()) {
      try {
        await step();
      } catch (error) {
        logger.error({ error: String(error) }, 'ending: a step failed');
        code = Exit.failed;
      }
    }
    logger.info({ code }, 'ended');
    process.exit(code);
  };
  let starting = true;
  const stop = new AbortController();
  const signalled = (signal: NodeJS.Signals): void => {
    if (ending || stop.signal.aborted) process.exit(Exit.failed);
    if (!starting) void end(Exit.ok, signal);
    else {
      logger.info({ signal }, 'stopped before it was up');
      stop.abort();
    }
  };
  process.on('SIGTERM', signalled);
  process.on('SIGINT', signalled);
  process.on('uncaughtException', (error) => {
    logger.fatal({ error: error.stack ?? String(error) }, 'an error that nobody handled');
    process.exit(Exit.failed);
  });

  logger.info({ config: configFile, pid: process.pid }, 'starting');
  try {
    const engine = await startNode(
      {
        clusterName: config.clusterName,
        etcd: config.etcd,
        keyFile: config.clusterKeyFile,
        nodeId: nodeId(config.nodeId),
        name: config.name,
        listen: config.listen,
        rdma: {
          mode: config.fabric.rdma,
          device: config.fabric.device,
          address: config.fabric.address,
          port: config.fabric.port,
        },
        tokenServer: config.tokenServer,
        pagePoolBytes: config.pagePool,
        leaseTtlMs: config.leaseTtl,
        nsds: config.nsds.map(nsdConfig),
        fileSystem: config.fileSystem ?? null,
        settings: {
          cache: {
            writeBehindAgeMs: config.dirtyAge,
            ...(config.dirtyMax === undefined ? {} : { dirtyPagesMax: Math.floor(config.dirtyMax / PAGE_BYTES) }),
          },
          fs: {
            accessTimes: config.accessTimes,
            ...(config.logWriteMax === undefined ? {} : { logWriteBytesMax: config.logWriteMax }),
          },
        },
        logger,
      },
      stop.signal,
    );
    undo.push(() => engine.close());
    const mounts = new Mounts({ clock: systemClock, counters: engine.metrics, logger }, async (name) =>
      engine.node.mount(await identityOf(engine, name, 'mount')),
    );
    engine.node.onLease = { suspended: () => mounts.suspend(), resumed: () => mounts.resume() };
    undo.push(() => mounts.close());
    // What the kernel keeps is nobody's any more.
    engine.onFailure(() => void mounts.close());
    engine.onFailure((why) => void end(Exit.failed, why.message));
    const clients = await serveSocket(config.socket, engine.fileSystem, {
      logger,
      counters: engine.metrics,
      report: () => engine.counters(),
    });
    undo.push(() => clients.close());
    if (config.metrics !== null) {
      const metrics = await serveMetrics(config.metrics, async () => {
        await engine.refusedNsds();
        return engine.counters();
      });
      undo.push(() => metrics.close());
      logger.info({ port: metrics.port }, 'metrics');
    }
    // Last: whoever can ask for the status finds a daemon that is ready.
    const admin = await serveAdmin(adminSocketPath(config.socket), daemonAdmin(engine, config, mounts), {
      logger,
      counters: engine.metrics,
    });
    undo.push(() => admin.close());
    starting = false;
    if (stop.signal.aborted) {
      await end(Exit.ok, 'stopped before it was up');
      return;
    }
    logger.info({ socket: config.socket, ...engine.membership.self }, 'ready');
  } catch (error) {
    if (stop.signal.aborted) {
      await end(Exit.ok, 'stopped before it was up');
      return;
    }
    logger.fatal({ error: error instanceof Error ? (error.stack ?? error.message) : String(error) }, 'did not start');
    process.stderr.write(`holdfastd: ${FsError.from(error, 'start').message}\n`);
    await end(Exit.failed, 'start failed');
  }
}

const program = new Command('holdfastd')
  .description('A node of a Holdfast cluster.')
  .requiredOption('--config <file>', 'YAML configuration, see docs/configuration.md')
  .addHelpText('after', '\nExample:\n  holdfastd --config /etc/holdfast/node-1.yaml\n')
  .exitOverride()
  .action((options: { config: string }) => run(options.config));

try {
  await program.parseAsync();
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  process.exitCode = error.exitCode === 0 ? Exit.ok : Exit.usage;
}

function nsdConfig({
  name,
  path,
  size,
  failureGroup,
  shared,
  format,
  target,
  fault,
}: DaemonConfig['nsds'][number]): NsdConfig {
  return {
    name,
    path,
    sizeBytes: size ?? null,
    failureGroup,
    shared,
    ...(format === undefined ? {} : { format }),
    ...(target === undefined ? {} : { target: { nodeId: nodeId(target.node), subsystem: target.subsystem } }),
    ...(fault === undefined
      ? {}
      : { fault: { seed: fault.seed, ...(fault.early === undefined ? {} : { early: fault.early }) } }),
  };
}
