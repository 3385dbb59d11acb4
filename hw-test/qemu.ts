/** One guest: a QEMU process with its disks, its network socket and its console log. Killing the process is a power cut. */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, rmSync } from 'node:fs';
import path from 'node:path';
import type { GuestImage } from './image.js';

/** The namespaces of every guest: what the suites need to see each code path (LBA size, protection information). */
export const NAMESPACES = [
  { device: '/dev/nvme0n1', options: 'logical_block_size=512,physical_block_size=512' },
  { device: '/dev/nvme0n2', options: 'logical_block_size=4096,physical_block_size=4096' },
  { device: '/dev/nvme0n3', options: 'logical_block_size=512,physical_block_size=512,ms=8,pi=1' },
] as const;

/** One more, for nobody's data: its metadata is no protection information, which NVMe commands of the engine don't fill. */
const WITH_METADATA = 'logical_block_size=512,physical_block_size=512,ms=16';

export interface GuestMachine {
  readonly guest: number;
  readonly guests: number;
  readonly image: GuestImage;
  readonly accelerator: 'kvm' | 'tcg';
  readonly tscRateKHz: number;
  readonly memoryMiB: number;
  readonly cpus: number;
  readonly namespaceMiB: number;
  /** Holds sockets and disks; deleted after the run. */
  readonly runDirectory: string;
  readonly share: string;
  readonly interactive: boolean;
}

export interface RunningGuest {
  readonly process: ChildProcess;
  readonly ended: Promise<string>;
  readonly consoleLog: string;
}

export function startGuest(machine: GuestMachine): RunningGuest {
  const { guest, guests, runDirectory, share } = machine;
  const consoleLog = path.join(runDirectory, `console${guest}.log`);
  const args = [
    ...acceleratorArguments(machine.accelerator),
    ...['-m', `${machine.memoryMiB}`, '-smp', `${machine.cpus}`],
    ...['-nodefaults', '-display', 'none', '-no-reboot'],
    ...['-kernel', machine.image.kernel, '-initrd', machine.image.initramfs],
    ...[
      '-append',
      `console=ttyS0 loglevel=4 panic=-1 mitigations=off ${clockParameters(machine)} holdfast.guest=${guest}`,
    ],
    ...['-virtfs', 'local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap'],
    ...['-virtfs', `local,path=${share},mount_tag=share,security_model=none,multidevs=remap`],
    ...['-object', 'rng-random,id=rng0,filename=/dev/urandom', '-device', 'virtio-rng-pci,rng=rng0'],
    ...networkArguments(guest, guests, runDirectory),
    ...namespaceArguments(machine),
    ...(machine.interactive ? ['-serial', 'mon:stdio'] : ['-serial', `file:${consoleLog}`]),
  ];
  const child = spawn('qemu-system-x86_64', args, {
    stdio: machine.interactive ? ['inherit', 'inherit', 'inherit'] : ['ignore', 'ignore', 'pipe'],
  });
  let complaint = '';
  child.stderr?.on('data', (chunk: Buffer) => {
    complaint = `${complaint}${chunk}`.slice(-4096);
  });
  const ended = new Promise<string>((resolve) => {
    child.on('error', (error) => resolve(`QEMU does not start: ${error.message}`));
    child.on('close', (code, signal) =>
      resolve(code === 0 ? '' : `QEMU ended with ${signal ?? code}: ${complaint.trim()}`),
    );
  });
  return { process: child, ended, consoleLog };
}

export function acceleratorArguments(accelerator: 'kvm' | 'tcg'): string[] {
  return accelerator === 'kvm'
    ? ['-accel', 'kvm', '-cpu', 'host']
    : ['-accel', 'tcg,thread=multi,tb-size=512', '-cpu', 'max'];
}

/**
 * A guest whose host is busy may find its timer's interrupts missing at boot and give up: no_timer_check takes them for granted.
 * Without tsc=reliable the emulated clocks are compared, found wanting, and every look at the time leaves the guest for the HPET.
 */
function clockParameters({ accelerator, tscRateKHz }: GuestMachine): string {
  return accelerator === 'kvm' ? '' : `no_timer_check tsc=reliable clocksource=tsc tsc_early_khz=${tscRateKHz}`;
}

/** Datagrams between the guests: either may die and come back without the other's socket noticing. */
function networkArguments(guest: number, guests: number, directory: string): string[] {
  const socket = (n: number) => path.join(directory, `network${n}`);
  rmSync(socket(guest), { force: true });
  const backend =
    guests === 1
      ? 'hubport,id=net0,hubid=0'
      : `dgram,id=net0,local.type=unix,local.path=${socket(guest)},remote.type=unix,remote.path=${socket(3 - guest)}`;
  const device = `virtio-net-pci,netdev=net0,mac=52:54:00:77:00:0${guest},host_mtu=4200`;
  return ['-netdev', backend, '-device', device];
}

function namespaceArguments({ guest, runDirectory, namespaceMiB }: GuestMachine): string[] {
  const args = ['-device', `nvme,id=nvme0,serial=holdfast${guest}`];
  for (const [index, options] of [...NAMESPACES.map((one) => one.options), WITH_METADATA].entries()) {
    const file = path.join(runDirectory, `namespace${guest}-${index + 1}`);
    const descriptor = openSync(file, 'a+');
    ftruncateSync(descriptor, namespaceMiB * 2 ** 20);
    closeSync(descriptor);
    args.push('-drive', `file=${file},if=none,id=disk${index + 1},format=raw,discard=unmap`);
    args.push('-device', `nvme-ns,drive=disk${index + 1},bus=nvme0,nsid=${index + 1},${options}`);
  }
  return args;
}
