"""A store for PyPI's agentlightning 0.3: `Trainer(store=GrpcLightningStore("127.0.0.1:4747"))`.

Requires `lightningstore[agentlightning]`. docs/agentlightning.md lists the differences.
"""

try:
    import agentlightning as _package
except ImportError as error:
    if error.name != "agentlightning":
        raise
    raise ImportError(
        "agentlightning is not installed: pip install 'lightningstore[agentlightning]'",
        name="agentlightning",
    ) from None

from lightningstore.integrations.agentlightning._store import GrpcLightningStore

del _package

__all__ = ["GrpcLightningStore"]
