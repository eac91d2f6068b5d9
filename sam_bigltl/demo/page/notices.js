// What the page says: what it shows, what it waits for, what went wrong.
import { button, h } from './dom.js';
import { activeOf, hasPrompt } from './scene.js';

/** @param {import('./app.js').App} app */
export function makeNotices(app) {
  const { work, stage } = app;
  const facts = h('span', { class: 'facts' });
  const text = h('span', { class: 'notice-text' });
  const again = h('button', {
    type: 'button', class: 'again', hidden: true, onclick: () => work.notice?.retry?.(),
  }, 'Try again');
  const close = button('close', 'Close this message', 'Close', () => work.say(''), 'icon plain');
  const notice = h('div', { class: 'notice', hidden: true }, text, again, close);
  const loud = h('div', { class: 'unseen', role: 'alert' }), calm = h('div', { class: 'unseen', role: 'status' });
  const busy = h('div', { class: 'busy-sign', hidden: true }, h('i', { class: 'spinner' }), h('span', {}));
  const status = h('div', { class: 'status' }, facts, loud, calm);

  function update() {
    const { photo, notice: said, milliseconds } = work;
    notice.hidden = !said;
    notice.classList.toggle('error', Boolean(said?.error));
    const words = said?.text ?? '';
    if (text.textContent !== words) text.textContent = words;
    const [spoken, silent] = said?.error ? [loud, calm] : [calm, loud];
    if (spoken.textContent !== words) spoken.textContent = words;
    if (silent.textContent) silent.textContent = '';
    again.hidden = !said?.retry;
    const waits = waitingFor(work, stage);
    busy.hidden = !waits;
    if (waits) busy.children[1].textContent = waits;
    stage.element.ariaBusy = String(Boolean(waits));
    const parts = photo ? [photo.note || photo.width + ' x ' + photo.height + ' px'] : [];
    if (milliseconds !== null) parts.push('decoder ' + milliseconds.toFixed(0) + ' ms');
    if (app.latency) parts.push('click to mask ' + app.latency + ' ms');
    facts.replaceChildren(h('b', {}, photo?.name ?? ''), ' ' + parts.filter(Boolean).join(' · '));
  }
  return { status, notice, busy, update };
}

/**
 * What the user waits for, in a few words.
 *
 * @param {import('./work.js').Work} work
 * @param {import('./stage.js').Stage} stage
 */
export function waitingFor(work, stage) {
  if (work.opening) return 'opening ' + work.opening;
  if (work.offline) return 'the server does not answer: trying again';
  if (!work.photo) return '';
  if (stage.loading) return 'opening ' + work.photo.name;
  if (work.encodingNow) return 'encoding';
  const active = activeOf(work.scene);
  if (work.answers.waiting && hasPrompt(active) && !work.shown(active)?.fresh) return 'computing the mask';
  return '';
}
