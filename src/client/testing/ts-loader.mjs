// Lets a worker thread run the sources as they are: `.js` in an import means the `.ts` beside it, types are stripped.
// The test runner does the same for the main thread; worker threads and child processes start without it.
import { register } from 'node:module';

if (!globalThis.holdfastLoader) {
  globalThis.holdfastLoader = true;
  const hooks = `
    import { existsSync, readFileSync } from 'node:fs';
    import { fileURLToPath } from 'node:url';
    import ts from ${JSON.stringify(import.meta.resolve('typescript'))};
    export async function resolve(specifier, context, next) {
      if (specifier.endsWith('.js') && (specifier.startsWith('.') || specifier.startsWith('file:'))) {
        const url = new URL(specifier.slice(0, -3) + '.ts', context.parentURL);
        if (existsSync(url)) return { url: url.href, format: 'module', shortCircuit: true };
      }
      return next(specifier, context);
    }
    export async function load(url, context, next) {
      if (!url.startsWith('file:') || !url.endsWith('.ts')) return next(url, context);
      const options = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, verbatimModuleSyntax: true };
      const { outputText } = ts.transpileModule(readFileSync(fileURLToPath(url), 'utf8'), { compilerOptions: options });
      return { format: 'module', source: outputText, shortCircuit: true };
    }`;
  register(`data:text/javascript,${encodeURIComponent(hooks)}`);
}
