/** The target as a process of its own, told what to do by its parent: a test that waits for the kernel can't answer it meanwhile. */
import { type FaultSelector, Target, type TargetOptions } from './target.js';

export type Order =
  | { readonly kind: 'hold'; readonly selector: FaultSelector }
  | { readonly kind: 'refuse'; readonly selector: FaultSelector; readonly status: number; readonly count: number }
  | { readonly kind: 'heal' }
  | { readonly kind: 'powerLoss' }
  | { readonly kind: 'enrol'; readonly count: number; readonly firstKey: bigint }
  | { readonly kind: 'contents'; readonly offset: number; readonly lengthBytes: number };

export type Report =
  | { readonly kind: 'listening'; readonly port: number }
  | { readonly kind: 'held'; readonly count: number }
  | { readonly kind: 'hostReady' }
  | { readonly kind: 'done'; readonly id: number; readonly contents?: Uint8Array };

const tell = (report: Report): void => {
  process.send?.(report);
};

const target = new Target(
  JSON.parse(process.argv[2] ?? '{}') as TargetOptions,
  (count) => tell({ kind: 'held', count }),
  () => tell({ kind: 'hostReady' }),
);

process.on('message', ({ id, order }: { readonly id: number; readonly order: Order }) => {
  switch (order.kind) {
    case 'hold':
      target.hold(order.selector);
      break;
    case 'refuse':
      target.refuse(order.selector, order.status, order.count);
      break;
    case 'heal':
      target.heal();
      break;
    case 'powerLoss':
      target.powerLoss();
      break;
    case 'enrol':
      target.enrol(order.count, order.firstKey);
      break;
    case 'contents':
      tell({ kind: 'done', id, contents: target.contents(order.offset, order.lengthBytes) });
      return;
  }
  tell({ kind: 'done', id });
});
process.on('disconnect', () => process.exit(0));

tell({ kind: 'listening', port: await target.listen() });
