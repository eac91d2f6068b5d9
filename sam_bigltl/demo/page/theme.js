// Light or dark: as the page around says (Gradio's class `dark`), or else as the system does.

/**
 * @param {HTMLElement} page
 * @returns {() => void}   to be called once the style sheet is there
 */
export function followTheme(page) {
  const system = matchMedia('(prefers-color-scheme: dark)');
  const around = [document.documentElement, document.body];
  const set = () => {
    const gradio = document.querySelector('gradio-app, .gradio-container') !== null;
    const dark = around.some((element) => element.classList.contains('dark')) || (!gradio && system.matches);
    page.dataset.theme = dark ? 'dark' : 'light';
    document.body.style.background = getComputedStyle(page).backgroundColor; // around the page, where it is dragged
  };
  for (const element of around) new MutationObserver(set).observe(element, { attributeFilter: ['class'] });
  system.addEventListener('change', set);
  set();
  return set;
}
