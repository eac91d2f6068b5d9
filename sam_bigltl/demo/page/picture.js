// The photograph as the browser draws it: all of it when it is small on the stage, its own pixels when it is large.

const SMALL = 2048;

/**
 * @typedef {import('./view.js').View} View
 * @typedef {import('./view.js').Size} Size
 */

export class Picture {
  /**
   * @param {ImageBitmap} small
   * @param {ImageBitmap|null} full   null: `small` has all the pixels, or the browser has no room for them
   * @param {Size} size   of the upright original
   */
  constructor(small, full, size) {
    this.small = small;
    this.full = full;
    this.size = size;
  }

  /**
   * @param {Blob} blob
   * @param {Size} size   of the upright original
   * @param {() => Promise<Blob>} preview   for files that this browser cannot show
   */
  static async open(blob, size, preview) {
    let full = await bitmap(blob);
    if (!full || Math.abs(full.width / full.height - size.width / size.height) > 0.02 * size.width / size.height) {
      full?.close();
      full = await bitmap(await preview());
    }
    if (!full) throw new Error('This browser cannot read its file.');
    const longest = Math.max(full.width, full.height);
    if (longest <= SMALL) return new Picture(full, null, size);
    const resizeWidth = Math.max(1, Math.round(full.width * SMALL / longest));
    const resizeHeight = Math.max(1, Math.round(full.height * SMALL / longest));
    const small = await createImageBitmap(full, { resizeWidth, resizeHeight, resizeQuality: 'high' });
    return new Picture(small, full, size);
  }

  close() {
    this.small.close();
    this.full?.close();
  }

  /**
   * @param {CanvasRenderingContext2D} context   in CSS pixels
   * @param {View} view
   * @param {Size} stage
   * @param {number} density   device pixels for a CSS pixel
   */
  draw(context, view, stage, density) {
    const { width, height } = this.size;
    const source = this.full && view.scale * density > this.small.width / width ? this.full : this.small;
    // Only what is seen: a browser may copy all that it is asked to draw.
    const left = Math.max(0, Math.floor(-view.left / view.scale) - 1);
    const top = Math.max(0, Math.floor(-view.top / view.scale) - 1);
    const right = Math.min(width, Math.ceil((stage.width - view.left) / view.scale) + 1);
    const bottom = Math.min(height, Math.ceil((stage.height - view.top) / view.scale) + 1);
    if (right <= left || bottom <= top) return;
    const across = source.width / width, down = source.height / height;
    context.imageSmoothingEnabled = view.scale * density < 3 * across;
    context.imageSmoothingQuality = 'high';
    context.drawImage(
      source, left * across, top * down, (right - left) * across, (bottom - top) * down,
      left * view.scale + view.left, top * view.scale + view.top,
      (right - left) * view.scale, (bottom - top) * view.scale,
    );
    context.imageSmoothingEnabled = true;
  }
}

/**
 * @param {Blob} blob
 * @returns {Promise<ImageBitmap|null>}
 */
async function bitmap(blob) {
  try {
    return await createImageBitmap(blob, { imageOrientation: 'from-image' });
  } catch {
    return null;
  }
}
