# lightningstore::stubs: messages and stubs, made out of proto/ and of OpenTelemetry's protos.
get_filename_component(contract "${CMAKE_CURRENT_SOURCE_DIR}/../../proto" ABSOLUTE)
set(generated "${CMAKE_CURRENT_BINARY_DIR}/generated")
file(GLOB protos RELATIVE "${contract}" CONFIGURE_DEPENDS "${contract}/lightningstore/v1/*.proto")
if(NOT protos)
  message(FATAL_ERROR "no contract in ${contract}/lightningstore/v1: this folder belongs into a checkout of lightningstore")
endif()

# What the contract imports of OpenTelemetry's.
set(otlp "")
foreach(name common resource trace)
  list(APPEND otlp "opentelemetry/proto/${name}/v1/${name}.proto")
endforeach()
if(EXISTS "${LIGHTNINGSTORE_OTLP}/opentelemetry/proto/trace/v1/trace.proto")
  set(import_otlp "-I${LIGHTNINGSTORE_OTLP}")
elseif(EXISTS "${LIGHTNINGSTORE_OTLP}" AND NOT IS_DIRECTORY "${LIGHTNINGSTORE_OTLP}")
  set(import_otlp "--descriptor_set_in=${LIGHTNINGSTORE_OTLP}")
else()
  message(FATAL_ERROR "LIGHTNINGSTORE_OTLP is \"${LIGHTNINGSTORE_OTLP}\"; the contract imports OpenTelemetry's "
      "protos, so set it with -DLIGHTNINGSTORE_OTLP=... to a checkout of opentelemetry-proto (a folder that has "
      "opentelemetry/proto/trace/v1/trace.proto) or to a descriptor set of them (`make build/otlp.binpb` makes one)")
endif()

set(sources "")
foreach(proto ${protos} ${otlp} status_details.proto)
  string(REGEX REPLACE "proto$" "pb.cc" source "${proto}")
  list(APPEND sources "${generated}/${source}")
endforeach()
set(service "${generated}/lightningstore/v1/service.grpc.pb.cc"
    "${generated}/lightningstore/v1/namespace.grpc.pb.cc")
list(TRANSFORM protos PREPEND "${contract}/" OUTPUT_VARIABLE inputs)
set(protoc protobuf::protoc ${import_otlp} "-I${contract}" "-I${CMAKE_CURRENT_SOURCE_DIR}/src")
add_custom_command(
  OUTPUT ${sources} ${service}
  COMMAND ${CMAKE_COMMAND} -E make_directory "${generated}"
  COMMAND ${protoc} "--cpp_out=${generated}" ${protos} ${otlp} status_details.proto
  COMMAND ${protoc} "--grpc_out=${generated}" "--plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin>"
          lightningstore/v1/service.proto lightningstore/v1/namespace.proto
  DEPENDS ${inputs} src/status_details.proto "${LIGHTNINGSTORE_OTLP}"
  COMMENT "Generating messages and stubs"
  VERBATIM)

add_library(lightningstore_stubs STATIC ${sources} ${service})
add_library(lightningstore::stubs ALIAS lightningstore_stubs)
target_compile_features(lightningstore_stubs PUBLIC cxx_std_17)
target_include_directories(lightningstore_stubs SYSTEM PUBLIC "${generated}")
target_link_libraries(lightningstore_stubs PUBLIC gRPC::grpc++ protobuf::libprotobuf Threads::Threads)
