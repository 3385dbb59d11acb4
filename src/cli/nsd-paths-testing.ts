import { Command } from 'commander';
import { addNsdPathCommands } from './commands-nsd-paths.js';

/** `holdfast nsd …` within this process, for tests: what it prints, or the error that main.ts would say. */
export async function nsdCommand(...args: readonly string[]): Promise<string> {
  const program = new Command().exitOverride().configureOutput({ writeErr: () => undefined });
  addNsdPathCommands(program.command('nsd'));
  let printed = '';
  const write = process.stdout.write;
  process.stdout.write = (text: string | Uint8Array): boolean => {
    printed += String(text);
    return true;
  };
  try {
    await program.parseAsync(['nsd', ...args], { from: 'user' });
  } finally {
    process.stdout.write = write;
  }
  return printed;
}
