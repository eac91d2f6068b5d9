// Lints the page's modules as well: `npm run lint` starts it at the root of the repository.
import js from '@eslint/js';
import globals from 'globals';

export default [
  { ignores: ['**/node_modules/', '**/dist/', '**/public/models/'] },
  js.configs.recommended,
  {
    files: ['**/*.js'],
    languageOptions: { ecmaVersion: 2023, sourceType: 'module', globals: { ...globals.browser, ...globals.worker } },
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    rules: {
      'eqeqeq': 'error',
      'max-len': ['error', { code: 120, ignoreUrls: true }],
      'max-lines': ['error', 400],
      'no-console': 'error',
      'no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
      'no-var': 'error',
      'prefer-const': 'error',
    },
  },
  {
    files: ['demo/web/*.js', 'demo/web/tests/**/*.js', 'demo/web/plugins/**/*.js'],
    languageOptions: { globals: globals.node },
  },
];
