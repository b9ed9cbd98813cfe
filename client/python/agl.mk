# The adapter of agentlightning, in an environment of its own: that package brings 160 others, 800 MB.
# Included by the top Makefile, whose variables it uses.
AGL_PY := .venv-agl/bin/python

.PHONY: agl-test agl-check agl-bench

.venv-agl/stamp: pyproject.toml requirements-agentlightning.lock | .venv/pip
	$(PYTHON) -m venv --without-pip .venv-agl
	$(call PIP_INTO,.venv-agl) -r requirements-agentlightning.lock
	$(call PIP_INTO,.venv-agl) --no-deps -e .
	touch $@

agl-test: .venv-agl/stamp ## Test the adapter of agentlightning with that package's own Trainer
	$(AGL_PY) -m pytest tests/integrations/agentlightning

agl-check: .venv-agl/stamp ## Check the types of the adapter against agentlightning's
	$(AGL_PY) -m mypy -p lightningstore.integrations

agl-bench: .venv-agl/stamp ## Compare the adapter of agentlightning with that package's own store
	$(AGL_PY) -m benchmarks.agl
