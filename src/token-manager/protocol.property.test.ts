import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { modeMask } from './compatibility.js';
import { type Altered, World, type WorldOptions } from './test-world.js';
import { TokenMode } from './token.js';
import { CLIENT_TRANSITIONS } from './token-client-events.js';
import { TokenClientMachine } from './token-client-machine.js';
import { SERVER_TRANSITIONS, type ServerEffect, type ServerEvent } from './token-server-events.js';
import { TokenServerMachine } from './token-server-machine.js';

/** Runs of every kind: one server or several, deaths, changing lists, minimum holds, tight bounds. */
const kindOf = (seed: number): WorldOptions => ({
  seed,
  nodes: 3 + (seed % 3),
  servers: seed % 3 === 0 ? 2 + (seed % 2) : 1,
  steps: 600,
  deaths: seed % 2 === 1 ? 0.01 : 0,
  listChanges: seed % 3 === 0 ? 0.005 : 0,
  minHoldMs: seed % 5 === 0 ? 5 : 0,
  ...(seed % 7 === 0 ? { rangesMax: 8 } : {}),
});

describe('random runs of nodes and servers', () => {
  it('I1, I2, I12, T2, T3, T8: many shared or one exclusive, every request ends, nobody overtakes, tables are complete', () => {
    const options = fc.record({
      seed: fc.nat(),
      nodes: fc.integer({ min: 2, max: 6 }),
      servers: fc.integer({ min: 1, max: 3 }),
      steps: fc.integer({ min: 50, max: 800 }),
      deaths: fc.constantFrom(0, 0.01, 0.03),
      listChanges: fc.constantFrom(0, 0.005, 0.02),
      minHoldMs: fc.constantFrom(0, 5),
    });
    fc.assert(
      fc.property(options, (o) => new World({ ...o, servers: Math.min(o.servers, o.nodes) }).run()),
      { numRuns: 250 },
    );
  });

  it('I13: notes that came with a grant which crossed a revocation are not passed over, though the inode stays in memory', () => {
    const rest = { steps: 712, deaths: 0.01, listChanges: 0, minHoldMs: 5 };
    new World({ seed: 230924988, nodes: 2, servers: 2, ...rest }).run();
  });

  it('every transition of both machines fires somewhere', () => {
    const fired = new Set<string>();
    for (let seed = 1; seed <= 600; seed++) {
      const world = new World(kindOf(seed));
      world.run();
      for (const name of world.fired.keys()) fired.add(name);
    }
    expect([...SERVER_TRANSITIONS, ...CLIENT_TRANSITIONS].filter((name) => !fired.has(name))).toEqual([]);
  });
});

/** The first violation that some run with this fault shows, or none. */
function caught(fault: Partial<WorldOptions>, seeds = 400): string | undefined {
  for (let seed = 1; seed <= seeds; seed++) {
    try {
      new World({ ...kindOf(seed), ...fault }).run();
    } catch (error) {
      return (error as Error).message.split(':')[0];
    }
  }
  return undefined;
}

/** Answers every revocation itself, before the holder has heard of it. */
class Impatient extends TokenServerMachine {
  override step(event: ServerEvent, nowMs: number): ServerEffect[] {
    const effects = super.step(event, nowMs);
    const more: ServerEffect[] = [];
    for (const effect of effects) {
      if (effect.type !== 'send') continue;
      for (const item of effect.message.items) {
        if (item.kind !== 'revoke') continue;
        const { revokeId, class: tokenClass, object, required, keep, upToSeq } = item;
        const statement = { class: tokenClass, object, asOfSeq: upToSeq, mode: keep, ranges: [required] };
        const message = {
          epoch: effect.message.epoch,
          toIncarnation: this.life,
          seenSeq: 0,
          items: [{ kind: 'answer', revokeId, ...statement } as const],
        };
        more.push(...super.step({ type: 'message', from: effect.to, message }, nowMs));
      }
    }
    return [...effects, ...more];
  }
}
class Credulous extends TokenServerMachine {
  protected override asOfSeq(): number {
    return Number.MAX_SAFE_INTEGER;
  }
}
class Lax extends TokenServerMachine {
  protected override standsAgainst(wanted: TokenMode, held: TokenMode): boolean {
    return super.standsAgainst(wanted, held) && (modeMask(held) & modeMask(TokenMode.shared)) === 0;
  }
}
class Unfair extends TokenServerMachine {
  protected override overtakingForbidden(): boolean {
    return false;
  }
}
class Hasty extends TokenClientMachine {
  protected override mustWaitForPins(): boolean {
    return false;
  }
}
/** Every tenth revocation gets lost. */
function losing(): (sent: Altered) => Altered {
  let revokes = 0;
  return (sent) => {
    if (sent.to === 'server') return sent;
    const items = sent.message.items.filter((item) => item.kind !== 'revoke' || ++revokes % 10 !== 0);
    return { ...sent, message: { ...sent.message, items } };
  };
}

describe('planted mutations are caught', () => {
  it('grant before the revocation is answered breaks I1', () => {
    expect(caught({ makeServer: (o) => new Impatient(o) })).toBe('I1');
  });
  it('a stale release that is accepted breaks I1 (race b)', () => {
    expect(caught({ makeServer: (o) => new Credulous(o) })).toMatch(/^(I1|T8)$/);
  });
  it('a lost revocation leaves a request that never ends (I12)', () => {
    expect(caught({ alter: losing() })).toBe('I12');
  });
  it('release before the pins are drained lets a node use what it has given up (I2)', () => {
    expect(caught({ makeClient: (o) => new Hasty(o) })).toMatch(/^(I1|I2)$/);
  });
  it('exclusive granted beside shared breaks I1', () => {
    expect(caught({ makeServer: (o) => new Lax(o) })).toBe('I1');
  });
  it('unfair overtaking breaks T3', () => {
    expect(caught({ makeServer: (o) => new Unfair(o) })).toBe('T3');
  });
});
