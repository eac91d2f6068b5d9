// Pointer, wheel and touch events of the canvas, given to the stage.

/**
 * @param {HTMLCanvasElement} canvas
 * @param {import('./stage.js').Stage} stage
 */
export function listen(canvas, stage) {
  const { gestures } = stage;
  /** @param {PointerEvent} event */
  const pointer = (event) => {
    const frame = canvas.getBoundingClientRect();
    return {
      id: event.pointerId, type: event.pointerType, button: event.button, x: event.clientX - frame.left,
      y: event.clientY - frame.top, shift: event.shiftKey, pan: stage.space,
    };
  };
  canvas.addEventListener('pointerdown', (event) => {
    canvas.focus({ preventScroll: true });
    try {
      canvas.setPointerCapture(event.pointerId);
    } catch { /* it has gone up already */ }
    gestures.press(pointer(event));
  });
  canvas.addEventListener('pointermove', (event) => {
    const all = event.getCoalescedEvents?.() ?? [];
    for (const each of all.length && stage.drag?.kind === 'stroke' ? all : [event]) gestures.move(pointer(each));
  });
  canvas.addEventListener('pointerup', (event) => gestures.release(pointer(event)));
  canvas.addEventListener('pointercancel', () => gestures.cancel());
  canvas.addEventListener('pointerleave', (event) => { if (event.pointerType !== 'touch') stage.hover(null); });
  canvas.addEventListener('contextmenu', (event) => event.preventDefault());
  canvas.addEventListener('mousedown', (event) => { if (event.button === 1) event.preventDefault(); }); // no autoscroll
  canvas.addEventListener('wheel', (event) => {
    if (!stage.work.photo) return;
    event.preventDefault();
    const frame = canvas.getBoundingClientRect();
    const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
    const speed = event.ctrlKey ? 0.01 : 0.0018; // a pinch on a trackpad comes as small steps with Ctrl
    const turned = Math.max(-300, Math.min(300, event.deltaY * lines));
    stage.zoom(Math.exp(-turned * speed), event.clientX - frame.left, event.clientY - frame.top);
  }, { passive: false });
  // Safari's own pinch would zoom the whole page.
  for (const name of ['gesturestart', 'gesturechange']) {
    canvas.addEventListener(name, (event) => event.preventDefault());
  }
}
