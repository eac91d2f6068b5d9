// A photograph from the camera.
import { h } from './dom.js';

/** @param {import('./app.js').App} app */
export function makeWebcam(app) {
  const { work } = app;
  const video = h('video', { muted: true, playsInline: true, 'aria-label': 'What the camera sees' });
  const take = h('button', { type: 'button', class: 'primary', onclick: () => shoot() }, 'Take the photograph');
  const cancel = h('button', { type: 'button', onclick: () => stop() }, 'Cancel');
  const element = h('div', { class: 'camera', hidden: true }, video, h('div', { class: 'buttons' }, take, cancel));
  let asked = 0;

  async function start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      work.say('The camera needs a secure address: open this page by https://, or at localhost on this machine.', true);
      return;
    }
    const turn = ++asked;
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } } });
      if (turn !== asked) return end(stream); // cancelled while the browser asked for permission
      video.srcObject = stream;
      element.hidden = false;
      app.changed();
      await video.play();
      take.focus();
    } catch (error) {
      const { name, message } = /** @type {DOMException} */ (error);
      const why = name === 'NotAllowedError' ? 'the browser does not allow it: see the address bar'
        : name === 'NotFoundError' ? 'there is none on this machine' : message;
      stop();
      work.say('No camera: ' + why + '.', true);
    }
  }

  function stop() {
    asked++;
    if (video.srcObject) end(/** @type {MediaStream} */ (video.srcObject));
    video.srcObject = null;
    element.hidden = true;
    app.changed();
  }

  function shoot() {
    if (!video.videoWidth) return;
    const canvas = h('canvas', { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext('2d')?.drawImage(video, 0, 0);
    stop();
    canvas.toBlob((blob) => blob && work.open(blob, 'webcam.jpg'), 'image/jpeg', 0.95);
  }

  return { element, start, stop, isOpen: () => !element.hidden };
}

/** @param {MediaStream} stream */
function end(stream) {
  for (const track of stream.getTracks()) track.stop();
}
