"""Ansor, driven by JSON lines: one request a line on stdin, one or more replies on stdout.

Runs inside the baseline's own virtual environment: imports nothing of tilewright. Every request
is an object with "do"; the last reply to it has "done" or "error". Arrays travel as .npz files.
"""

import json
import os
import sys

from session import Session
from stall import watched


def main():
    """Answer requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what TVM prints must not get between the replies
    sys.stdout = sys.stderr

    def reply(**content):
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    session = Session(lambda **content: reply(progress=content))
    for line in sys.stdin:
        request = json.loads(line)
        action = getattr(session, request.pop("do"))
        try:
            with watched():
                done = action(**request)
            reply(done=done)
        except Exception as error:  # they share no class; the caller decides
            reply(error=f"{type(error).__name__}: {error}"[-2000:])


if __name__ == "__main__":
    main()
