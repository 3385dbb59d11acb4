import { Nvmet, NvmetError } from 'napi-nvme';
import { FsError } from '../common/errors.js';
import type { TargetPort } from './nsd-serving.js';

/**
 * Shuts servers out at this machine's NVMe target (S4): the namespace of the server's subsystem is disabled, which waits for the commands that are
 * there, then the subsystem leaves its ports, which ends its controllers, then its hosts go.
 *
 * Fault model: nvmet may be missing, commands may not end (it isn't shut then, and is asked again). A subsystem that isn't there proves nothing, since its
 * name may be wrong: it counts as shut only if this daemon has shut it.
 */
export class NvmetTarget implements TargetPort {
  readonly #nvmet: Pick<Nvmet, 'unexport'>;
  readonly #shut = new Set<string>();

  constructor(nvmet: Pick<Nvmet, 'unexport'> = new Nvmet()) {
    this.#nvmet = nvmet;
  }

  async shutOut(subsystem: string): Promise<void> {
    const refuse = (detail: string, cause?: unknown): FsError =>
      new FsError('nsdUnavailable', { op: 'nsd.shutOut', object: subsystem, detail, cause });
    let wasThere: boolean;
    try {
      wasThere = await this.#nvmet.unexport(subsystem, { timeoutMs: DRAIN_MS });
    } catch (error) {
      throw refuse(error instanceof NvmetError ? error.message : String(error), error);
    }
    if (wasThere) this.#shut.add(subsystem);
    else if (!this.#shut.has(subsystem)) throw refuse('this machine exports no such subsystem');
  }
}

const DRAIN_MS = 20_000;
