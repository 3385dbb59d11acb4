// Joins a cluster as a node of its own, or a local daemon as a proxied client, writes a file and reads it back.
//   node examples/hello.mjs --socket .holdfast/node-1/client.sock
//   node examples/hello.mjs --etcd http://127.0.0.1:2379 --cluster dev --key .holdfast/cluster.key --fs data
import { connect } from 'holdfast';
import { connectOptions } from './options.mjs';

const fs = await connect(connectOptions());

await fs.mkdir('/hello', { recursive: true });
await fs.writeFile('/hello/world.txt', 'Hello from one node\n');
await fs.appendFile('/hello/world.txt', 'and from any other\n');
console.log(await fs.readFile('/hello/world.txt', 'utf8'));

// A file that is open and cached is read at memory speed, without a promise.
const file = await fs.open('/hello/world.txt');
const buffer = Buffer.alloc(5);
const bytesRead = file.readSync(buffer, 0, buffer.length, 0);
console.log(`${bytesRead} bytes, at once: ${buffer}`);
await file.close();
await fs.close();
