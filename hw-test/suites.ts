/**
 * The suites, each in one entry: how many guests it takes, what runs on each of them, how long it may take. A command runs in
 * the project's folder as built; what it may know about its surroundings is in the environment (docs/hw-test.md). A suite's
 * result is what vitest's JSON report says, or the last line `N passed, N failed` of a command that is not vitest.
 */
export interface Suite {
  readonly name: string;
  /** One sentence: what it shows. */
  readonly shows: string;
  readonly guests: 1 | 2;
  /** What runs on guest 1, guest 2. A suite of two guests with one command runs it on both. */
  readonly commands: readonly (readonly string[])[];
  /** From the start of the guests to the last result. */
  readonly deadlineS: number;
  /** The same with --long: suites that have full counts (HOLDFAST_TEST_FULL=1) do those. */
  readonly longDeadlineS?: number;
  readonly memoryMiB?: number;
  /** Part of the short size too (--short): what CI runs with every change. */
  readonly short?: boolean;
  /** False where it is about the emulation itself. */
  readonly native?: boolean;
}

/** A vitest file (or folder) of `*.hw.test.ts` as a guest's command. */
export function vitest(...paths: readonly string[]): readonly string[] {
  return ['vitest', ...paths];
}

export const SANITIZED = 'sanitized';
/** The same with the addons built for AddressSanitizer and UndefinedBehaviorSanitizer. */
export function sanitizedVitest(...paths: readonly string[]): readonly string[] {
  return [SANITIZED, ...paths];
}

export const suites: readonly Suite[] = [
  {
    name: 'smoke',
    short: true,
    shows: 'soft-RoCE, NVMe, NVMe over fabrics: all that the other suites stand on works, seen with the native tools',
    guests: 1,
    commands: [vitest('hw-test/smoke.hw.test.ts')],
    deadlineS: 240,
  },
  {
    name: 'smoke-pair',
    short: true,
    shows: "two guests reach each other by RDMA and write to each other's namespace over fabrics",
    guests: 2,
    commands: [vitest('hw-test/smoke-pair.hw.test.ts')],
    deadlineS: 240,
  },
  {
    name: 'power-cut',
    shows: 'one guest loses its power: what the other had from it fails within its deadline, and it goes on',
    guests: 2,
    commands: [vitest('hw-test/power-cut.hw.test.ts')],
    deadlineS: 240,
  },
  {
    name: 'main-job',
    shows: 'two nodes with NVMe namespaces: a tree in, out of the other node byte for byte, two writers in one file',
    guests: 2,
    commands: [vitest('hw-test/main-job.hw.test.ts')],
    deadlineS: 600,
    memoryMiB: 3072,
  },
  {
    name: 'main-job-rdma',
    short: true,
    shows: 'the same over RDMA, every bulk byte one-sided; and again with an NSD behind NVMe-oF RDMA',
    guests: 2,
    commands: [vitest('hw-test/main-job-rdma.hw.test.ts')],
    deadlineS: 900,
    memoryMiB: 3072,
  },
  {
    name: 'takeover',
    short: true,
    shows:
      'two servers of one namespace: taking over from one that is well, from one that is frozen, and what a power cut leaves',
    guests: 2,
    commands: [vitest('hw-test/takeover.hw.test.ts')],
    deadlineS: 900,
  },
  {
    name: 'nvme',
    short: true,
    shows:
      'NVMe commands passed through to namespaces, checked by dd and nvme-cli; identify, logs, reservations of two hosts, errors in words',
    guests: 1,
    commands: [
      vitest(
        'native/napi-nvme/test/passthrough.hw.test.ts',
        'native/napi-nvme/test/access-choice.hw.test.ts',
        'native/napi-nvme/test/reservations.hw.test.ts',
        'native/napi-nvme/test/target-faults.hw.test.ts',
        'src/nsd/reserved-namespace.hw.test.ts',
        'src/daemon/same-storage.hw.test.ts',
      ),
    ],
    deadlineS: 360,
  },
  {
    name: 'nvme-fabrics',
    short: true,
    shows:
      'export, discover, connect, disconnect over loop, RDMA and TCP; namespaces that shrink, go read-only or vanish; lost paths',
    guests: 1,
    commands: [vitest('native/napi-nvme/test/fabrics.hw.test.ts', 'src/cli/nsd-paths.hw.test.ts')],
    deadlineS: 480,
  },
  {
    name: 'nvme-bench',
    shows: '4 KiB random reads by passthrough against fio’s io_uring_cmd on the same namespace, depths 32 and 1',
    guests: 1,
    commands: [['shell', 'exec node dist/bench/nvme.bench.js "$(echo $HOLDFAST_HW_NVME | cut -d, -f1)"']],
    deadlineS: 240,
  },
  {
    name: 'nsd-devices',
    short: true,
    shows: 'one NSD suite over QEMU’s namespaces, nvme-loop, NVMe-oF RDMA and NVMe-oF TCP',
    guests: 1,
    commands: [vitest('src/nsd/nsd-devices.hw.test.ts')],
    deadlineS: 300,
  },
  {
    name: 'nsd-trouble',
    shows: 'a daemon whose namespace becomes write protected, shrinks, vanishes: errors, counters, nothing lost',
    guests: 1,
    commands: [vitest('hw-test/namespace-trouble.hw.test.ts')],
    deadlineS: 600,
  },
  {
    name: 'rdma',
    short: true,
    shows:
      "every operation of node-rdma-cm between two queue pairs and two processes, what goes wrong there, and rdma-core's own tools as peers",
    guests: 1,
    commands: [
      vitest(
        'native/node-rdma-cm/test/verbs.hw.test.ts',
        'native/node-rdma-cm/test/peer.hw.test.ts',
        'native/node-rdma-cm/test/tools.hw.test.ts',
      ),
    ],
    deadlineS: 300,
  },
  {
    name: 'rdma-lifetime',
    short: true,
    shows:
      '1,000 connections without a leak (10,000 with --long); closing in any order, workers that end, the garbage collector, children',
    guests: 1,
    commands: [vitest('native/node-rdma-cm/test/lifetime.hw.test.ts')],
    deadlineS: 300,
    longDeadlineS: 3600,
  },
  {
    name: 'rdma-pair',
    short: true,
    shows: 'node-rdma-cm between two guests, with what goes wrong there',
    guests: 2,
    commands: [
      vitest('native/node-rdma-cm/test/peer.hw.test.ts'),
      // Again when it was killed, until it is told to exit.
      ['sh', '-c', 'until node native/node-rdma-cm/test/peer.mjs "$HOLDFAST_HW_ADDRESS" 18515; do :; done'],
    ],
    deadlineS: 300,
  },
  {
    name: 'rdma-speed',
    shows: "node-rdma-cm's latency and bandwidth as ratios to perftest, in the same guest and run",
    guests: 1,
    commands: [['node', 'native/node-rdma-cm/bench/bench.mjs']],
    deadlineS: 420,
  },
  {
    name: 'cold-read',
    shows:
      'a cold read through an NSD server over RDMA against the device alone plus message round trips, two processes',
    guests: 1,
    commands: [['node', 'dist/hw-test/cold-read.js']],
    deadlineS: 300,
  },
  {
    name: 'fabric',
    short: true,
    shows:
      'the fabric over verbs between two processes: messages, one-sided bulk, the device removed and added during I/O',
    guests: 1,
    commands: [vitest('hw-test/fabric.hw.test.ts', 'src/fabric/rdma-fabric.hw.test.ts')],
    // Longer than its waits, so that the one that is in vain says what for.
    deadlineS: 480,
  },
  {
    name: 'fabric-command',
    short: true,
    shows:
      '`holdfast fabric test` between two daemons: each rung measured, a device that goes and comes, errors, a dead peer',
    guests: 1,
    commands: [vitest('hw-test/fabric-command.hw.test.ts')],
    deadlineS: 600,
  },
  {
    name: 'fabric-pair',
    short: true,
    shows: 'the same between two guests, and what one of them says when the other loses its power',
    guests: 2,
    commands: [vitest('hw-test/fabric.hw.test.ts'), ['node', 'dist/hw-test/fabric-peer.js']],
    deadlineS: 480,
  },
  {
    name: 'sanitize',
    shows: 'the device tests of both addons under AddressSanitizer and UndefinedBehaviorSanitizer',
    guests: 1,
    commands: [
      sanitizedVitest(
        'native/napi-nvme/test/passthrough.hw.test.ts',
        'native/napi-nvme/test/reservations.hw.test.ts',
        'native/napi-nvme/test/target-faults.hw.test.ts',
        'native/napi-nvme/test/fabrics.hw.test.ts',
        'native/node-rdma-cm/test/verbs.hw.test.ts',
        'native/node-rdma-cm/test/peer.hw.test.ts',
      ),
    ],
    deadlineS: 1800,
    memoryMiB: 3072,
  },
  {
    name: 'native',
    shows: 'hw-test --native on a machine with devices of its own, which here is a guest',
    guests: 1,
    commands: [
      [
        'shell',
        'node dist/hw-test/main.js --native --only nvme --nvme "$HOLDFAST_HW_NVME" --address "$HOLDFAST_HW_ADDRESS" ' +
          '--rdma "$HOLDFAST_HW_RDMA" --netdev "$HOLDFAST_HW_NETDEV"',
      ],
    ],
    deadlineS: 480,
    native: false,
  },
];
