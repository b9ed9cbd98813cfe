# The conformance suite, and what is done for each language: included by the top Makefile, whose variables it uses.
# LANGUAGES: names with commas; unset: those whose tools are here. REQUIRE_ALL=1: all, or fail.
LANGUAGES ?= all
CLIENTS := go typescript java rust cpp
FIND_LANGUAGES := $(PYTHON) tests/conformance/languages.py --only $(LANGUAGES) \
    $(if $(REQUIRE_ALL),--require all)

# Two goals at a time. In a log, where make can do so, what each of them says stays together.
LANES := --no-print-directory -j2 \
    $(if $(MAKE_TERMOUT),,$(if $(filter output-sync,$(.FEATURES)),-Otarget))

# Makes the goals $(3), and <language>-$(1) for those of the languages $(2) that can be built here.
define each-language
@found=$$($(FIND_LANGUAGES)) || exit 1; goals="$(3)"; \
for language in $$found; do case " $(2) " in *" $$language "*) goals="$$goals $$language-$(1)";; esac; done; \
echo "two at a time: $$goals"; test -z "$$goals" || $(MAKE) $(LANES) $$goals
endef

# Plays the scenarios with every language that can be built here; $(1) are options of run.py.
define conform
$(call each-language,driver,python $(CLIENTS))
@found=$$($(FIND_LANGUAGES) 2>/dev/null) || exit 1; \
$(PY) -m tests.conformance.run --languages "$$(echo $$found | tr ' ' ',')" $(1)
endef

.PHONY: python-driver conformance conformance-table

conformance: .venv/stamp ## Play the scenarios in each language whose tools are here, LANGUAGES=go,rust for some
	$(call conform,--check)

conformance-table: .venv/stamp ## The same, and write the table of docs/clients.md
	$(call conform,--write)

python-driver: .venv/stamp
	@mkdir -p build/conformance
	@printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" -m conformance "$$@"\n' \
	    "$(CURDIR)/client/python" "$(CURDIR)/$(PY)" > build/conformance/python
	@chmod +x build/conformance/python
