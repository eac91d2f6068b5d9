// The photograph, its masks and the clicks on it. Events to Python: 'act', 'open', 'compare'. Props from Python: value (the scene),
// photo, tokens, dense, regions, examples.
const find = (selector) => element.querySelector(selector);
const all = (selector) => [...element.querySelectorAll(selector)];
const stage = find('.stage'), view = find('.view'), pen = view.getContext('2d'), camera = find('.camera');
let mode = '1', photo = null, scene = { items: [], active: 0 }, tokens = null, dense = null, regions = null;
let corner = null, pressed = null, hover = null, drawing = 0;
const asked = []; // times of the clicks that have no answer yet
const mostBytes = props.most_bytes; // an update may leave out what it does not change
const pictures = new Map(); // data URL -> decoded image, the last ones used

async function picture(url) {
  if (!url) return null;
  if (!pictures.has(url)) {
    const image = new Image();
    image.src = url;
    pictures.set(url, image.decode().then(() => image, () => null));
    if (pictures.size > 200) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(url);
}

function blank(width, height) {
  const canvas = document.createElement('canvas');
  canvas.width = width; canvas.height = height;
  return canvas;
}

// A mask in one colour: its inside, or its outline of `line` pixels.
function tinted(mask, colour, line) {
  const canvas = blank(photo.width, photo.height), context = canvas.getContext('2d');
  if (line) {
    for (let step = 0; step < 8; step++)
      context.drawImage(mask, Math.round(line * Math.cos(step * Math.PI / 4)), Math.round(line * Math.sin(step * Math.PI / 4)));
    context.globalCompositeOperation = 'destination-out';
  }
  context.drawImage(mask, 0, 0);
  context.globalCompositeOperation = 'source-in';
  context.fillStyle = colour;
  context.fillRect(0, 0, canvas.width, canvas.height);
  return canvas;
}

const line = () => Math.max(1, Math.round(Math.max(photo.width, photo.height) / 350));

function drawMask(context, mask, colour) {
  if (!find('.outline').checked) {
    context.globalAlpha = Number(find('.opacity').value);
    context.drawImage(tinted(mask, colour, 0), 0, 0);
    context.globalAlpha = 1;
  }
  context.drawImage(tinted(mask, '#ffffff', line() + 1), 0, 0);
  context.drawImage(tinted(mask, colour, line()), 0, 0);
}

function drawBox(context, [x0, y0, x1, y1], colour) {
  for (const [stroke, width] of [['#ffffff', line() + 2], [colour, line()]]) {
    context.strokeStyle = stroke; context.lineWidth = width;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
}

function drawPoint(context, [x, y, label], faint) {
  const radius = 4 * line() + 2;
  context.globalAlpha = faint ? 0.45 : 1;
  context.beginPath(); context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = label ? '#28c83c' : '#e12828'; context.fill();
  context.lineWidth = line() + 1; context.strokeStyle = '#ffffff'; context.stroke();
  context.beginPath(); context.moveTo(x - radius / 2, y); context.lineTo(x + radius / 2, y);
  if (label) { context.moveTo(x, y - radius / 2); context.lineTo(x, y + radius / 2); }
  context.stroke(); context.globalAlpha = 1;
}

async function drawOverlay(context) {
  const kind = find('.overlay').value, index = Number(find('.stages').value || 0), entry = tokens?.stages[index];
  if (!kind || !entry) return;
  const side = Math.max(photo.width, photo.height); // tokens cover the padded square
  const grid = await picture(kind === 'tokens' ? entry.tokens : entry.heat);
  if (!grid) return;
  context.imageSmoothingEnabled = kind === 'heat';
  context.globalAlpha = 0.62;
  if (kind === 'heat') context.drawImage(grid, 0, 0, side, side);
  else { // tokens that stayed little in the dark
    const dark = blank(grid.width, grid.height), pencil = dark.getContext('2d');
    pencil.drawImage(grid, 0, 0);
    pencil.globalCompositeOperation = 'source-in';
    pencil.fillStyle = '#101018'; pencil.fillRect(0, 0, dark.width, dark.height);
    context.globalAlpha = 0.72;
    context.drawImage(dark, 0, 0, side, side);
  }
  context.globalAlpha = 1; context.imageSmoothingEnabled = true;
}

async function draw() {
  const turn = ++drawing;
  if (!photo) return;
  const base = await picture(photo.url), masks = await Promise.all(scene.items.map((item) => picture(item.mask)));
  const layer = await picture(regions?.url);
  const canvas = blank(photo.width, photo.height), context = canvas.getContext('2d');
  context.drawImage(base, 0, 0);
  await drawOverlay(context);
  if (turn !== drawing) return; // a newer scene is on its way
  if (layer) context.drawImage(layer, 0, 0);
  scene.items.forEach((item, index) => { if (masks[index]) drawMask(context, masks[index], item.colour); });
  scene.items.forEach((item, index) => {
    if (item.box) drawBox(context, item.box, item.colour);
    item.points.forEach((point) => drawPoint(context, point, index !== scene.active));
  });
  const start = pressed?.dragged ? pressed : corner;
  if (start && hover) drawBox(context, [start.x, start.y, hover.x, hover.y], scene.items[scene.active]?.colour || '#fff');
  if (view.width !== photo.width || view.height !== photo.height) { view.width = photo.width; view.height = photo.height; }
  pen.drawImage(canvas, 0, 0);
}

function chips() {
  const place = find('.objects');
  place.replaceChildren(...scene.items.map((item, index) => {
    const chip = document.createElement('div'), dot = document.createElement('span'), name = document.createElement('input');
    chip.className = 'chip' + (index === scene.active ? ' active' : '');
    dot.className = 'dot'; dot.style.background = item.colour;
    name.value = item.name; name.size = Math.max(4, item.name.length); name.maxLength = 40; name.ariaLabel = 'Name';
    name.onchange = () => send({ kind: 'rename', index, name: name.value });
    const remove = document.createElement('button');
    remove.className = 'remove'; remove.type = 'button'; remove.textContent = '\u00d7'; remove.title = 'Remove ' + item.name;
    remove.onclick = (event) => { event.stopPropagation(); send({ kind: 'remove', index }); };
    chip.onclick = () => { if (index !== scene.active) send({ kind: 'select', index }); };
    chip.append(dot, name, remove);
    return chip;
  }));
}

async function candidates() {
  const place = find('.candidates'), item = scene.items[scene.active];
  if (!photo || !item?.masks) return place.replaceChildren();
  const base = await picture(photo.url), masks = await Promise.all(item.masks.map(picture));
  place.replaceChildren(...masks.map((mask, index) => {
    const button = document.createElement('button'), small = blank(Math.round(76 * photo.width / photo.height), 76);
    const context = small.getContext('2d');
    context.drawImage(base, 0, 0, small.width, small.height);
    context.globalAlpha = 0.6;
    context.drawImage(tinted(mask, item.colour, 0), 0, 0, small.width, small.height);
    button.type = 'button'; button.role = 'radio'; button.ariaChecked = String(index === item.chosen);
    button.title = 'Mask ' + (index + 1) + ' (key ' + (index + 1) + ')';
    button.append(small, 'IoU ' + item.ious[index].toFixed(3));
    button.onclick = () => send({ kind: 'choose', index });
    return button;
  }));
}

async function comparison() {
  const box = find('.comparison'), on = find('.compare').checked && dense?.masks.length && photo;
  box.hidden = !on;
  if (!on) return;
  const base = await picture(photo.url), ours = await Promise.all(scene.items.filter((item) => item.mask).map((item) => picture(item.mask)));
  const theirs = await Promise.all(dense.masks.map((entry) => picture(entry.url)));
  for (const [name, masks, other, colour] of [['.ours', ours, theirs, '#ff3030'], ['.theirs', theirs, ours, '#3090ff']]) {
    const canvas = find(name), context = canvas.getContext('2d');
    canvas.width = photo.width; canvas.height = photo.height;
    context.drawImage(base, 0, 0);
    masks.forEach((mask, index) => {
      context.globalAlpha = 0.4; context.drawImage(tinted(mask, '#ffffff', 0), 0, 0); context.globalAlpha = 1;
      const only = blank(photo.width, photo.height), pencil = only.getContext('2d'); // what the other one leaves out
      pencil.drawImage(tinted(mask, colour, 0), 0, 0);
      pencil.globalCompositeOperation = 'destination-out';
      if (other[index]) pencil.drawImage(other[index], 0, 0);
      context.drawImage(only, 0, 0);
    });
  }
  const [left, right] = all('.comparison figcaption');
  const agreement = dense.masks.map((entry) => entry.name + ' ' + entry.iou.toFixed(3)).join(', ');
  left.textContent = 'keep_ratio ' + tokens.keep_ratio + ', encoder ' + tokens.ms.toFixed(0) + ' ms; red: only here';
  right.textContent = 'dense, encoder ' + dense.ms.toFixed(0) + ' ms; blue: only here. IoU of both: ' + agreement;
}

function status(text) {
  const words = [];
  if (photo) words.push(photo.name + ', ' + photo.note);
  if (tokens) {
    words.push('encoder ' + tokens.ms.toFixed(0) + ' ms');
    words.push(tokens.gmacs.toFixed(1) + ' of ' + tokens.dense_gmacs.toFixed(1) + ' GMACs');
  }
  if (scene.decoder_ms) words.push('decoder ' + scene.decoder_ms.toFixed(0) + ' ms');
  if (text) words.push(text);
  if (regions?.count) words.push(regions.count + ' regions');
  find('.status').textContent = words.join('  \u00b7  ');
}

function wait(text) {
  find('.wait').hidden = !text;
  find('.wait span').textContent = text || '';
}

function buttons() {
  all('[data-mode]').forEach((button) => { button.role = 'radio'; button.ariaChecked = String(button.dataset.mode === mode); });
  find('[data-do="undo"]').disabled = !scene.undo;
  find('[data-do="redo"]').disabled = !scene.redo;
  find('[data-do="clear"]').disabled = find('[data-do="new"]').disabled = !photo;
  stage.classList.toggle('empty', !photo && camera.hidden);
}

function setMode(value) { mode = value; corner = null; buttons(); draw(); }

function send(action) {
  if (!photo) return;
  asked.push(performance.now());
  trigger('act', action);
}

function openFile(file) {
  if (!file) return;
  if (file.size > mostBytes) return status(file.name + ' is too large: the demo takes ' + Math.floor(mostBytes / 2 ** 20) + ' MB at most');
  const reader = new FileReader();
  reader.onload = () => { wait('encoding ' + file.name); trigger('open', { name: file.name, data: reader.result }); };
  reader.onerror = () => status(file.name + ' cannot be read');
  reader.readAsDataURL(file);
}

async function webcam() {
  try {
    camera.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
  } catch (error) {
    return status('no webcam: ' + (error.message || error));
  }
  photo = null; camera.hidden = false; buttons(); camera.play();
  status('click on the picture to take it');
}

camera.onclick = () => {
  const shot = blank(camera.videoWidth, camera.videoHeight);
  shot.getContext('2d').drawImage(camera, 0, 0);
  camera.srcObject.getTracks().forEach((track) => track.stop());
  camera.hidden = true;
  shot.toBlob((blob) => openFile(new File([blob], 'webcam.jpg', { type: 'image/jpeg' })), 'image/jpeg', 0.95);
};

function place(event) {
  const frame = view.getBoundingClientRect();
  return { x: (event.clientX - frame.left) * photo.width / frame.width, y: (event.clientY - frame.top) * photo.height / frame.height };
}

view.addEventListener('pointerdown', (event) => {
  if (!photo || event.button !== 0) return;
  stage.focus({ preventScroll: true });
  view.setPointerCapture(event.pointerId);
  pressed = { ...place(event), clientX: event.clientX, clientY: event.clientY, dragged: false };
});
view.addEventListener('pointermove', (event) => {
  if (!photo) return;
  hover = place(event);
  if (pressed && Math.hypot(event.clientX - pressed.clientX, event.clientY - pressed.clientY) > 6) pressed.dragged = true;
  if (pressed?.dragged || corner) draw();
});
view.addEventListener('pointerup', (event) => {
  if (!pressed) return;
  const end = place(event), start = pressed;
  pressed = null;
  if (start.dragged) {
    corner = null;
    send({ kind: 'box', x0: start.x, y0: start.y, x1: end.x, y1: end.y });
  } else if (mode === 'box') {
    if (corner) { send({ kind: 'box', x0: corner.x, y0: corner.y, x1: end.x, y1: end.y }); corner = null; }
    else corner = end;
  } else send({ kind: 'point', x: end.x, y: end.y, label: event.shiftKey ? 1 - Number(mode) : Number(mode) });
});
view.addEventListener('pointercancel', () => { pressed = null; draw(); });

all('[data-mode]').forEach((button) => { button.onclick = () => setMode(button.dataset.mode); });
all('[data-do]').forEach((button) => { button.onclick = () => send({ kind: button.dataset.do }); });
find('[data-file="choose"]').onclick = () => find('input[type="file"]').click();
find('[data-file="webcam"]').onclick = webcam;
find('input[type="file"]').onchange = (event) => { openFile(event.target.files[0]); event.target.value = ''; };
for (const name of ['dragenter', 'dragover']) stage.addEventListener(name, (event) => { event.preventDefault(); stage.classList.add('over'); });
for (const name of ['dragleave', 'drop']) stage.addEventListener(name, (event) => { event.preventDefault(); stage.classList.remove('over'); });
stage.addEventListener('drop', (event) => openFile(event.dataTransfer.files[0]));
document.addEventListener('paste', (event) => {
  const file = [...(event.clipboardData?.files || [])].find((each) => each.type.startsWith('image/'));
  if (file) { event.preventDefault(); openFile(file); }
});
const KEYS = {
  o: () => setMode('1'), b: () => setMode(mode === '0' ? '1' : '0'), r: () => setMode('box'), n: () => send({ kind: 'new' }),
  z: () => send({ kind: 'undo' }), y: () => send({ kind: 'redo' }), backspace: () => send({ kind: 'clear' }),
  escape: () => { corner = pressed = null; draw(); },
  1: () => send({ kind: 'choose', index: 0 }), 2: () => send({ kind: 'choose', index: 1 }), 3: () => send({ kind: 'choose', index: 2 }),
};
document.addEventListener('keydown', (event) => {
  if (!element.isConnected || event.altKey || event.target.closest('input, textarea, select, [contenteditable]')) return;
  const chord = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
  if (chord && key !== 'z' && key !== 'y') return;
  const run = key === 'z' && event.shiftKey ? KEYS.y : KEYS[key];
  if (run) { event.preventDefault(); run(); }
});
for (const name of ['.opacity', '.outline', '.overlay', '.stages']) find(name).addEventListener('input', () => {
  find('.stage-choice').hidden = !find('.overlay').value || !tokens?.stages.length;
  draw();
});
find('.compare').onchange = () => { if (find('.compare').checked && photo) trigger('compare', {}); comparison(); };

// One function for all props: an answer brings several of them, in any order.
async function update() {
  if (props.photo && props.photo.serial !== photo?.serial) {
    photo = props.photo; corner = pressed = null;
    view.style.width = 'min(100%, ' + (68 * photo.width / photo.height).toFixed(2) + 'vh)';
  }
  if (props.tokens && props.tokens.serial !== tokens?.serial) takeTokens(props.tokens);
  if (props.regions) regions = props.regions;
  if (props.dense && props.dense.serial !== dense?.serial) { dense = props.dense; comparison(); }
  const answered = props.value?.items && props.value.serial !== scene.serial;
  if (answered) { scene = props.value; wait(''); chips(); }
  buttons();
  await draw();
  if (!answered) return status();
  const since = asked.shift();
  if (since !== undefined && scene.items[scene.active]?.mask) {
    const took = performance.now() - since;
    element.dataset.latencies = (element.dataset.latencies || '') + ' ' + took.toFixed(1);
    status('click to mask ' + took.toFixed(0) + ' ms');
  } else status(scene.message);
  element.dataset.answer = scene.serial;
  candidates();
  if (find('.compare').checked && photo) trigger('compare', {});
}

function takeTokens(fresh) {
  tokens = fresh;
  const select = find('.stages'), before = Number(select.value || 0);
  select.replaceChildren(...tokens.stages.map((entry, index) =>
    new Option(entry.layers + ' (' + Math.round(100 * entry.share) + ' % big)', index)));
  select.value = before < tokens.stages.length ? before : 0;
  find('.compare-choice').hidden = find('.overlay').parentElement.hidden = !tokens.stages.length;
}

watch(['value', 'photo', 'tokens', 'dense', 'regions'], update);

find('.examples').replaceChildren(...(props.examples || []).map((entry) => {
  const button = document.createElement('button'), image = new Image();
  image.src = entry.url; image.alt = entry.name;
  button.type = 'button'; button.title = entry.name; button.append(image);
  button.onclick = () => { wait('encoding ' + entry.name); trigger('open', { example: entry.name }); };
  return button;
}));
buttons();
