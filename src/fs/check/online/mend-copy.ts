/**
 * Writes a sector anew to both its copies, as the good one has it. The caller has the token that orders its writes, exclusively.
 *
 * No record is needed: whoever finds only one copy written finds what there was before, two copies that are not the same.
 */
import { SECTOR_BYTES } from '../../../common/units.js';
import { copiesOf } from '../../../nsd/copies.js';
import { durably } from '../../durable.js';
import { keyOf } from '../../log/logged-sectors.js';
import type { Volume } from '../../volume.js';
import type { Uneven } from '../check-storage.js';

export async function mendCopy(volume: Volume, bad: Uneven): Promise<void> {
  await durably(volume.parts.nsds, copiesOf(bad.nsd), 'mendedCopy', () => writeBoth(volume, bad));
  volume.counters.add('check.copiesMended');
}

async function writeBoth(volume: Volume, { nsd, sector, bytes }: Uneven): Promise<void> {
  const { sectors, log, parts } = volume;
  const place = { nsd, sector };
  const key = keyOf(place);
  await volume.withStaging(SECTOR_BYTES, async (staged, { offsetBytes }) => {
    for (;;) {
      volume.checkOpen('fs.check');
      while (sectors.isWriting(key)) await sectors.writeEnded(key);
      // It says something newer, which goes to both.
      if (sectors.latest(key) !== undefined && log !== null) {
        await log.writeInPlace([key]);
        return;
      }
      await volume.learnVersions([{ ...place, count: 1 }]);
      if (sectors.isWriting(key) || sectors.latest(key) !== undefined) continue;
      staged.set(bytes);
      const write = sectors.beginWrite(place);
      let succeeded = false;
      try {
        const memory = { offsetBytes, lengthBytes: SECTOR_BYTES };
        await parts.nsds.write([{ ...place, memory, versions: Uint32Array.of(write.version) }]);
        succeeded = true;
      } finally {
        sectors.endWrite(write, succeeded);
      }
      return;
    }
  });
}
