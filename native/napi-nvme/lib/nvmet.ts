import fs from 'node:fs/promises';
import path from 'node:path';
import { bounded } from './bounded.js';
import { checkNqn, FABRICS_PORT, type FabricsAddress } from './fabrics.js';

/**
 * NVMe over Fabrics, the target's side: namespaces of this machine exported by the kernel's nvmet, through configfs.
 *
 * For fencing there is one subsystem per server host over the same device, each with the hosts that may connect. Taking one away goes in this
 * order (rule S4): the namespace is disabled, which waits for commands in flight; then the subsystem leaves its ports, which ends its
 * controllers; then the hosts go. After that nothing that was held back on the old path can land. Removing an allowed host alone would leave
 * live controllers.
 *
 * Fault model: nvmet not loaded, a device that can't be opened, names in use, half-made exports (undone), steps that are done already (skipped), a
 * device whose commands don't end (ETIMEDOUT: it is not shut out, and says so).
 */
export interface ExportOptions {
  readonly subsystemNqn: string;
  /** A block device, or a file. */
  readonly devicePath: string;
  /** Host NQNs that may connect; nobody else may. */
  readonly allowedHosts: readonly string[];
  readonly port: FabricsAddress;
  readonly nsid?: number;
  /** For hosts that reach one device by several subsystems. */
  readonly uuid?: string;
  readonly serial?: string;
  readonly model?: string;
}

export interface ExportedNamespace {
  readonly nsid: number;
  readonly devicePath: string;
  readonly enabled: boolean;
  readonly uuid: string;
}

export interface ExportedSubsystem {
  readonly nqn: string;
  readonly allowedHosts: readonly string[];
  readonly allowsAnyHost: boolean;
  readonly namespaces: readonly ExportedNamespace[];
  readonly ports: readonly (FabricsAddress & { readonly id: number })[];
}

export class NvmetError extends Error {
  override readonly name = 'NvmetError';
  constructor(
    /** The errno's name. */
    readonly code: string,
    readonly operation: 'export' | 'unexport' | 'allow' | 'list',
    readonly subsystemNqn: string,
    detail: string,
    cause?: unknown,
  ) {
    super(`${code}: ${detail}, ${operation} ${subsystemNqn}`, cause === undefined ? {} : { cause });
  }
}

/** The few things that are done in configfs; a fake one in tests. Paths are relative to nvmet's folder. */
export interface ConfigFs {
  exists(file: string): Promise<boolean>;
  list(folder: string): Promise<string[]>;
  read(file: string): Promise<string>;
  write(file: string, text: string): Promise<void>;
  mkdir(folder: string): Promise<void>;
  rmdir(folder: string): Promise<void>;
  link(target: string, file: string): Promise<void>;
  unlink(file: string): Promise<void>;
}

export function nvmetConfigFs(root = '/sys/kernel/config/nvmet'): ConfigFs {
  const at = (file: string): string => path.join(root, file);
  return {
    exists: (file) =>
      fs.lstat(at(file)).then(
        () => true,
        () => false,
      ),
    list: (folder) => fs.readdir(at(folder)),
    read: async (file) => (await fs.readFile(at(file), 'utf8')).trim(),
    write: (file, text) => fs.writeFile(at(file), text),
    mkdir: (folder) => fs.mkdir(at(folder)),
    rmdir: (folder) => fs.rmdir(at(folder)),
    link: (target, file) => fs.symlink(at(target), at(file)),
    unlink: (file) => fs.unlink(at(file)),
  };
}

const DRAIN_TIMEOUT_MS = 30_000;
const PORTS_MAX = 65_535;
const SERIAL_LENGTH_MAX = 20;
const MODEL_LENGTH_MAX = 40;

const subsystemFolder = (nqn: string): string => `subsystems/${nqn}`;
const codeOf = (error: unknown): string => {
  const code = (error as { code?: unknown }).code;
  return typeof code === 'string' ? code : 'EIO';
};
const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

export class Nvmet {
  constructor(private readonly config: ConfigFs = nvmetConfigFs()) {}

  /** @throws {NvmetError} EEXIST for a name in use; nothing is left of what failed. */
  async export(options: ExportOptions): Promise<void> {
    const nqn = checkName(options.subsystemNqn);
    const hosts = options.allowedHosts.map(checkName);
    const nsid = options.nsid ?? 1;
    const { serial, model } = options;
    if (!path.isAbsolute(options.devicePath) || /[\n\0]/.test(options.devicePath))
      throw new RangeError(`no absolute path: ${JSON.stringify(options.devicePath)}`);
    if (!Number.isInteger(nsid) || nsid < 1 || nsid > 0xfffffffe) throw new RangeError(`no namespace id: ${nsid}`);
    checkText('serial', serial, SERIAL_LENGTH_MAX);
    checkText('model', model, MODEL_LENGTH_MAX);
    await this.#ready('export', nqn);
    const { config } = this;
    const undo: (() => Promise<void>)[] = [];
    const make = async (folder: string): Promise<void> => {
      await config.mkdir(folder);
      undo.push(() => config.rmdir(folder));
    };
    const link = async (target: string, file: string): Promise<void> => {
      await config.link(target, file);
      undo.push(() => config.unlink(file));
    };
    let step = 'making the subsystem';
    try {
      const folder = subsystemFolder(nqn);
      await make(folder);
      await config.write(`${folder}/attr_allow_any_host`, '0');
      if (serial !== undefined) await config.write(`${folder}/attr_serial`, serial);
      if (model !== undefined) await config.write(`${folder}/attr_model`, model);
      step = `opening ${options.devicePath}`;
      const namespace = `${folder}/namespaces/${nsid}`;
      await make(namespace);
      await config.write(`${namespace}/device_path`, options.devicePath);
      if (options.uuid !== undefined) await config.write(`${namespace}/device_uuid`, options.uuid);
      await config.write(`${namespace}/enable`, '1');
      undo.push(() => config.write(`${namespace}/enable`, '0'));
      step = 'allowing its hosts';
      for (const host of hosts) {
        if (!(await config.exists(`hosts/${host}`))) await make(`hosts/${host}`);
        await link(`hosts/${host}`, `${folder}/allowed_hosts/${host}`);
      }
      step = 'opening its port';
      const port = await this.#port(options.port, make);
      await link(folder, `ports/${port}/subsystems/${nqn}`);
    } catch (error) {
      await undoAll(undo);
      const code = codeOf(error);
      const taken = code === 'EEXIST' && undo.length === 0;
      const detail = taken ? 'there is such a subsystem already' : `${step} failed: ${messageOf(error)}`;
      throw new NvmetError(code, 'export', nqn, detail, error);
    }
  }

  /**
   * Shuts everybody out and takes the export away, in the order of rule S4. When it resolves, no command of the subsystem's hosts is under way and
   * none can come. What is gone already is skipped; false if there was nothing.
   */
  async unexport(subsystemNqn: string, options: { readonly timeoutMs?: number } = {}): Promise<boolean> {
    const nqn = checkName(subsystemNqn);
    await this.#ready('unexport', nqn);
    const { config } = this;
    const folder = subsystemFolder(nqn);
    if (!(await config.exists(folder))) return false;
    const timeoutMs = options.timeoutMs ?? DRAIN_TIMEOUT_MS;
    let step = 'disabling its namespaces';
    try {
      const namespaces = await config.list(`${folder}/namespaces`);
      for (const nsid of namespaces) {
        const enable = config.write(`${folder}/namespaces/${nsid}/enable`, '0');
        await bounded(enable, timeoutMs, `namespace ${nsid} of ${nqn} drains`);
      }
      step = 'leaving its ports';
      const ports: string[] = [];
      for (const id of await config.list('ports')) {
        if (!(await config.exists(`ports/${id}/subsystems/${nqn}`))) continue;
        await bounded(config.unlink(`ports/${id}/subsystems/${nqn}`), timeoutMs, `${nqn} leaves port ${id}`);
        ports.push(id);
      }
      step = 'removing its hosts';
      const hosts = await config.list(`${folder}/allowed_hosts`);
      for (const host of hosts) await config.unlink(`${folder}/allowed_hosts/${host}`);
      step = 'removing what is left';
      for (const nsid of namespaces) await config.rmdir(`${folder}/namespaces/${nsid}`);
      await bounded(config.rmdir(folder), timeoutMs, `${nqn} goes`);
      // Others may use them, or begin to at this moment: then they stay.
      for (const host of hosts) await config.rmdir(`hosts/${host}`).catch(() => undefined);
      for (const id of ports)
        if ((await config.list(`ports/${id}/subsystems`)).length === 0)
          await config.rmdir(`ports/${id}`).catch(() => undefined);
      return true;
    } catch (error) {
      throw new NvmetError(codeOf(error), 'unexport', nqn, `${step} failed: ${messageOf(error)}`, error);
    }
  }

  /** Lets another host connect. */
  async allowHost(subsystemNqn: string, hostNqn: string): Promise<void> {
    const nqn = checkName(subsystemNqn);
    const host = checkName(hostNqn);
    await this.#ready('allow', nqn);
    const { config } = this;
    try {
      if (await config.exists(`${subsystemFolder(nqn)}/allowed_hosts/${host}`)) return;
      if (!(await config.exists(`hosts/${host}`))) await config.mkdir(`hosts/${host}`);
      await config.link(`hosts/${host}`, `${subsystemFolder(nqn)}/allowed_hosts/${host}`);
    } catch (error) {
      throw new NvmetError(codeOf(error), 'allow', nqn, messageOf(error), error);
    }
  }

  async list(): Promise<ExportedSubsystem[]> {
    await this.#ready('list', 'all subsystems');
    const { config } = this;
    const ports = new Map<string, FabricsAddress & { readonly id: number; readonly subsystems: readonly string[] }>();
    for (const id of await config.list('ports')) {
      const subsystems = await config.list(`ports/${id}/subsystems`);
      ports.set(id, { ...(await this.#address(id)), id: Number(id), subsystems });
    }
    const made: ExportedSubsystem[] = [];
    for (const nqn of await config.list('subsystems')) {
      const folder = subsystemFolder(nqn);
      const namespaces = await Promise.all(
        (await config.list(`${folder}/namespaces`)).map(async (nsid) => ({
          nsid: Number(nsid),
          devicePath: await config.read(`${folder}/namespaces/${nsid}/device_path`),
          enabled: (await config.read(`${folder}/namespaces/${nsid}/enable`)) === '1',
          uuid: await config.read(`${folder}/namespaces/${nsid}/device_uuid`),
        })),
      );
      made.push({
        nqn,
        allowedHosts: await config.list(`${folder}/allowed_hosts`),
        allowsAnyHost: (await config.read(`${folder}/attr_allow_any_host`)) === '1',
        namespaces,
        ports: [...ports.values()]
          .filter(({ subsystems }) => subsystems.includes(nqn))
          .map(({ subsystems: _, ...port }) => port),
      });
    }
    return made;
  }

  /** The id of the port with this address, which is made if there is none. */
  async #port(wanted: FabricsAddress, make: (folder: string) => Promise<void>): Promise<string> {
    const { config } = this;
    const taken = await config.list('ports');
    for (const id of taken) {
      const there = await this.#address(id);
      if (there.transport !== wanted.transport) continue;
      if (wanted.transport === 'loop') return id;
      if (there.address === wanted.address && there.service === (wanted.service ?? FABRICS_PORT)) return id;
    }
    let id = 1;
    while (taken.includes(String(id))) id++;
    if (id > PORTS_MAX) throw Object.assign(new Error('all ports are taken'), { code: 'ENOSPC' });
    const folder = `ports/${id}`;
    await make(folder);
    await config.write(`${folder}/addr_trtype`, wanted.transport);
    if (wanted.transport === 'loop') return String(id);
    if (wanted.address === undefined) throw Object.assign(new Error('the port has no address'), { code: 'EINVAL' });
    await config.write(`${folder}/addr_adrfam`, wanted.address.includes(':') ? 'ipv6' : 'ipv4');
    await config.write(`${folder}/addr_traddr`, wanted.address);
    await config.write(`${folder}/addr_trsvcid`, wanted.service ?? FABRICS_PORT);
    return String(id);
  }

  async #address(id: string): Promise<FabricsAddress> {
    const read = (name: string): Promise<string> => this.config.read(`ports/${id}/${name}`);
    const transport = (await read('addr_trtype')) as FabricsAddress['transport'];
    if (transport === 'loop') return { transport };
    return { transport, address: await read('addr_traddr'), service: await read('addr_trsvcid') };
  }

  async #ready(operation: NvmetError['operation'], nqn: string): Promise<void> {
    if (await this.config.exists('subsystems')) return;
    throw new NvmetError('ENODEV', operation, nqn, 'the kernel’s NVMe target is not there: mount configfs, load nvmet');
  }
}

async function undoAll(steps: readonly (() => Promise<void>)[]): Promise<void> {
  for (const step of [...steps].reverse()) await step().catch(() => undefined);
}

function checkText(name: string, text: string | undefined, lengthMax: number): void {
  if (text !== undefined && (text.length > lengthMax || !/^[ -~]+$/.test(text)))
    throw new RangeError(`${name} is printable and has at most ${lengthMax} characters`);
}

/** A name is also a folder's. */
function checkName(nqn: string): string {
  if (checkNqn(nqn).includes('/')) throw new RangeError(`a slash in ${nqn}`);
  return nqn;
}
