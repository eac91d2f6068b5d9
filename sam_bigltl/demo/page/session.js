// What survives a reload, a discarded tab and a restart of the server: the photograph and all that was done to it, in
// IndexedDB.

/**
 * @typedef {import('./types.js').Photo} Photo
 * @typedef {{photo: Photo, history: import('./types.js').History, settings: object}} Saved
 * @typedef {Saved & {id: string, format: number, time: number}} Row
 */

const SESSIONS = 'sessions', PHOTOS = 'photos';
const FORMAT = 1; // of a saved session: one of another format is not read
const KEPT = 5;
const LONGEST = 14 * 24 * 3600 * 1000;
const TAB = 'sam_bigltl.tab';

/**
 * A session of this tab. Where the browser keeps nothing (a private window, a full disk), all methods do nothing.
 */
export class Session {
  /**
   * @param {IDBDatabase|null} database
   * @param {string} id
   */
  constructor(database, id) {
    this.database = database;
    this.id = id;
    /** @type {Saved|null} */
    this.next = null;
    this.timer = 0;
    /** @type {string|null} */
    this.key = null; // of the photograph that is kept
  }

  /** @param {string} [name]   of the database */
  static async start(name = 'sam_bigltl') {
    const database = await open(name).catch(() => null);
    return new Session(database, await tab());
  }

  /** @returns {Promise<(Saved & {blob: Blob})|null>} what this tab showed last */
  async restore() {
    return this.read(this.id);
  }

  /** @returns {Promise<Row[]>} what other tabs showed, the latest first */
  async others() {
    const rows = await this.rows();
    return rows.filter((row) => row.id !== this.id && row.format === FORMAT);
  }

  /**
   * @param {string} id
   * @returns {Promise<(Saved & {blob: Blob})|null>}
   */
  async read(id) {
    if (!this.database) return null;
    try {
      const [row, kept] = await Promise.all([
        this.request(SESSIONS, 'readonly', (store) => store.get(id)),
        this.request(PHOTOS, 'readonly', (store) => store.get(id)),
      ]);
      if (row?.format !== FORMAT || kept?.key !== row.photo.key) return null;
      if (id === this.id) this.key = kept.key;
      return { ...row, blob: kept.blob };
    } catch {
      return null;
    }
  }

  /**
   * A photograph was opened.
   *
   * @param {Saved} saved
   * @param {Blob} blob   its file
   */
  async begin(saved, blob) {
    this.drop();
    if (!this.database) return;
    try {
      await this.request(PHOTOS, 'readwrite', (store) => store.put({ id: this.id, key: saved.photo.key, blob }));
      this.key = saved.photo.key;
      await this.write(saved);
      await this.tidy();
    } catch {
      this.key = null; // a full disk: this photograph will not come back
    }
  }

  /**
   * Soon, and once for several in a row.
   *
   * @param {Saved} saved
   */
  save(saved) {
    this.next = saved;
    if (!this.timer) this.timer = Number(setTimeout(() => this.flush(), 150));
  }

  /** Now: the page may be about to go. */
  async flush() {
    const saved = this.next;
    this.drop();
    if (saved && this.database && saved.photo.key === this.key) await this.write(saved).catch(() => {});
  }

  drop() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.next = null;
  }

  /** @param {Saved} saved */
  write({ photo, history, settings }) {
    const row = { id: this.id, format: FORMAT, time: Date.now(), photo, history, settings };
    return this.request(SESSIONS, 'readwrite', (store) => store.put(row));
  }

  /** @returns {Promise<Row[]>} */
  async rows() {
    if (!this.database) return [];
    const rows = await this.request(SESSIONS, 'readonly', (store) => store.getAll()).catch(() => []);
    return rows.sort((/** @type {Row} */ a, /** @type {Row} */ b) => b.time - a.time);
  }

  /** Only the latest sessions stay. */
  async tidy() {
    const rows = await this.rows();
    for (const [index, row] of rows.entries()) {
      if (row.id === this.id || (index < KEPT && Date.now() - row.time < LONGEST)) continue;
      for (const name of [SESSIONS, PHOTOS]) await this.request(name, 'readwrite', (store) => store.delete(row.id));
    }
  }

  /**
   * @param {string} name
   * @param {IDBTransactionMode} mode
   * @param {(store: IDBObjectStore) => IDBRequest} act
   * @returns {Promise<any>}
   */
  request(name, mode, act) {
    return new Promise((resolve, reject) => {
      const transaction = /** @type {IDBDatabase} */ (this.database).transaction(name, mode);
      const request = act(transaction.objectStore(name));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }
}

/**
 * @param {string} name
 * @returns {Promise<IDBDatabase>}
 */
function open(name) {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => {
      for (const store of [SESSIONS, PHOTOS]) request.result.createObjectStore(store, { keyPath: 'id' });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => reject(request.error);
  });
}

/** A name for this tab that a reload keeps; a copy of the tab gets another one. */
async function tab() {
  try {
    const id = sessionStorage.getItem(TAB);
    for (let tries = 0; id && tries < 8; tries++) { // a reload may come before the lock of the page before is gone
      if (await claim(id)) return id;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  } catch { /* no storage: a new name each time */ }
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2);
  await claim(id);
  try {
    sessionStorage.setItem(TAB, id);
  } catch { /* as above */ }
  return id;
}

/**
 * Whether no other page has this name. It is ours until the page goes.
 *
 * @param {string} id
 * @returns {Promise<boolean>}
 */
function claim(id) {
  if (!globalThis.navigator?.locks) return Promise.resolve(true); // an insecure origin has none
  return new Promise((resolve) => {
    navigator.locks.request('sam_bigltl.' + id, { ifAvailable: true }, (lock) => {
      resolve(lock !== null);
      return lock ? new Promise(() => {}) : undefined;
    }).catch(() => resolve(true));
  });
}
