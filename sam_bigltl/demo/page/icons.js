// Icons of 24 x 24, in lines.

/** @type {Record<string, string>} */
const PATHS = {
  object: 'M12 5v14M5 12h14',
  background: 'M5 12h14',
  box: 'M4 6h16v12H4z',
  add: 'M4 20c0-3 1-5 4-5l9-11 3 3-10 9c0 3-2 4-6 4zM18 15v6M15 18h6',
  erase: 'M8 19l-4-4 10-10 6 6-8 8zM8 19h12M9 10l6 6',
  move: 'M12 3v18M3 12h18M12 3l-3 3M12 3l3 3M12 21l-3-3M12 21l3-3M3 12l3-3M3 12l3 3M21 12l-3-3M21 12l-3 3',
  pick: 'M6 3l12 9-5 1 3 6-3 1-3-6-4 4z',
  undo: 'M9 7L4 11l5 4M4 11h10a5 5 0 0 1 0 10h-3',
  redo: 'M15 7l5 4-5 4M20 11H10a5 5 0 0 0 0 10h3',
  new: 'M12 5v14M5 12h14M3 3h4M3 3v4M21 3h-4M21 3v4M3 21h4M3 21v-4M21 21h-4M21 21v-4',
  clear: 'M5 7h14M10 4h4M7 7l1 13h8l1-13',
  plus: 'M11 4a7 7 0 1 0 0 14a7 7 0 0 0 0-14M16 16l5 5M11 8v6M8 11h6',
  minus: 'M11 4a7 7 0 1 0 0 14a7 7 0 0 0 0-14M16 16l5 5M8 11h6',
  fit: 'M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5',
  open: 'M3 19V6h6l2 2h10v11zM12 16v-5M9.500 13l2.500-2.500 2.500 2.500',
  camera: 'M4 8h4l2-3h4l2 3h4v11H4zM12 10a3.500 3.500 0 1 0 0 7a3.500 3.500 0 0 0 0-7',
  close: 'M6 6l12 12M18 6L6 18',
};

/**
 * @param {string} name
 * @returns {SVGSVGElement}
 */
export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  for (const [key, value] of Object.entries({
    viewBox: '0 0 24 24', width: 20, height: 20, fill: 'none', stroke: 'currentColor', 'stroke-width': 1.8,
    'stroke-linecap': 'round', 'stroke-linejoin': 'round', 'aria-hidden': true,
  })) svg.setAttribute(key, String(value));
  const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  path.setAttribute('d', PATHS[name] ?? '');
  svg.append(path);
  return svg;
}
