# The conformance suite, and what is done for each language: included by the top Makefile, whose variables it uses.
# LANGUAGES: names with commas; unset: those whose tools are here. REQUIRE_ALL=1: all, or fail.
LANGUAGES ?= all
CLIENTS := go typescript java rust cpp
FIND_LANGUAGES := $(PYTHON) tests/conformance/languages.py --only $(LANGUAGES) \
    $(if $(REQUIRE_ALL),--require all)

# The languages that can be built here; `languages` says which are left out, and fails where one is required.
FOUND := $(shell $(FIND_LANGUAGES) 2>/dev/null)
# Of the goals <language>-$(1), those of the languages $(2) that can be built here.
goals = $(addsuffix -$(1),$(filter $(2),$(FOUND)))

PLAY = $(PY) -m tests.conformance.run --languages "$(subst $() ,$(comma),$(strip $(FOUND)))"

# The goals of one language share a build folder: where make is asked for several, one waits for the other.
DRIVERS := $(call goals,driver,python $(CLIENTS))
ifneq (,$(filter check,$(MAKECMDGOALS)))
$(foreach language,$(filter $(CLIENTS),$(FOUND)),$(eval $(language)-test: | $(language)-check))
endif
ifneq (,$(filter test,$(MAKECMDGOALS)))
$(foreach language,$(filter $(CLIENTS),$(FOUND)),$(eval $(language)-driver: | $(language)-test))
endif

.PHONY: languages python-driver conformance conformance-table

languages:
	@$(FIND_LANGUAGES) >/dev/null

conformance: languages .venv/stamp $(DRIVERS) ## Run the scenarios in each installed language, LANGUAGES=go,rust for some
	$(PLAY) --check

conformance-table: languages .venv/stamp $(DRIVERS) ## Run the scenarios and write the table of docs/clients.md
	$(PLAY) --write

python-driver: .venv/stamp
	@mkdir -p build/conformance
	@printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" -m conformance "$$@"\n' \
	    "$(CURDIR)/client/python" "$(CURDIR)/$(PY)" > build/conformance/python
	@chmod +x build/conformance/python
