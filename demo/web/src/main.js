// The page: the demo's canvas with the model in this browser.
import { mount } from '../../../sam_bigltl/demo/page/app.js';
import { LocalBackend } from './local_backend.js';
import { stayOffline } from './offline.js';

const root = /** @type {HTMLElement & {backend?: LocalBackend}} */ (document.getElementById('app'));
const said = /** @type {HTMLElement} */ (document.getElementById('said'));

/** @param {import('./local_backend.js').Runs} runs */
function whereItRuns({ provider, threads, gpuFailed }) {
  if (provider === 'webgpu') return 'on this machine’s GPU (WebGPU)';
  const how = ['WebAssembly', threads === 1 ? '1 thread' : threads + ' threads'];
  if (gpuFailed) how.push('since WebGPU failed here');
  return `on this machine’s processor (${how.join(', ')})`;
}

/** ?gpu=0 in the address keeps to the processor, ?gpu=1 takes a GPU that the processor simulates, too. */
function wantedGpu() {
  const given = new URLSearchParams(location.search).get('gpu');
  return given === '0' ? 'none' : given === '1' ? 'any' : 'real';
}

const offline = await stayOffline();
if (!offline.reloads) {
  const backend = new LocalBackend(document.baseURI, wantedGpu());
  root.backend = backend; // for the browser's console, and for tests
  await mount(root, backend);
  try {
    const runs = await backend.runs, where = runs ? ', ' + whereItRuns(runs) : '';
    said.textContent = `The model runs in this browser${where}: photographs stay on this machine.`;
  } catch (error) {
    said.textContent = error instanceof Error ? error.message : String(error);
  }
  if (await offline.kept) said.textContent += ' Ready to work offline.';
}
