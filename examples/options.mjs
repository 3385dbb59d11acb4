// The examples' command line: options of connect().
import { parseArgs } from 'node:util';

const { values } = parseArgs({
  options: {
    socket: { type: 'string' },
    etcd: { type: 'string', multiple: true },
    cluster: { type: 'string', default: 'dev' },
    key: { type: 'string' },
    fs: { type: 'string', default: 'data' },
  },
});

export function connectOptions() {
  if (values.socket !== undefined) return { socket: values.socket };
  if (values.etcd === undefined || values.key === undefined) {
    console.error('Say where to connect: --socket PATH, or --etcd URL --key FILE [--cluster NAME] [--fs NAME].');
    process.exit(2);
  }
  return { cluster: { etcd: values.etcd, name: values.cluster, keyFile: values.key }, fileSystem: values.fs };
}
