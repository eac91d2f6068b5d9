// Calls to a backend that forgets photographs and may be away for a while.
import { BackendError } from './types.js';

const LONGEST_WAIT = 5000;

export class Steady {
  /**
   * @param {() => Promise<unknown>} resend   gives the backend its photograph again
   * @param {(offline: boolean) => void} onOffline   whether it answers
   */
  constructor(resend, onOffline) {
    this.resend = resend;
    this.onOffline = onOffline;
    /** @type {Promise<unknown>|null} */
    this.resending = null;
    this.offline = false;
  }

  /**
   * What `call` answers, in the end.
   *
   * @template T
   * @param {() => Promise<T>} call
   * @param {AbortSignal} [signal]   ends the attempts
   * @returns {Promise<T>}
   */
  async run(call, signal) {
    let wait = 250, sent = 0;
    for (;;) {
      try {
        const answer = await call();
        this.say(false);
        return answer;
      } catch (error) {
        if (signal?.aborted || !(error instanceof BackendError)) throw error;
        if (error.gone && sent < 3) {
          sent++;
          await this.sendAgain(signal);
        } else if (error.offline) {
          this.say(true);
          await pause(wait, signal);
          wait = Math.min(2 * wait, LONGEST_WAIT);
        } else throw error;
      }
    }
  }

  /**
   * Once for all calls that wait for it.
   *
   * @param {AbortSignal} [signal]
   */
  async sendAgain(signal) {
    this.resending ??= this.resend().finally(() => { this.resending = null; });
    try {
      await this.resending;
    } catch (error) {
      if (signal?.aborted || !(error instanceof BackendError && error.offline)) throw error;
      this.say(true);
      await pause(500, signal); // and the call finds out again
    }
  }

  /** @param {boolean} offline */
  say(offline) {
    if (offline === this.offline) return;
    this.offline = offline;
    this.onOffline(offline);
  }
}

/**
 * @param {number} milliseconds
 * @param {AbortSignal} [signal]
 */
function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => { clearTimeout(timer); reject(signal?.reason); };
    const timer = setTimeout(() => { signal?.removeEventListener('abort', stop); resolve(undefined); }, milliseconds);
    signal?.addEventListener('abort', stop, { once: true });
  });
}
