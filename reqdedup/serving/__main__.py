"""A worker: `python -m reqdedup.serving SOCKET NUMBER`, started by `workers`, its settings on standard input."""

from __future__ import annotations

import gc
import logging
import socket
import sys


def main() -> int:
    gc.disable()  # until the door opens: what libraries make as they are loaded stays
    from reqdedup.serving.server.process import serve_process
    from reqdedup.serving.server.settings import ServeSettings
    from reqdedup.serving.server.workers import CANNOT_SERVE, end_with_parent

    descriptor, number = int(sys.argv[1]), int(sys.argv[2])
    logging.basicConfig(level=logging.INFO, format=f"worker {number}: %(message)s")
    settings = ServeSettings.from_json(sys.stdin.buffer.readline().decode())
    end_with_parent()
    try:
        serve_process(settings, [socket.socket(fileno=descriptor)], worker=number)
    except (ValueError, OSError) as error:  # of what it was told to serve: a sentence
        logging.error("%s", error)
        return CANNOT_SERVE
    return 0


if __name__ == "__main__":
    sys.exit(main())
