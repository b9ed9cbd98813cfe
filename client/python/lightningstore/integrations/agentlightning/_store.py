"""The store that agentlightning is given."""

from __future__ import annotations

from lightningstore.integrations.agentlightning._control import ControlMethods
from lightningstore.integrations.agentlightning._traces import TraceMethods


class GrpcLightningStore(ControlMethods, TraceMethods):
    """agentlightning's LightningStore over a `lightningstore serve`.

    For Trainer, runners, tracers and algorithms, in any number of threads, event loops and processes:
    each process connects with its first call, also after a fork or unpickling. Calls are retried while the
    server is away, for `timeout` seconds; repeats are harmless.

    Refusals are ValueError (unknown ids, values and statuses that cannot be), evicted spans RuntimeError; what
    is nobody's mistake is a `lightningstore.client.LightningStoreError`.
    """
