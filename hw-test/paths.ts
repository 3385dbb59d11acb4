/** Where things are: the project, the cache of guest images, the results. */
import path from 'node:path';
import { fileURLToPath } from 'node:url';

/** This file runs from dist/hw-test. */
export const projectRoot = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');

export function cacheDirectory(): string {
  return path.resolve(process.env.HOLDFAST_HW_CACHE ?? path.join(projectRoot, 'node_modules/.cache/holdfast-hw'));
}

export function resultsDirectory(): string {
  return path.join(projectRoot, '.holdfast/hw-test');
}
