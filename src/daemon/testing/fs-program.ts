/**
 * A program written for `fs.promises` that knows nothing of Holdfast: it makes a tree, changes it, looks at it, runs into errors,
 * and returns what it saw. Run on a local file system and on Holdfast it must see the same.
 */
export type FsPromises = Pick<
  typeof import('node:fs/promises'),
  | 'access'
  | 'appendFile'
  | 'chmod'
  | 'copyFile'
  | 'cp'
  | 'link'
  | 'lstat'
  | 'mkdir'
  | 'mkdtemp'
  | 'open'
  | 'readFile'
  | 'readdir'
  | 'readlink'
  | 'realpath'
  | 'rename'
  | 'rm'
  | 'rmdir'
  | 'stat'
  | 'symlink'
  | 'truncate'
  | 'unlink'
  | 'utimes'
  | 'writeFile'
>;

export async function runProgram(fs: FsPromises, root: string): Promise<unknown[]> {
  const seen: unknown[] = [];
  const withoutRoot = (text: string): string => text.replaceAll(root, '');
  const attempt = async (what: string, work: () => Promise<unknown>): Promise<void> => {
    try {
      const value = await work();
      seen.push([what, typeof value === 'string' ? withoutRoot(value) : (value ?? 'done')]);
    } catch (error) {
      const { code, syscall, message } = error as NodeJS.ErrnoException;
      seen.push([what, { code, syscall, message: withoutRoot(message) }]);
    }
  };
  const at = (name: string): string => `${root}/${name}`;

  await attempt('mkdir', () => fs.mkdir(at('a/b/c'), { recursive: true }));
  await attempt('mkdir again', () => fs.mkdir(at('a')));
  for (let i = 0; i < 25; i++) await fs.writeFile(at(`a/b/file-${i}.txt`), `line ${i}\n`.repeat(i * 10));
  await attempt('listing', async () => (await fs.readdir(at('a/b'))).sort());
  await attempt('types', async () =>
    (await fs.readdir(at('a'), { withFileTypes: true })).map((entry) => [entry.name, entry.isDirectory()]),
  );
  await attempt('read', () => fs.readFile(at('a/b/file-3.txt'), 'utf8'));
  await attempt('read nothing', () => fs.readFile(at('a/nothing'), 'utf8'));
  await attempt('read a directory', () => fs.readFile(at('a'), 'utf8'));
  await attempt('exclusive', () => fs.writeFile(at('a/b/file-3.txt'), 'x', { flag: 'wx' }));
  await attempt('append', () => fs.appendFile(at('a/b/file-3.txt'), 'the end'));
  await attempt('size', async () => (await fs.stat(at('a/b/file-3.txt'))).size);
  await attempt('truncate', () => fs.truncate(at('a/b/file-3.txt'), 12));
  await attempt('truncated', () => fs.readFile(at('a/b/file-3.txt'), 'utf8'));
  await attempt('rename', () => fs.rename(at('a/b/file-3.txt'), at('a/moved')));
  await attempt('rename nothing', () => fs.rename(at('a/b/file-3.txt'), at('a/moved')));
  await attempt('rename over a directory', () => fs.rename(at('a/moved'), at('a/b')));
  await attempt('link', () => fs.link(at('a/moved'), at('a/linked')));
  await attempt('links', async () => (await fs.stat(at('a/linked'))).nlink);
  await attempt('symlink', () => fs.symlink('moved', at('a/pointer')));
  await attempt('readlink', () => fs.readlink(at('a/pointer')));
  await attempt('realpath', () => fs.realpath(at('a/../a/pointer')));
  await attempt('lstat', async () => (await fs.lstat(at('a/pointer'))).isSymbolicLink());
  await attempt('chmod', () => fs.chmod(at('a/moved'), 0o604));
  await attempt('mode', async () => (await fs.stat(at('a/moved'))).mode & 0o7777);
  await attempt('utimes', () => fs.utimes(at('a/moved'), 11, 22));
  await attempt('mtime', async () => (await fs.stat(at('a/moved'))).mtimeMs);
  await attempt('copyFile', () => fs.copyFile(at('a/moved'), at('copied')));
  await attempt('cp', () => fs.cp(at('a'), at('tree'), { recursive: true }));
  await attempt('the copy', async () => (await fs.readdir(at('tree'), { recursive: true })).sort());
  await attempt('rmdir of a full one', () => fs.rmdir(at('tree')));
  await attempt('rm', () => fs.rm(at('tree'), { recursive: true }));
  await attempt('gone', () => fs.access(at('tree')));
  await attempt('unlink a directory', async () => {
    try {
      await fs.unlink(at('a'));
    } catch (error) {
      // Linux says EISDIR, POSIX allows EPERM.
      return ['EISDIR', 'EPERM'].includes((error as NodeJS.ErrnoException).code ?? '');
    }
    return false;
  });
  await attempt('mkdtemp', async () => (await fs.mkdtemp(at('temporary-'))).slice(0, at('temporary-').length));

  const file = await fs.open(at('handle'), 'w+');
  await attempt('handle', async () => {
    await file.writeFile('0123456789');
    await file.write('ab', 3);
    await file.truncate(8);
    const buffer = Buffer.alloc(20);
    const { bytesRead } = await file.read(buffer, 0, 20, 0);
    return [bytesRead, buffer.toString('latin1', 0, bytesRead), (await file.stat()).size];
  });
  await attempt('vectors', async () => {
    const { bytesWritten } = await file.writev([Buffer.from('xx'), Buffer.from('yyy')], 2);
    const parts = [Buffer.alloc(3), Buffer.alloc(4)];
    const { bytesRead } = await file.readv(parts, 0);
    return [bytesWritten, bytesRead, parts.map((part) => part.toString())];
  });
  await attempt('sync', () => file.sync());
  await file.close();
  await attempt('closed handle', () => file.read(Buffer.alloc(1), 0, 1, 0));
  await attempt('stream', async () => {
    const reading = await fs.open(at('handle'), 'r');
    const chunks: string[] = [];
    for await (const chunk of reading.createReadStream({ encoding: 'utf8', highWaterMark: 3 }))
      chunks.push(chunk as string);
    return chunks.join('|');
  });
  await attempt('remove all', () => fs.rm(at('a'), { recursive: true }));
  return seen;
}
