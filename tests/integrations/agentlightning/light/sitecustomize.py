"""Python runs this at the start of programs whose PYTHONPATH names this folder.

They need no server of language models: without it, importing agentlightning takes half the time.
"""

import sys
from types import ModuleType

server = ModuleType("litellm.proxy.proxy_server")
server.app = server.save_worker_config = None  # type: ignore[attr-defined]
sys.modules[server.__name__] = server
