# The Java client: included by the Makefile at the repository's root.
JAVA_POM := client/java/pom.xml
MVN ?= mvn
JAVA_BUILD := $(MVN) -q -B -f $(JAVA_POM)
# As in .mvn/jvm.config: programs that run for seconds gain nothing from the second compiler and from a parallel collector.
JAVA_SHORT := -XX:TieredStopAtLevel=1 -XX:+UseSerialGC

.PHONY: java-check java-test java-driver

java-check: ## Check the format of the Java client, and build all of it with warnings as errors
	$(JAVA_BUILD) spotless:check package -DskipTests

java-test: .venv/stamp ## Test the Java client, including the programs of its README
	$(JAVA_BUILD) test

java-driver: ## Build the conformance driver at build/conformance/java
	$(JAVA_BUILD) package -Dmaven.test.skip=true
	mkdir -p build/conformance
	printf '#!/bin/sh\nexec java $(JAVA_SHORT) -cp "%s" io.lightningstore.conformance.Driver "$$@"\n' \
	    "$(CURDIR)/client/java/conformance/target/classes:$(CURDIR)/client/java/conformance/target/lib/*" \
	    > build/conformance/java
	chmod +x build/conformance/java
