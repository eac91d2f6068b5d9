// The list of objects: names, colours, which one is active.
import { button, h } from './dom.js';
import { removeObject, rename } from './scene.js';

/**
 * @typedef {import('./types.js').Item} Item
 * @typedef {{element: HTMLLIElement, choose: HTMLButtonElement, name: HTMLInputElement, remove: HTMLButtonElement}} Row
 */

/** @param {import('./app.js').App} app */
export function makeObjects(app) {
  const { work } = app, list = h('ul', { class: 'objects', 'aria-label': 'Objects' });
  /** @type {Map<number, Row>} */
  const rows = new Map(); // kept as long as their objects: a field that has the focus is never made anew
  const count = h('span', { class: 'count' });
  const element = h('section', { class: 'panel open', 'aria-label': 'Objects' }, h('h2', {}, 'Objects ', count), list);

  /**
   * @param {Item} item
   * @returns {Row}
   */
  function makeRow({ id }) {
    const name = h('input', {
      type: 'text', maxLength: 40, 'aria-label': 'Name of the object', spellcheck: false, autocomplete: 'off',
      onchange: () => work.act((scene) => rename(scene, id, name.value)),
      onfocus: () => work.select(id),
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        if (event.key === 'Enter') name.blur();
        if (event.key === 'Escape') {
          name.value = nameOf(id);
          name.blur();
        }
      },
      onblur: () => { name.value = nameOf(id); },
    });
    const choose = h('button', { type: 'button', class: 'dot', onclick: () => work.select(id) });
    const remove = button('close', 'Remove', '', () => work.act((scene) => removeObject(scene, id)), 'icon plain');
    const element = h('li', { onclick: () => work.select(id) }, choose, name, remove);
    return { element, choose, name, remove };
  }

  const nameOf = (/** @type {number} */ id) => work.scene.objects.find((item) => item.id === id)?.name ?? '';

  function update() {
    const { objects, active } = work.scene;
    element.hidden = !work.photo;
    count.textContent = objects.length > 1 ? String(objects.length) : '';
    for (const [id, row] of rows) {
      if (objects.some((item) => item.id === id)) continue;
      row.element.remove();
      rows.delete(id);
    }
    objects.forEach((item, index) => {
      const row = rows.get(item.id) ?? makeRow(item), chosen = item.id === active;
      rows.set(item.id, row);
      if (list.children[index] !== row.element) list.insertBefore(row.element, list.children[index] ?? null);
      row.element.classList.toggle('active', chosen);
      row.choose.style.setProperty('--colour', item.colour);
      row.choose.ariaPressed = String(chosen);
      row.choose.ariaLabel = row.choose.title = (chosen ? 'Clicks are for ' : 'Choose ') + item.name;
      row.remove.ariaLabel = row.remove.title = 'Remove ' + item.name;
      const { activeElement } = /** @type {Document|ShadowRoot} */ (row.name.getRootNode());
      if (activeElement !== row.name && row.name.value !== item.name) row.name.value = item.name;
    });
  }
  return { element, update };
}
