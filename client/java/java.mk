# The Java client: included by the Makefile at the repository's root.
JAVA_POM := client/java/pom.xml
MVN ?= mvn
JAVA_BUILD := $(MVN) -q -B -f $(JAVA_POM)

.PHONY: java-check java-test java-driver

java-check: ## Check the format of the Java client, and compile it with warnings as errors
	$(JAVA_BUILD) spotless:check test-compile

java-test: .venv/stamp ## Test the Java client, including the programs of its README
	$(JAVA_BUILD) test

java-driver: ## Build the conformance driver at build/conformance/java
	$(JAVA_BUILD) package -Dmaven.test.skip=true
	mkdir -p build/conformance
	printf '#!/bin/sh\nexec java -cp "%s" io.lightningstore.conformance.Driver "$$@"\n' \
	    "$(CURDIR)/client/java/conformance/target/classes:$(CURDIR)/client/java/conformance/target/lib/*" \
	    > build/conformance/java
	chmod +x build/conformance/java
