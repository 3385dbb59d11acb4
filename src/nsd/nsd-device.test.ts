import fs from 'node:fs';
import path from 'node:path';
import { nsdDeviceSuite } from './nsd-device.suite.js';

nsdDeviceSuite('a file', () => {
  const directory = fs.mkdtempSync(path.join(process.cwd(), 'node_modules', '.nsd-device-'));
  const file = path.join(directory, 'device');
  fs.writeFileSync(file, '');
  fs.truncateSync(file, 32 << 20);
  return { path: file, access: 'file', close: () => fs.rmSync(directory, { recursive: true }) };
});
