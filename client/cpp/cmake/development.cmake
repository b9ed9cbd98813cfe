# The examples, the tests and the conformance driver.
find_package(GTest REQUIRED)
find_package(nlohmann_json REQUIRED)
include(GoogleTest)

# Most of the compiler's time goes into these headers: they are compiled once, and sources are compiled several at a time,
# so names of theirs that others cannot see must differ, too. Other projects get the targets without either.
add_library(lightningstore_headers OBJECT cmake/headers.cc)
target_link_libraries(lightningstore_headers PRIVATE lightningstore::stubs nlohmann_json::nlohmann_json)
target_precompile_headers(lightningstore_headers PRIVATE <grpcpp/grpcpp.h> <lightningstore/v1/service.grpc.pb.h>
  <nlohmann/json.hpp>)

function(lightningstore_compile name)
  target_compile_options(${name} PRIVATE -Wall -Wextra)
  target_precompile_headers(${name} REUSE_FROM lightningstore_headers)
  set_target_properties(${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
endfunction()

function(lightningstore_program name)
  add_executable(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE lightningstore::client nlohmann_json::nlohmann_json)
  lightningstore_compile(${name})
endfunction()

# protoc gives each of its sources two names that no other file sees.
set_target_properties(lightningstore_stubs PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12
  UNITY_BUILD_UNIQUE_ID schemas UNITY_BUILD_CODE_BEFORE_INCLUDE [[
#define LIGHTNINGSTORE_JOINED(a, b) a##b
#define LIGHTNINGSTORE_JOIN(a, b) LIGHTNINGSTORE_JOINED(a, b)
#undef file_default_instances
#define file_default_instances LIGHTNINGSTORE_JOIN(instances_, schemas)
]])
lightningstore_compile(lightningstore_client)
lightningstore_program(driver conformance/main.cc conformance/call.cc)
# It finds methods by name, in the descriptor of the service, which nothing refers to.
target_link_libraries(driver PRIVATE $<LINK_LIBRARY:WHOLE_ARCHIVE,lightningstore_stubs>)
set_target_properties(driver PROPERTIES LINK_LIBRARY_OVERRIDE_lightningstore_stubs WHOLE_ARCHIVE)

lightningstore_program(runner examples/runner.cc)
lightningstore_program(algorithm examples/algorithm.cc)
lightningstore_program(control examples/control.cc)

lightningstore_program(client_test test/client_test.cc test/breaks_test.cc test/contact_test.cc test/finishes_test.cc test/heartbeats_test.cc
  test/namespace_test.cc
  test/outcomes_test.cc test/readme_test.cc test/runner_test.cc test/security_test.cc test/vectors_test.cc test/server.cc)
target_include_directories(client_test PRIVATE src)
target_link_libraries(client_test PRIVATE GTest::gtest_main)
target_compile_definitions(client_test PRIVATE
  LIGHTNINGSTORE_CHECKOUT="${CMAKE_CURRENT_SOURCE_DIR}/../.."
  LIGHTNINGSTORE_RUNNER="$<TARGET_FILE:runner>"
  LIGHTNINGSTORE_ALGORITHM="$<TARGET_FILE:algorithm>"
  LIGHTNINGSTORE_CONTROL="$<TARGET_FILE:control>")
add_dependencies(client_test runner algorithm control)
gtest_discover_tests(client_test PROPERTIES TIMEOUT 60)

# Another project takes the client in, and is told what is missing.
set(consume ${CMAKE_COMMAND} -S "${CMAKE_CURRENT_SOURCE_DIR}/test/consumer" -G ${CMAKE_GENERATOR}
  -DLIGHTNINGSTORE=${CMAKE_CURRENT_SOURCE_DIR}/../..)
add_test(NAME consumer COMMAND ${consume} -B consumer -DLIGHTNINGSTORE_OTLP=${LIGHTNINGSTORE_OTLP})
add_test(NAME consumer_without_otlp COMMAND ${consume} -B consumer_without_otlp)
set_tests_properties(consumer_without_otlp PROPERTIES
  PASS_REGULAR_EXPRESSION "set it with -DLIGHTNINGSTORE_OTLP=")
