/**
 * The lengths of a mask's runs as COCO's compressed string: every length as its difference from the one two before, in
 * characters of five bits and one that says that more follow.
 *
 * @param {number[]} runs   down the columns, the first one of background
 */
export function encodeCounts(runs) {
  let text = '';
  runs.forEach((run, i) => {
    let rest = i > 2 ? run - runs[i - 2] : run, more = true;
    while (more) {
      const bits = rest & 31;
      rest >>= 5;
      more = bits & 16 ? rest !== -1 : rest !== 0;
      text += String.fromCharCode(48 + bits + (more ? 32 : 0));
    }
  });
  return text;
}
