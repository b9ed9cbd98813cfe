"""Message types like those of the contract, in which one field stays serialised.

Their wire format is the same, so that protobuf reads such a message without building what is in the field.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_BYTES = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES


def twin(name: str, *path: tuple[Any, str]) -> Any:
    """Return a class like the first message of a path of messages and fields, in which the last field is bytes.

    Args:
        name: Part of the name of the class, unique within the process.
        path: Messages, each with the field that holds the next one; the last one with the field that becomes bytes.

    Returns:
        The class.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name=f"lightningstore/twins/{name}.proto",
        package=f"lightningstore.twins.{name}",
        syntax="proto3",
    )
    dependencies: set[str] = set()
    for place, (message, changed) in enumerate(path):
        original = descriptor_pb2.DescriptorProto()
        message.DESCRIPTOR.CopyToProto(original)
        dependencies.add(message.DESCRIPTOR.file.name)
        dependencies |= {dependency.name for dependency in message.DESCRIPTOR.file.dependencies}
        for field in original.field:
            if field.name != changed:
                continue
            if place + 1 < len(path):
                field.type_name = f".{file.package}.{path[place + 1][0].DESCRIPTOR.name}"
            else:
                field.type = _BYTES
                field.ClearField("type_name")
        file.message_type.append(original)
    file.dependency.extend(sorted(dependencies))
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    full_name = f"{file.package}.{path[0][0].DESCRIPTOR.name}"
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name))
