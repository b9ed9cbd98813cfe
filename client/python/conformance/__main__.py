"""Start the driver: its only argument is the server's address."""

import os
import sys

from conformance.driver import Driver

if __name__ == "__main__":
    Driver(sys.argv[1]).run()
    sys.stdout.flush()
    os._exit(0)  # whatever still runs
