"""The settings of a store's namespace."""

from __future__ import annotations

from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.live import ROW_BYTES
from lightningstore.service.rules import settings
from lightningstore.v1.namespace_pb2 import Namespace, UpdateNamespaceRequest


class NamespaceSettings:
    """Reads and changes the settings, which are a record of the store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def namespace(self) -> Namespace:
        """The namespace of the store."""
        return settings.shown(self._engine.settings, self._engine.namespace, self._engine.store_id)

    async def update(self, request: UpdateNamespaceRequest) -> Namespace:
        """Change the settings. Raises FieldInvalid."""
        engine = self._engine
        engine.committer.admit()
        changed = settings.updated(engine.settings, request, engine.live.now())
        if changed is not engine.settings:
            engine.apply_settings(changed)
            engine.changes.settings = changed.SerializeToString()
            engine.changes.size += ROW_BYTES + len(engine.changes.settings)
        await engine.commit()
        return self.namespace
