#include <lightningstore/runner.h>

int main() {
  lightningstore::Runner(lightningstore::Connect(), [](auto&) { return 1.0; }).RunWithSignals();
}
