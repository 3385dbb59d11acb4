import type { FileSystemClient } from '../../client/file-system-client.js';
import { below, type Random } from '../../common/random.js';

/** What was synced and is left alone since. */
export type Promised = Map<string, Buffer>;

/**
 * Metadata and data in a directory, until it is over: what fails after that failed because of that. Of the files some are synced, and left alone from then on.
 * `forgiven`: an error that an operation may end with; then nothing is promised of what it was about.
 */
export async function killLoad(
  client: FileSystemClient,
  dir: string,
  random: Random,
  promised: Promised,
  isOver: () => boolean,
  forgiven: (error: unknown) => boolean = () => false,
): Promise<void> {
  const names: string[] = [];
  for (let i = 0; !isOver(); i++) {
    const name = `${dir}-${i}`;
    const any = (): string => names[below(random, names.length)]!;
    try {
      switch (names.length < 4 ? 0 : below(random, 8)) {
        case 0:
        case 1:
        case 2: {
          const bytes = Buffer.alloc(1 + below(random, [200, 9_000, 300_000][below(random, 3)]!), i % 251);
          const file = await client.open(name, 'w+');
          await file.write(bytes, 0, bytes.length, 0);
          if (below(random, 3) === 0) {
            await file.sync();
            promised.set(name, bytes);
          } else names.push(name);
          await file.close();
          break;
        }
        case 3:
          await client.truncate(any(), below(random, 20_000));
          break;
        case 4: {
          const at = below(random, names.length);
          await client.rename(names[at]!, `${name}-r`);
          names[at] = `${name}-r`;
          break;
        }
        case 5:
          await client.link(any(), `${name}-l`);
          names.push(`${name}-l`);
          break;
        case 6:
          await client.unlink(names.splice(below(random, names.length), 1)[0]!);
          break;
        case 7:
          await client.mkdir(`${name}-d`);
          break;
      }
    } catch (error) {
      if (isOver()) return;
      if (!forgiven(error)) throw error;
      // What it has done of it nobody knows.
      names.length = 0;
    }
  }
}
