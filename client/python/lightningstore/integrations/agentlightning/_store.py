"""The store for agentlightning."""

from __future__ import annotations

from lightningstore.integrations.agentlightning._control import ControlMethods
from lightningstore.integrations.agentlightning._traces import TraceMethods


class GrpcLightningStore(ControlMethods, TraceMethods):
    """agentlightning's LightningStore on top of a `lightningstore serve`.

    It serves Trainer, runners, tracers and algorithms, in any number of threads, event loops and
    processes: each process connects with its first call, also after a fork or unpickling. Calls are
    retried while the server is down, for `timeout` seconds; repeats are safe.

    Rejections (unknown ids, invalid values and statuses) are ValueError, evicted spans
    RuntimeError; all other errors are a `lightningstore.client.LightningStoreError`.

    Example:
        trainer = agl.Trainer(store=GrpcLightningStore("127.0.0.1:4747"), algorithm=algorithm)
    """
