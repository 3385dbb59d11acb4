/**
 * Plain counters, by name. Names are `mechanism.event` with the unit last where there is one (`nsd.readBytes`).
 * Cheap enough for every path; the daemon exports them to its metrics endpoint, tests read them as they are.
 */
export class Counters {
  readonly #values = new Map<string, number>();

  add(name: string, by = 1): void {
    this.#values.set(name, (this.#values.get(name) ?? 0) + by);
  }
  set(name: string, value: number): void {
    this.#values.set(name, value);
  }
  get(name: string): number {
    return this.#values.get(name) ?? 0;
  }
  snapshot(): Record<string, number> {
    return Object.fromEntries([...this.#values].sort(([a], [b]) => (a < b ? -1 : 1)));
  }
}
