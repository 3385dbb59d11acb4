/** Names for what findings are about, as they were when the check came by. */
import type { InodeNumber } from '../../../common/ids.js';
import { ROOT_DIRECTORY } from '../../layout.js';
import { lookAtDirectory } from './look-at-directory.js';
import type { NamePass } from './name-pass.js';
import type { OnlineContext } from './online-context.js';

interface Naming {
  readonly directory: InodeNumber;
  readonly name: Uint8Array;
}

export class OnlinePaths {
  readonly #files = new Map<InodeNumber, Naming>();

  private constructor(private readonly second: NamePass) {}

  /** Directories' names are known; files' are looked for, all at once, when there are any. */
  static async for(context: OnlineContext, second: NamePass, wanted: Iterable<InodeNumber>): Promise<OnlinePaths> {
    const paths = new OnlinePaths(second);
    const { directories } = second.first;
    const files = new Set([...wanted].filter((ino) => ino > ROOT_DIRECTORY && !directories.has(ino)));
    if (files.size === 0) return paths;
    for (const directory of directories.keys()) {
      await context.find(directory);
      await lookAtDirectory(context.view(), context.volume, directory, ({ ino, name }) => {
        if (files.has(ino)) paths.#files.set(ino, { directory, name });
      });
    }
    return paths;
  }

  /** Null: nothing leads to it. */
  pathOf(ino: InodeNumber): string | null {
    const parts: string[] = [];
    const seen = new Set<InodeNumber>();
    for (let at = ino; at !== ROOT_DIRECTORY; ) {
      const naming = this.second.namedIn.get(at) ?? this.#files.get(at);
      if (naming === undefined || seen.has(at)) return null;
      seen.add(at);
      parts.unshift(Buffer.from(naming.name).toString('utf8'));
      at = naming.directory;
    }
    return `/${parts.join('/')}`;
  }
}
