"""Write the OTLP messages of the installed opentelemetry-proto package as a descriptor set.

The contract imports them; protoc takes the set as --descriptor_set_in, so that no copy is kept.
Usage: python otlp_set.py OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2


def collect(file: FileDescriptor, into: dict[str, FileDescriptor]) -> None:
    """Add a file and all that it imports, imports first."""
    for imported in file.dependencies:
        collect(imported, into)
    into.setdefault(file.name, file)


def main(output: str) -> None:
    """Write the set."""
    files: dict[str, FileDescriptor] = {}
    collect(trace_service_pb2.DESCRIPTOR, files)
    result = FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(result.file.add())
    Path(output).write_bytes(result.SerializeToString())


if __name__ == "__main__":
    main(sys.argv[1])
