/**
 * Plays a scenario: a text file of commands, each followed by what it made happen. Times are in milliseconds, ranges in
 * sectors ("0-4", "8-end"). Nodes A to E are clients; S and T are servers. Nothing is delivered that the file doesn't say.
 *
 *     nodes A B | servers S T          what the first view has; T may also join later
 *     A acquire one: data 7 exclusive 0-1 want 0-end, status 3 shared 5-6 [deadline 100] [nowait] [patient]
 *     A tryPin two: data 7 shared 0-1
 *     A unpin one | A abort one | A flushed (the oldest running revocation) | A giveback data 7 0-end
 *     A working 4-end | A working nowhere
 *     A shares no | A wrote 0 500      whether it keeps concurrent-write status; a note (sector, size) for the next `flushed`
 *     A > S | S > A                    delivers the next message;  `deliver` delivers everything
 *     time 100 | kill A | expel A at S | close A at S | released A at S | reboot A
 *     view S T: A B                    a new epoch with these servers and clients, published;  `A sees` takes the next view
 */
import { type ByteRange, range } from '../../common/byte-range.js';
import { epoch, incarnation, nodeId } from '../../common/ids.js';
import { RANGE_END, SECTOR_BYTES } from '../../common/units.js';
import type {
  ToClientItem,
  ToClientMessage,
  ToServerItem,
  ToServerMessage,
} from '../../token-manager/token-messages.js';
import { groupItems } from '../group-items.js';
import { type StatusNote, TokenClass, type TokenItem, TokenMode, type TokenPins } from '../token.js';
import { type ClientEffect, type ClientEvent, TOKEN_CLIENT_DEFAULTS } from '../token-client-events.js';
import { TokenClientMachine } from '../token-client-machine.js';
import { type ServerEffect, type ServerEvent, TOKEN_SERVER_DEFAULTS, type TokenView } from '../token-server-events.js';
import { TokenServerMachine } from '../token-server-machine.js';

type Message = { to: string; message: ToServerMessage } | { to: string; message: ToClientMessage };
interface Actor {
  readonly name: string;
  life: number;
  client: TokenClientMachine | null;
  server: TokenServerMachine | null;
  readonly views: TokenView[];
  readonly running: number[];
  readonly pins: Map<string, TokenPins>;
  working: ByteRange | null;
  /** Keeps status as concurrent-write when somebody wants to write beside it. */
  shares: boolean;
  /** For the next revocation that ends: what it says of status. */
  notes: StatusNote[];
  drained: boolean;
}

const IDS: Record<string, number> = { S: 1, T: 2, A: 3, B: 4, C: 5, D: 6, E: 7 };
const nameOf = (id: number): string => Object.keys(IDS).find((n) => IDS[n] === id) ?? String(id);
const CLASS_NAMES = Object.keys(TokenClass);
const MODE_NAMES = Object.keys(TokenMode);

export class Player {
  readonly #actors = new Map<string, Actor>();
  readonly #channels = new Map<string, Message[]>();
  readonly #opNames = new Map<number, string>();
  #epoch = 0;
  #nowMs = 0;
  #lastId = 0;
  #out: string[] = [];

  /** What the command made happen, one line each. */
  play(command: string): string[] {
    this.#out = [];
    const words = command.split(/\s+/);
    const [first, second] = words as [string, string];
    if (first === 'servers' || first === 'nodes') for (const name of words.slice(1)) this.#boot(name);
    else if (first === 'view') this.#publish(command.slice(5));
    else if (first === 'deliver') this.#deliverAll();
    else if (first === 'time') this.#passTime(Number(second));
    else if (first === 'kill') this.#kill(second);
    else if (first === 'reboot') this.#boot(second);
    else if (first === 'expel' || first === 'close' || first === 'released') this.#fate(first, second, words[3]!);
    else if (second === '>') this.#deliver(first, words[2]!);
    else this.#act(this.#actor(first), words.slice(1));
    return this.#out;
  }

  #actor(name: string): Actor {
    const actor = this.#actors.get(name);
    if (actor === undefined) throw new Error(`who is ${name}?`);
    return actor;
  }

  #identity(name: string) {
    return { nodeId: nodeId(IDS[name]!), incarnation: incarnation(this.#actor(name).life) };
  }

  #boot(name: string): void {
    const life = (this.#actors.get(name)?.life ?? 0) + 1;
    const actor: Actor = {
      name,
      life,
      client: null,
      server: null,
      views: [],
      running: [],
      pins: new Map(),
      working: null,
      shares: true,
      notes: [],
      drained: false,
    };
    this.#actors.set(name, actor);
    const self = this.#identity(name);
    const fired = (): void => undefined;
    if (name === 'S' || name === 'T') {
      actor.server = new TokenServerMachine({ self, settings: TOKEN_SERVER_DEFAULTS, fired });
      return;
    }
    actor.client = new TokenClientMachine({
      self,
      settings: TOKEN_CLIENT_DEFAULTS,
      fired,
      working: () => actor.working,
      writesConcurrently: () => actor.shares,
      onDrained: () => {
        actor.drained = true;
      },
    });
  }

  #publish(text: string): void {
    const [servers, nodes] = text.split(':').map((part) =>
      part
        .trim()
        .split(/\s+/)
        .filter((name) => name !== ''),
    );
    const view = {
      epoch: epoch(++this.#epoch),
      servers: servers!.map((name) => this.#identity(name)),
      nodes: nodes!.map((name) => this.#identity(name)),
    };
    for (const actor of this.#actors.values()) actor.views.push(view);
  }

  #kill(name: string): void {
    const actor = this.#actor(name);
    actor.client = null;
    actor.server = null;
  }

  #fate(word: 'expel' | 'close' | 'released', name: string, at: string): void {
    const type = word === 'expel' ? 'expelled' : word === 'close' ? 'holdClosed' : 'released';
    this.#stepServer(this.#actor(at), { type, ...this.#identity(name) });
  }

  #passTime(ms: number): void {
    this.#nowMs += ms;
    for (const actor of this.#actors.values()) {
      if (actor.client !== null) this.#stepClient(actor, { type: 'tick' });
      if (actor.server !== null) this.#stepServer(actor, { type: 'tick' });
    }
  }

  #deliver(from: string, to: string): void {
    const sent = this.#channels.get(`${from}>${to}`)?.shift();
    if (sent === undefined) throw new Error(`nothing is on the way from ${from} to ${to}`);
    const actor = this.#actor(to);
    if (actor.server !== null) {
      const message = sent.message as ToServerMessage;
      this.#stepServer(actor, { type: 'message', from: this.#identity(from), message });
    } else if (actor.client !== null) {
      const message = sent.message as ToClientMessage;
      this.#stepClient(actor, { type: 'message', from: this.#identity(from), message });
    }
  }

  #deliverAll(): void {
    for (;;) {
      const next = [...this.#channels].find(([, messages]) => messages.length > 0);
      if (next === undefined) return;
      const [from, to] = next[0].split('>') as [string, string];
      this.#deliver(from, to);
    }
  }

  #act(actor: Actor, words: string[]): void {
    const [verb, ...rest] = words as [string, ...string[]];
    const text = rest.join(' ');
    switch (verb) {
      case 'sees': {
        const view = actor.views.shift();
        if (view === undefined) throw new Error('no view to see');
        const { servers } = view;
        if (actor.server !== null) this.#stepServer(actor, { type: 'view', view });
        else this.#stepClient(actor, { type: 'view', epoch: view.epoch, servers });
        return;
      }
      case 'acquire':
        this.#acquire(actor, text);
        return;
      case 'tryPin': {
        const { name, items } = parseItems(text);
        const pins = actor.client!.tryPin(items);
        if (pins !== null) actor.pins.set(name, pins);
        this.#out.push(pins === null ? `${actor.name}: ${name} is not pinned` : `${actor.name}: ${name} is pinned`);
        return;
      }
      case 'unpin':
        actor.pins.get(text)!.release();
        this.#stepClient(actor, { type: 'drained' });
        return;
      case 'abort': {
        const opId = [...this.#opNames].find(([, name]) => name === text)![0];
        this.#stepClient(actor, { type: 'abort', opId });
        return;
      }
      case 'flushed':
        this.#stepClient(actor, { type: 'revokeDone', handle: actor.running.shift()!, notes: actor.notes.splice(0) });
        return;
      case 'shares':
        actor.shares = text === 'yes';
        return;
      case 'wrote': {
        const [sector, sizeBytes] = rest.map(Number) as [number, number];
        const note = { offsetBytes: sector * SECTOR_BYTES, version: 1, sizeBytes, mtimeNs: 0n, ctimeNs: 0n };
        actor.notes.push(note);
        return;
      }
      case 'giveback': {
        const tokenClass = TokenClass[rest[0] as keyof typeof TokenClass];
        const where = { class: tokenClass, object: Number(rest[1]), range: parseRange(rest[2]!) };
        this.#stepClient(actor, { type: 'release', releaseId: ++this.#lastId, ...where });
        return;
      }
      case 'working':
        actor.working = text === 'nowhere' ? null : parseRange(text);
        return;
      default:
        throw new Error(`what is ${verb}?`);
    }
  }

  #acquire(actor: Actor, text: string): void {
    const { name, items, deadlineMs, nowait, patient } = parseItems(text);
    const opId = ++this.#lastId;
    this.#opNames.set(opId, name);
    const deadlineAtMs = deadlineMs === null ? Number.POSITIVE_INFINITY : this.#nowMs + deadlineMs;
    this.#stepClient(actor, {
      type: 'acquire',
      ops: [{ opId, groups: groupItems(items), deadlineAtMs, nowait, patient }],
    });
  }

  #stepClient(actor: Actor, event: ClientEvent): void {
    if (actor.client === null) return;
    actor.drained = false;
    for (const effect of actor.client.step(event, this.#nowMs)) this.#clientEffect(actor, effect);
    if (actor.drained) this.#stepClient(actor, { type: 'drained' });
  }

  #stepServer(actor: Actor, event: ServerEvent): void {
    if (actor.server === null) return;
    for (const effect of actor.server.step(event, this.#nowMs)) this.#serverEffect(actor, effect);
  }

  #send(from: string, to: number, message: ToServerMessage | ToClientMessage): void {
    const name = nameOf(to);
    const key = `${from}>${name}`;
    const channel = this.#channels.get(key) ?? [];
    this.#channels.set(key, channel);
    channel.push({ to: name, message } as Message);
    this.#out.push(`${from} -> ${name}: ${message.items.map(describe).join('; ')}`);
  }

  #clientEffect(actor: Actor, effect: ClientEffect): void {
    const { name } = actor;
    switch (effect.type) {
      case 'send':
        this.#send(name, effect.to.nodeId, effect.message);
        return;
      case 'revoke': {
        actor.running.push(effect.handle);
        const { revocation: r } = effect;
        this.#out.push(
          `${name}: flush ${CLASS_NAMES[r.class]} ${r.object} ${show(r.range)}, keep ${MODE_NAMES[r.keep]}`,
        );
        return;
      }
      case 'pinned': {
        const op = this.#opNames.get(effect.opId)!;
        actor.pins.set(op, effect.pins);
        this.#out.push(`${name}: ${op} is pinned`);
        return;
      }
      case 'failed': {
        const who = effect.blockers.map(
          (b) => `${nameOf(b.node)} has ${MODE_NAMES[b.mode]} ${show(b.range)} for ${Math.round(b.sinceMs)} ms`,
        );
        const why = who.length === 0 ? '' : `, blocked: ${who.join(', ')}`;
        this.#out.push(`${name}: ${this.#opNames.get(effect.opId)} fails: ${effect.reason}${why}`);
        return;
      }
      case 'gathered':
        this.#out.push(`${name}: takes in ${effect.notes.map(showNote).join(', ') || 'its own'}`);
        return;
      case 'released':
        this.#out.push(`${name}: given back`);
        return;
      case 'broken':
        this.#out.push(`${name}: BROKEN: ${effect.detail}`);
        return;
    }
  }

  #serverEffect(actor: Actor, effect: ServerEffect): void {
    if (effect.type === 'send') this.#send(actor.name, effect.to.nodeId, effect.message);
    else this.#out.push(`${actor.name}: VIOLATION: ${effect.detail}`);
  }
}

function parseRange(text: string): ByteRange {
  const [from, to] = text.split('-');
  return range(Number(from) * SECTOR_BYTES, to === 'end' ? RANGE_END : Number(to) * SECTOR_BYTES);
}

function parseItems(text: string): {
  name: string;
  items: TokenItem[];
  deadlineMs: number | null;
  nowait: boolean;
  patient: boolean;
} {
  const [name, rest] = text.split(': ') as [string, string];
  const deadline = /deadline (\d+)/.exec(rest)?.[1];
  const items = rest
    .replace(/ deadline \d+| nowait| patient/g, '')
    .split(', ')
    .map((item): TokenItem => {
      const [tokenClass, object, mode, required, , desired] = item.split(' ') as [
        string,
        string,
        string,
        string,
        string?,
        string?,
      ];
      return {
        class: TokenClass[tokenClass as keyof typeof TokenClass],
        object: Number(object),
        mode: TokenMode[mode as keyof typeof TokenMode],
        required: parseRange(required),
        desired: parseRange(desired ?? required),
      };
    });
  const [nowait, patient] = [rest.includes(' nowait'), rest.includes(' patient')];
  return { name, items, deadlineMs: deadline === undefined ? null : Number(deadline), nowait, patient };
}

const show = (r: ByteRange): string =>
  `${r.start / SECTOR_BYTES}-${r.end === RANGE_END ? 'end' : r.end / SECTOR_BYTES}`;

const showNote = ({ offsetBytes, sizeBytes }: StatusNote): string =>
  `${offsetBytes / SECTOR_BYTES}: ${sizeBytes} bytes`;

function describe(item: ToServerItem | ToClientItem): string {
  const what = 'class' in item ? `${CLASS_NAMES[item.class]} ${item.object}` : '';
  switch (item.kind) {
    case 'request': {
      const parts = item.parts.map((p) => `${MODE_NAMES[p.mode]} ${show(p.required)} want ${show(p.desired)}`);
      return `request ${item.requestId} ${what} ${parts.join(' + ')}${item.nowait ? ' nowait' : ''}${item.prompt ? ' prompt' : ''}`;
    }
    case 'cancel':
      return `cancel ${item.requestId}`;
    case 'release':
    case 'answer': {
      const kept = item.mode === TokenMode.none ? '' : `, keep ${MODE_NAMES[item.mode]}`;
      const ranges = item.ranges.length === 0 ? 'nothing' : item.ranges.map(show).join(' + ');
      const id = item.kind === 'answer' ? ` ${item.revokeId}` : '';
      return `${item.kind}${id} ${what} ${ranges}${kept} (seen ${item.asOfSeq})`;
    }
    case 'note':
      return `note of status ${item.object} ${showNote(item.note)}`;
    case 'claim':
      return `claim ${what} ${MODE_NAMES[item.mode]} ${show(item.range)}`;
    case 'claimEnd':
      return `that is all in epoch ${item.epoch}`;
    case 'grant':
      return `grant ${item.requestId} ${what} ${item.parts.map((p) => `${MODE_NAMES[p.mode]} ${show(p.range)}`).join(' + ')} (seq ${item.seq})`;
    case 'revoke':
      return `revoke ${item.revokeId} ${what} ${show(item.required)} want ${show(item.desired)}, keep ${MODE_NAMES[item.keep]}, for ${nameOf(item.requester)} (up to ${item.upToSeq})${item.prompt ? ' prompt' : ''}`;
    case 'refusal':
      return `refuse ${item.requestId}: ${item.reason}`;
    case 'ask':
      return `what do you hold? (epoch ${item.epoch})`;
    case 'contradiction':
      return `you hold what ${nameOf(item.other)} holds: ${what} ${MODE_NAMES[item.mode]} ${show(item.range)}`;
  }
}
