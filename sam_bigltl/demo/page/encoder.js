// What the encoder is asked for, what it spent, and what it looked at.
import { checkbox, h, help, panel, slider } from './dom.js';
import { QUICK } from './hover.js';

const WORDS = {
  ratio: 'Every layer of the encoder has a large and a small block. keep_ratio is the share of the tokens, small '
    + 'squares of the photograph, that the large blocks compute; the small ones do the rest. Less is quicker, and less '
    + 'exact.',
  gmacs: 'GMACs: billions of multiplications that the encoder did for this photograph, of those that it does when all '
    + 'tokens are big. Fewer are quicker.',
  overlay: 'Big tokens: the squares that the large blocks computed; the others are dark. Importance: how the model '
    + 'ranked the squares, from violet, the least, to yellow.',
  compare: 'The same clicks with every token big (keep_ratio 1.0), side by side with yours. Differences are marked.',
};

/** @param {import('./app.js').App} app */
export function makeEncoder(app) {
  const { work, stage, look } = app, { info } = work, least = info.min_keep_ratio;
  const started = typeof work.settings.keepRatio === 'number' ? work.settings.keepRatio : 0.5;
  const ratioHelp = help('keep_ratio', WORDS.ratio), gmacsHelp = help('GMACs', WORDS.gmacs);
  const overlayHelp = help('big tokens and importance', WORDS.overlay);
  const compareHelp = help('the comparison', WORDS.compare);
  const ratio = slider('keep_ratio', { min: Math.min(least, started), max: 1, step: 0.01, value: started }, () => {},
    { mark: ratioHelp.mark, onChange: (value) => work.setKeepRatio(value) });
  const auto = checkbox('auto: as the photograph needs', (checked) => {
    work.setKeepRatio(checked ? 'auto' : ratio.input.valueAsNumber);
  });
  const busy = h('span', { class: 'busy', hidden: true }, h('i', { class: 'spinner' }), 'encoding');
  const spent = h('p', { class: 'spent' }, h('span', {}));
  const costs = h('p', { class: 'spent' }, h('span', {}), gmacsHelp.mark);
  const overlay = h('select', { 'aria-label': 'What is laid over the photograph' },
    new Option('nothing', ''), new Option('big tokens', 'tokens'), new Option('importance', 'heat'));
  const layers = h('select', { 'aria-label': 'Of which layers' });
  const layersRow = h('label', { class: 'row', hidden: true }, h('span', {}, 'Layers'), layers);
  const compare = checkbox('Compare with the dense encoder', (checked) => work.set({ compare: checked }));
  const comparing = h('span', { class: 'busy', hidden: true }, h('i', { class: 'spinner' }), 'comparing');
  const element = panel('Encoder', true,
    ratio.element, ratioHelp.panel, auto.element, h('div', { class: 'line' }, spent, busy), costs, gmacsHelp.panel,
    h('label', { class: 'row' }, h('span', {}, 'Show', overlayHelp.mark), overlay), overlayHelp.panel, layersRow,
    h('div', { class: 'line' }, compare.element, compareHelp.mark, comparing), compareHelp.panel);
  element.children[0].append(h('span', { class: 'count' }, info.model));
  element.classList.toggle('dense', !info.routed);
  /** @type {unknown} */
  let stages = null;

  overlay.onchange = layers.onchange = () => showOverlay();

  async function showOverlay() {
    const chosen = work.encoding?.stages[Number(layers.value || 0)];
    layersRow.hidden = !overlay.value || !work.encoding?.stages.length;
    look.overlay = /** @type {''|'tokens'|'heat'} */ (overlay.value);
    const url = overlay.value === 'heat' ? chosen?.heat : chosen?.tokens;
    look.grid = url ? await createImageBitmap(await (await fetch(url)).blob()).catch(() => null) : null;
    if (overlay.value && !url && work.encoding) work.say('Here the encoder chose no tokens: all of them are big.');
    stage.draw();
  }

  function update() {
    const { encoding, settings } = work, isAuto = settings.keepRatio === 'auto';
    auto.input.checked = isAuto;
    ratio.input.disabled = isAuto || !info.routed;
    auto.input.disabled = !info.routed;
    ratio.element.classList.toggle('off', ratio.input.disabled);
    if (!isAuto && ratio.input.valueAsNumber !== settings.keepRatio && !ratio.input.matches(':active')) {
      ratio.input.min = String(Math.min(least, Number(settings.keepRatio)));
      ratio.set(Number(settings.keepRatio));
    }
    if (isAuto) ratio.output.textContent = 'auto';
    busy.hidden = !work.encodingNow || !work.photo;
    comparing.hidden = !settings.compare || !(work.comparing || (!work.encodingNow && work.answers.waiting));
    const share = encoding?.stages.length
      ? encoding.stages.reduce((sum, each) => sum + each.share, 0) / encoding.stages.length : null;
    const took = encoding ? encoding.milliseconds.toFixed(0) + ' ms' : '';
    spent.children[0].textContent = !encoding ? (work.photo ? '' : 'Open a photograph to see what it costs.')
      : (encoding.cached ? 'Encoder: kept from before (' + took + ' then)' : 'Encoder: ' + took)
        + (share === null ? '' : ', ' + Math.round(100 * share) + ' % of the tokens big');
    costs.hidden = !encoding;
    costs.children[0].textContent = encoding
      ? encoding.gmacs.toFixed(1) + ' of ' + encoding.dense_gmacs.toFixed(1) + ' GMACs' : '';
    compare.input.checked = settings.compare;
    if (encoding && encoding !== stages) {
      stages = encoding;
      const before = Number(layers.value || 0);
      layers.replaceChildren(...encoding.stages.map((each, index) =>
        new Option(each.layers + ' (' + Math.round(100 * each.share) + ' % big)', String(index))));
      layers.value = String(before < encoding.stages.length ? before : 0);
      if (overlay.value) showOverlay();
    }
    element.classList.toggle('stale', work.encodingNow);
  }
  return { element, update };
}

/** How masks are shown, and the preview. @param {import('./app.js').App} app */
export function makeLook(app) {
  const { work, stage, look } = app;
  const opacity = slider('Opacity', { min: 0, max: 1, step: 0.05, value: look.opacity }, (value) => {
    look.opacity = value;
    stage.draw();
  });
  const outline = checkbox('Outlines only', (checked) => {
    look.outline = checked;
    stage.draw();
  });
  const preview = checkbox('Preview under the pointer', (checked) => {
    work.set({ preview: checked });
    work.hover.clear();
  });
  preview.element.classList.add('preview'); // a finger does not hover
  const element = h('div', { class: 'look' }, opacity.element, outline.element, preview.element);

  function update() {
    const { quick } = work.hover;
    preview.input.checked = work.settings.preview && quick;
    preview.input.disabled = !quick;
    preview.element.title = quick ? 'The mask that a click would give, where the mouse rests'
      : 'Only where the decoder takes less than ' + QUICK + ' ms';
  }
  return { element, update };
}
