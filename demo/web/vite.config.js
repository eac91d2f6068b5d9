import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vite';

const here = dirname(fileURLToPath(import.meta.url));

/** Write the service worker, with the names of all files and their hash: any change of one is a new version. */
function serviceWorker() {
  return {
    name: 'service-worker',
    apply: 'build',
    closeBundle() {
      const dist = join(here, 'dist');
      const files = readdirSync(dist, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile() && entry.name !== 'sw.js')
        .map((entry) => relative(dist, join(entry.parentPath, entry.name)).split(sep).join('/')).sort();
      const source = readFileSync(join(here, 'src/sw.js'), 'utf8'), hash = createHash('sha256').update(source);
      for (const file of files) hash.update(file).update(readFileSync(join(dist, file)));
      // What only WebGPU needs is kept where it was used: it would double what everybody downloads.
      const isOptional = (file) => file.includes('asyncify');
      const built = {
        version: hash.digest('hex').slice(0, 16),
        files: files.filter((file) => !isOptional(file)), optional: files.filter(isOptional),
      };
      writeFileSync(join(dist, 'sw.js'), `self.built = ${JSON.stringify(built)};\n${source}`);
    },
  };
}

export default defineConfig({
  root: here,
  base: './', // any host, any folder
  plugins: [serviceWorker()],
  resolve: { conditions: ['onnxruntime-web-use-extern-wasm', 'module', 'browser', 'development|production'] },
  worker: { format: 'es' },
  build: { target: 'es2022', assetsInlineLimit: 0, chunkSizeWarningLimit: 1000 },
  server: { fs: { allow: ['../..'] } },
});
