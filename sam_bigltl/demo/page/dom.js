// Small helpers that make elements.
import { icon } from './icons.js';

/**
 * An element with properties or attributes, and its children. Names with a dash and `role` are attributes.
 *
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node|string|null|undefined|false)} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes('-') || name === 'role' || name === 'for') element.setAttribute(name, String(value));
    else if (name === 'class') element.className = value;
    else /** @type {any} */ (element)[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => /** @type {Node|string} */ (child)));
  return element;
}

/**
 * A button with an icon and a label.
 *
 * @param {string} picture   of icons.js; '' for none
 * @param {string} label
 * @param {string} title   what it does, and its key
 * @param {() => void} onclick
 * @param {string} [kind]   classes
 */
export function button(picture, label, title, onclick, kind = '') {
  return h('button', { type: 'button', class: kind, title, 'aria-label': label, onclick },
    picture && icon(picture), h('span', {}, label));
}

let helps = 0;

/**
 * A question mark that opens an explanation.
 *
 * @param {string} word   that it explains
 * @param {string} text
 */
export function help(word, text) {
  const id = 'help-' + ++helps;
  const panel = h('div', { class: 'help-text', id, role: 'note', hidden: true }, text);
  const mark = h('button', {
    type: 'button', class: 'help', title: text, 'aria-label': 'What is ' + word + '?', 'aria-expanded': 'false',
    'aria-controls': id, onclick: () => {
      panel.hidden = !panel.hidden;
      mark.setAttribute('aria-expanded', String(!panel.hidden));
    },
  }, '?');
  return { mark, panel };
}

/**
 * A panel that opens and closes.
 *
 * @param {string} title
 * @param {boolean} open
 * @param {...(Node|string|null|false)} children
 */
export function panel(title, open, ...children) {
  return h('details', { class: 'panel', open }, h('summary', {}, title), h('div', { class: 'inner' }, ...children));
}

/**
 * A checkbox with its label.
 *
 * @param {string} label
 * @param {(checked: boolean) => void} onchange
 * @param {boolean} [checked]
 */
export function checkbox(label, onchange, checked = false) {
  const input = h('input', { type: 'checkbox', checked });
  input.onchange = () => onchange(input.checked);
  return { input, element: h('label', { class: 'check' }, input, h('span', {}, label)) };
}

/**
 * A slider with its label and its value.
 *
 * @param {string} label
 * @param {{min: number, max: number, step: number, value: number}} range
 * @param {(value: number) => void} onInput   while it moves
 * @param {{mark?: Node, digits?: number, onChange?: (value: number) => void}} [more]   onChange: when it is let go
 */
export function slider(label, range, onInput, { mark, digits = 2, onChange } = {}) {
  const output = h('output', {});
  const input = h('input', { type: 'range', 'aria-label': label, ...range }); // the value after its bounds
  const show = () => { output.textContent = input.valueAsNumber.toFixed(digits); };
  input.oninput = () => { show(); onInput(input.valueAsNumber); };
  input.onchange = () => onChange?.(input.valueAsNumber);
  show();
  const set = (/** @type {number} */ value) => {
    input.value = String(value);
    show();
  };
  return { input, output, set, element: h('div', { class: 'slider' },
    h('div', { class: 'slider-head' }, h('span', {}, label), mark, output), input) };
}
