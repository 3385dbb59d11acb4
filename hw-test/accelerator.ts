/**
 * KVM where it works: on some machines /dev/kvm is there and a guest hangs in it all the same, so a guest that does nothing but
 * power off is tried first. The answer is kept until this machine boots again.
 */
import { spawn } from 'node:child_process';
import { accessSync, constants, existsSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import type { GuestImage } from './image.js';
import { cacheDirectory } from './paths.js';
import { acceleratorArguments } from './qemu.js';

const PROBE_DEADLINE_MS = 20_000;

export async function accelerator(image: GuestImage): Promise<'kvm' | 'tcg'> {
  const asked = process.env.HOLDFAST_HW_ACCELERATOR;
  if (asked === 'kvm' || asked === 'tcg') return asked;
  if (asked !== undefined) throw new Error(`HOLDFAST_HW_ACCELERATOR is kvm or tcg, not ${asked}`);
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return 'tcg';
  }
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  const answers = path.join(cacheDirectory(), `accelerator-${boot}`);
  if (existsSync(answers)) return readFileSync(answers, 'utf8') === 'kvm' ? 'kvm' : 'tcg';
  const answer = (await bootsWithKvm(image)) ? 'kvm' : 'tcg';
  writeFileSync(answers, answer);
  return answer;
}

function bootsWithKvm(image: GuestImage): Promise<boolean> {
  const args = [
    ...acceleratorArguments('kvm'),
    ...['-m', '256', '-nodefaults', '-display', 'none', '-no-reboot', '-serial', 'stdio'],
    ...['-kernel', image.kernel, '-initrd', image.initramfs],
    ...['-append', 'console=ttyS0 quiet panic=-1 holdfast.probe'],
  ];
  return new Promise((resolve) => {
    const child = spawn('qemu-system-x86_64', args, { stdio: ['ignore', 'pipe', 'ignore'] });
    let output = '';
    const timer = setTimeout(() => child.kill('SIGKILL'), PROBE_DEADLINE_MS);
    child.stdout.on('data', (chunk: Buffer) => {
      output += chunk.toString();
    });
    child.on('error', () => resolve(false));
    child.on('close', () => {
      clearTimeout(timer);
      resolve(output.includes('this machine boots guests'));
    });
  });
}
