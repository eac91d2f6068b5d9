// Colours of objects. The first are distinct on photographs and to colour-blind eyes; green and red are left to the
// points.

const FIRST = [
  '#0072ff', '#ffb000', '#aa3cdc', '#00c8c8', '#ff69b4', '#f0e63c', '#8c5a28', '#8caaff',
  '#ff7f2a', '#5a3cff', '#c8a0ff', '#007f8c', '#b4005a', '#ffd9a0', '#9c9c00', '#3c5a96',
  '#ff9c8c', '#64e6ff', '#78466e', '#d2c8b4', '#e600e6', '#1e3cb4', '#b4783c', '#a0d2e6',
];

/**
 * The colour of the object number `index`; no two are equal.
 *
 * @param {number} index
 * @returns {string} #rrggbb
 */
export function colourOf(index) {
  return FIRST[index] ?? fromHue((index * 137.508) % 360, 0.45 + 0.25 * ((index * 0.381966) % 1));
}

/**
 * The first colour that none of `taken` has.
 *
 * @param {string[]} taken
 */
export function freeColour(taken) {
  let index = 0;
  while (taken.includes(colourOf(index))) index++;
  return colourOf(index);
}

/**
 * A colour of full saturation.
 *
 * @param {number} hue   degrees
 * @param {number} lightness   0 to 1
 */
export function fromHue(hue, lightness) {
  const reach = Math.min(lightness, 1 - lightness);
  const channel = (/** @type {number} */ start) => {
    const turn = (start + hue / 30) % 12;
    const value = lightness - reach * Math.max(-1, Math.min(turn - 3, 9 - turn, 1));
    return Math.round(255 * value).toString(16).padStart(2, '0');
  };
  return '#' + channel(0) + channel(8) + channel(4);
}

/**
 * @param {string} colour   #rrggbb
 * @returns {[number, number, number]}
 */
export function channels(colour) {
  const value = parseInt(colour.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}
