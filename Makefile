# make quickstart   segment photographs with the shipped model
# make demo         serve the demo at http://127.0.0.1:7860
# make demo-web     build the demo that needs no server, and serve it at http://127.0.0.1:8000
# make web          build it in demo/web/dist, for a host of static files
# make test         run the tests
# make lint         check style, types and the direction of imports
# make test-browser run the demo's tests in Chromium, which it installs where there is none
# make test-web     check and test the demo's JavaScript, which needs Node.js
# make docs         build the documentation site in site/
# make wheel        a wheel with the compiled kernels in dist/, for other Linux machines, too
# make sanitize     run the tests of the kernels under AddressSanitizer and UndefinedBehaviorSanitizer
# make clean        remove caches and build files (keeps .venv, out/ and runs/)
# make distclean    make clean, and remove .venv
# Another interpreter: make test PYTHON=/path/to/python3.12

VENV := .venv
STAMP := $(VENV)/.installed
SUPPORTED := import sys; sys.exit(sys.version_info < (3, 10))

# The first that runs and is new enough: a pyenv shim can exist and still not run.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	if $$p -c "$(SUPPORTED)" >/dev/null 2>&1; then echo $$p; break; fi; done)

# The page without a server; its models are written at build time.
WEB := demo/web
WEB_MODULES := $(WEB)/node_modules/.package-lock.json
WEB_MODEL := $(WEB)/public/models/model.json

.PHONY: quickstart demo demo-web web test test-web lint test-browser docs wheel sanitize clean distclean

quickstart: $(STAMP)
	$(VENV)/bin/python demo/quickstart.py

demo: $(STAMP)
	$(VENV)/bin/python demo/app.py

demo-web: web
	$(VENV)/bin/python $(WEB)/serve.py

web: $(WEB_MODULES) $(WEB_MODEL)
	cd $(WEB) && npm run --silent build -- --logLevel warn

test-web: $(WEB_MODULES)
	cd $(WEB) && npm run --silent lint && npm run --silent test

$(WEB_MODULES): $(WEB)/package-lock.json
	@command -v npm >/dev/null && command -v node >/dev/null || { \
	echo "error: no Node.js with npm found; install version 20.19 or newer (https://nodejs.org)" >&2; exit 1; }
	@node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' || { \
	echo "error: Node.js $$(node --version) is too old; install version 20.19 or newer (https://nodejs.org)" >&2; exit 1; }
	cd $(WEB) && npm ci --no-audit --no-fund --loglevel=error

$(WEB_MODEL): $(STAMP) checkpoints/bigltl_mini.safetensors $(WEB)/export_models.py $(WEB)/pack_weights.py
	$(VENV)/bin/python $(WEB)/export_models.py

# Two files of tests at a time with one thread each: most of them wait for imports and processes, not for arithmetic. In the
# order of their names, since xdist otherwise keeps files of few tests for the end, and with them the longest tests.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/mypy

test-browser: $(STAMP)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[all,browser]"
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then apt-get update && apt-get install -y chromium; \
	else $(VENV)/bin/python -m playwright install chromium; fi; }
	$(VENV)/bin/python -m pytest -s tests/test_demo_browser.py tests/test_demo_page*.py
	@! command -v npm >/dev/null || $(MAKE) --no-print-directory web
	$(VENV)/bin/python -m pytest -s -m slow tests/test_demo_web.py

# The banner that is turned off speaks of mkdocs 2, which is not used here.
docs: $(STAMP)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

wheel:
	PYTHON="$(PYTHON)" .ci/wheel

# The kernels are compiled anew for it. Python itself is not, so what it keeps until its end would count as leaks.
sanitize: $(STAMP)
	CXX="$(CURDIR)/.ci/sanitizing-c++" ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	$(VENV)/bin/python -m pytest tests/test_native.py

# Made once, and again when the requirements change.
$(STAMP): pyproject.toml setup.py constraints.txt
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { \
	python="$(PYTHON)"; \
	[ -n "$$python" ] || { echo "error: no Python 3.10 or newer found; install one or run make PYTHON=..." >&2; exit 1; }; \
	"$$python" -c "$(SUPPORTED)" 2>/dev/null || \
	{ echo "error: '$$python' is missing or older than Python 3.10; run make PYTHON=..." >&2; exit 1; }; \
	"$$python" -c "import venv, ensurepip" 2>/dev/null || \
	{ echo "error: '$$python' has no venv module; install it (Debian, Ubuntu: python3-venv)" >&2; exit 1; }; \
	"$$python" -m venv $(VENV); }
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[all]"
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache site
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
