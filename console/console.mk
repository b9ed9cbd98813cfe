# The console: included by the Makefile at the repository's root.
CONSOLE := console
CONSOLE_BUILT := service/lightningstore/service/http/console

.PHONY: console console-check console-test

$(CONSOLE)/node_modules/.package-lock.json: $(CONSOLE)/package.json $(CONSOLE)/package-lock.json
	cd $(CONSOLE) && npm ci --no-fund --no-audit
	touch $@

console: $(CONSOLE)/node_modules/.package-lock.json ## Build the console into the service's package
	cd $(CONSOLE) && npm run --silent build

# It is built from the stubs.
ifneq (,$(filter drift proto,$(MAKECMDGOALS)))
console: | proto
endif

console-check: $(CONSOLE)/node_modules/.package-lock.json ## Format, lint and type-check the console
	cd $(CONSOLE) && npm run --silent check

.venv/console-stamp: .venv/stamp requirements-console.lock
	$(PY) -m pip $(PIP) -r requirements-console.lock
	touch $@

# Without chromium there is nothing to install either. CI demands both.
console-test: $(if $(or $(REQUIRE_ALL),$(shell command -v chromium)),.venv/console-stamp $(CONSOLE)/node_modules/.package-lock.json) ## Test the console in a browser; needs chromium
	@if [ -n "$(REQUIRE_ALL)" ] || command -v chromium >/dev/null; then \
	    $(PY) -m pytest tests/console; \
	else echo "no chromium here: the console is not tested"; fi
