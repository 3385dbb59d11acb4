// An application thread of the stress test: hits as fast as it can until told to stop, and judges what it reads.
import { createRequire } from 'node:module';
import { parentPort, workerData } from 'node:worker_threads';

const { addonPath, mapId, entry, role, id, offsetBytes, lengthBytes, control } = workerData;
const map = createRequire(import.meta.url)(addonPath).openCacheMap(mapId);
/** Told to stop; threads that are ready; told to go; for each thread whether it waits for what it did to be seen. */
const stop = new Int32Array(control);
const pagesEach = 64;
const pageBytes = 16384;
const words = new Uint32Array(lengthBytes / 4);
const bytes = new Uint8Array(words.buffer);
const result = { role, id, hits: 0, hitBytes: 0, misses: [0, 0, 0, 0, 0, 0, 0, 0], torn: 0, records: 0 };

function count(moved) {
  if (moved >= 0) {
    result.hits++;
    result.hitBytes += moved;
  } else {
    result.misses[-moved - 1]++;
  }
  return moved;
}

const roles = {
  /** Writes the whole range with one stamp. */
  writer() {
    for (let stamp = 1; Atomics.load(stop, 0) === 0; stamp++) {
      words.fill(stamp * 8 + id);
      count(map.write(entry, offsetBytes, bytes, BigInt(stamp)));
    }
  },
  /** Reads the whole range: all of it has one stamp, or the read was torn. */
  reader() {
    while (Atomics.load(stop, 0) === 0) {
      if (count(map.read(entry, offsetBytes, bytes)) !== lengthBytes) continue;
      const stamp = words[0];
      for (let i = 1; i < words.length; i++) {
        if (words[i] !== stamp) {
          result.torn++;
          break;
        }
      }
    }
  },
  /** Reads page 0 while its slot is page 1 half of the time: page 0 is ones, whatever slot it is in. */
  watcher() {
    while (Atomics.load(stop, 0) === 0) {
      if (count(map.read(entry, offsetBytes, bytes)) === lengthBytes && words[0] !== 0x01010101) result.torn++;
    }
  },
  /** Appends records of (id, number, number...), until its pages are full. */
  appender() {
    for (let number = 1; Atomics.load(stop, 0) === 0; ) {
      words.fill(number);
      words[0] = id;
      const moved = count(map.write(entry, -1, bytes, 1n));
      if (moved === lengthBytes) {
        result.records = number++;
      } else if (moved === -5) {
        break;
      }
    }
  },
  /** Reads records while they are appended: whole ones, or none. */
  follower() {
    for (let record = 0; Atomics.load(stop, 0) === 0; ) {
      const moved = count(map.read(entry, record * lengthBytes, bytes));
      if (moved < 0) continue;
      if (moved === 0) {
        record = 0;
        continue;
      }
      if (moved !== lengthBytes || words[0] === 0 || words.subarray(2).some((word) => word !== words[1])) result.torn++;
      record++;
    }
  },
  /** Makes its pages dirty, says that it has, and waits until they have been found. */
  dirtier() {
    const first = (id - 1) * pagesEach;
    while (Atomics.load(stop, 0) === 0) {
      for (let page = first; page < first + pagesEach; page++) {
        while (count(map.write(entry, page * pageBytes, bytes, 1n)) !== lengthBytes && Atomics.load(stop, 0) === 0);
      }
      Atomics.store(stop, 2 + id, 1);
      while (Atomics.load(stop, 2 + id) === 1 && Atomics.load(stop, 0) === 0) Atomics.wait(stop, 2 + id, 1, 10);
    }
  },
};

// All threads start together.
Atomics.add(stop, 1, 1);
while (Atomics.load(stop, 2) === 0) Atomics.wait(stop, 2, 0);
roles[role]();
map.close();
parentPort.postMessage(result);
