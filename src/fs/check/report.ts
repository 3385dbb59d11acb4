import { type Finding, findingText, isLoss } from './findings.js';
import type { Scan } from './scan.js';

export interface CheckReport {
  /** At most FINDINGS_TOLD. */
  readonly findings: readonly Finding[];
  readonly findingCount: number;
  /** The findings that are contradictions, in words: no crash of ours explains them. Space and numbers that nobody uses are not among them. */
  readonly problems: readonly string[];
  readonly lostSubBlocks: number;
  readonly lostInodes: number;
  /** In use, system inodes included. */
  readonly inodes: number;
  readonly directories: number;
  readonly usedSubBlocks: number;
}

const FINDINGS_TOLD = 1000;

export async function reportOf(scan: Scan): Promise<CheckReport> {
  const findings = await scan.describe(scan.found.slice(0, FINDINGS_TOLD));
  return {
    findings,
    findingCount: scan.foundCount,
    problems: findings.filter((finding) => !isLoss(finding)).map(findingText),
    lostSubBlocks: scan.lostSubBlocks,
    lostInodes: scan.lostInodes,
    inodes: scan.inodes.count,
    directories: scan.inodes.directories.size,
    usedSubBlocks: scan.space.usedSubBlocks,
  };
}
