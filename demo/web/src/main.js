// The page: the demo's canvas with the model in this browser.
import { mount } from '../../../sam_bigltl/demo/page/app.js';
import { LocalBackend } from './local_backend.js';
import { stayOffline } from './offline.js';

const root = /** @type {HTMLElement & {backend?: LocalBackend}} */ (document.getElementById('app'));
const said = /** @type {HTMLElement} */ (document.getElementById('said'));

/** @param {LocalBackend} backend */
function whereItRuns({ runs }) {
  if (runs?.provider === 'webgpu') return 'on this machine’s GPU (WebGPU)';
  const how = ['WebAssembly', runs?.threads === 1 ? '1 thread' : runs?.threads + ' threads'];
  if (runs?.gpuFailed) how.push('since WebGPU failed here');
  return `on this machine’s processor (${how.join(', ')})`;
}

const offline = await stayOffline();
if (!offline.reloads) {
  // ?gpu=0 keeps to the processor.
  const backend = new LocalBackend(document.baseURI, new URLSearchParams(location.search).get('gpu') !== '0');
  root.backend = backend; // for the browser's console, and for tests
  await mount(root, backend);
  said.textContent = `The model runs in this browser, ${whereItRuns(backend)}: photographs never leave this machine.`;
  if (await offline.kept) said.textContent += ' Ready to work offline.';
}
