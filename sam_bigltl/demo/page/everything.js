// Everything mode: all regions of the photograph, by a grid of points.
import { h, help, panel, slider } from './dom.js';
import { adoptRegions, setRegions } from './scene.js';

/** @param {import('./app.js').App} app */
export function makeEverything(app) {
  const { work, stage } = app, defaults = work.info.everything, options = { ...defaults };
  const iouHelp = help('the predicted IoU',
    'How good the model expects a mask to be, 1 at best. Masks below this are left out.');
  const stabilityHelp = help('stability',
    'How little a mask changes when its threshold is moved, 1 at best. Masks below this are left out.');
  const points = slider('Points a side', { min: 4, max: 48, step: 1, value: defaults.points_per_side },
    (value) => { options.points_per_side = value; }, { digits: 0 });
  const iou = slider('Least predicted IoU', { min: 0, max: 1, step: 0.01, value: defaults.pred_iou_thresh },
    (value) => { options.pred_iou_thresh = value; }, { mark: iouHelp.mark });
  const stability = slider('Least stability', { min: 0, max: 1, step: 0.01, value: defaults.stability_score_thresh },
    (value) => { options.stability_score_thresh = value; }, { mark: stabilityHelp.mark });
  const start = h('button', { type: 'button', class: 'primary start', onclick: () => work.everything({ ...options }) },
    'Segment everything');
  const stop = h('button', { type: 'button', class: 'stop', hidden: true, onclick: () => work.stop() }, 'Stop');
  const bar = h('progress', { max: 1, value: 0, 'aria-label': 'Progress of everything mode', hidden: true });
  const count = h('p', { class: 'found', role: 'status' });
  const pick = h('button', {
    type: 'button', class: 'pick', title: 'Clicks on regions make objects of them',
    onclick: () => stage.setMode(stage.mode === 'pick' ? 'object' : 'pick'),
  }, 'Pick regions');
  const all = h('button', {
    type: 'button', title: 'Every region becomes an object',
    onclick: () => work.act((scene) => adoptRegions(scene, scene.regions.map((_, index) => index))),
  }, 'All as objects');
  const none = h('button', {
    type: 'button', onclick: () => work.act((scene) => setRegions(scene, [])),
  }, 'Remove regions');
  const after = h('div', { class: 'buttons', hidden: true }, pick, all, none);
  const element = panel('Everything', false,
    points.element, iou.element, iouHelp.panel, stability.element, stabilityHelp.panel,
    h('div', { class: 'buttons' }, start, stop), bar, count, after);

  function update() {
    const { progress, scene, photo } = work, found = scene.regions.length;
    start.disabled = !photo || progress !== null;
    stop.hidden = bar.hidden = progress === null;
    after.hidden = !found || progress !== null;
    if (progress) bar.value = progress.done;
    pick.ariaPressed = String(stage.mode === 'pick');
    if (stage.mode === 'pick' && !found && !progress) stage.setMode('object');
    const text = progress ? Math.round(100 * progress.done) + ' %, ' + progress.found + ' found so far'
      : found ? found + (found === 1 ? ' region' : ' regions') : photo ? '' : 'Open a photograph first.';
    if (count.textContent !== text) count.textContent = text;
  }
  return { element, update };
}
