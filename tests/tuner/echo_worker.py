"""A worker process whose answers are known beforehand."""

import time


def handlers(_config):
    """Return commands that echo and sleep."""

    def sleep(seconds):
        time.sleep(seconds)
        return {"slept": seconds}

    return {"echo": lambda value: {"value": value}, "sleep": sleep}
