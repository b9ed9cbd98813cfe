"""Log lines, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys

FORMAT = "%(asctime)s [%(levelname)s] (Process-%(process)d %(name)s) %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname,
            "process": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _tells_something(record: logging.LogRecord) -> bool:
    """Return whether a line of gRPC is logged: not the traceback for each header that is not UTF-8.

    Callers without a token could fill the disk with them.
    """
    return not str(record.msg).startswith("Invalid encoding on")


def set_up(level: str, *, as_json: bool) -> None:
    """Send logs of this level and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if as_json else logging.Formatter(FORMAT, "%Y-%m-%d %H:%M:%S")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_tells_something)
