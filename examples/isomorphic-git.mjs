// A program written for fs.promises, on Holdfast: isomorphic-git keeps a repository in the cluster. Nothing of it knows.
//   node examples/isomorphic-git.mjs --socket .holdfast/node-1/client.sock
// Then look at it from any node, or take it out and let git judge: holdfast cp -r /example.git-work ./out && git -C out fsck
import { connect } from 'holdfast';
import git from 'isomorphic-git';
import { connectOptions } from './options.mjs';

const fs = await connect(connectOptions());
const dir = '/example.git-work';
const author = { name: 'Holdfast example', email: 'example@holdfast.invalid' };

await fs.rm(dir, { recursive: true, force: true });
await fs.mkdir(dir);
await git.init({ fs, dir, defaultBranch: 'main' });

await fs.writeFile(`${dir}/README.md`, '# Kept in a coherent cache cluster\n');
await git.add({ fs, dir, filepath: 'README.md' });
await git.commit({ fs, dir, author, message: 'Say where this is kept' });

await git.branch({ fs, dir, ref: 'idea', checkout: true });
await fs.mkdir(`${dir}/src`);
await fs.writeFile(`${dir}/src/main.js`, 'console.log("from the cluster");\n');
await git.add({ fs, dir, filepath: '.' });
await git.commit({ fs, dir, author, message: 'Add a program' });

await git.checkout({ fs, dir, ref: 'main' });
console.log('on main: ', (await fs.readdir(dir)).join(' '));
await git.checkout({ fs, dir, ref: 'idea' });
console.log('on idea: ', (await fs.readdir(dir)).join(' '));
for (const { oid, commit } of await git.log({ fs, dir })) console.log(oid.slice(0, 8), commit.message.trim());
await fs.close();
