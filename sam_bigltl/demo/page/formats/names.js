// Names of files that every system takes.

const RESERVED = /^(con|prn|aux|nul|com\d|lpt\d)$/i; // of Windows, with any ending
const LONGEST = 80; // characters

/**
 * A name without what a file's name may not hold, or what would hide what it is.
 *
 * @param {string} name
 * @param {string} otherwise   where nothing is left
 */
export function safeName(name, otherwise) {
  const plain = name.normalize('NFC').replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}/\\:*?"<>|\s]+/gu, ' ');
  const cut = [...plain].slice(0, LONGEST).join('').replace(/^[. ]+|[. ]+$/g, '');
  return RESERVED.test(cut.split('.')[0]) ? '_' + cut : cut || otherwise;
}

/**
 * A file's name without folders and ending.
 *
 * @param {string} name
 */
export function stemOf(name) {
  const last = name.split(/[/\\]/).filter(Boolean).pop() ?? '', dot = last.lastIndexOf('.');
  return safeName(dot > 0 ? last.slice(0, dot) : last, 'photo');
}

/**
 * The name of the photograph's file, without folders.
 *
 * @param {string} name
 */
export const fileNameOf = (name) => safeName(name.split(/[/\\]/).filter(Boolean).pop() ?? '', 'photo');

/**
 * Names that differ, also where capitals do not count: later ones get a number.
 *
 * @param {string[]} names   stem and ending
 */
export function uniqueNames(names) {
  const taken = new Set();
  return names.map((name) => {
    const dot = name.lastIndexOf('.'), [stem, ending] = dot > 0 ? [name.slice(0, dot), name.slice(dot)] : [name, ''];
    let unique = name;
    for (let number = 2; taken.has(unique.toLowerCase()); number++) unique = `${stem} (${number})${ending}`;
    taken.add(unique.toLowerCase());
    return unique;
  });
}
