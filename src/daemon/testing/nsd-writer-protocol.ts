export interface NsdWriterArguments {
  readonly file: string;
  readonly seed: number;
  readonly sectors: number;
  readonly firstValue: number;
  /** The mistake that the test must notice: only flushes that were asked for are done. */
  readonly skipIntentFlush: boolean;
}
/** What is written from now on, until it is flushed: each sector of `count` gets words of `value`. */
export interface NsdRound {
  readonly kind: 'round';
  readonly writes: readonly { readonly sector: number; readonly count: number; readonly value: number }[];
}
