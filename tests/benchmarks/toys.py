"""Contestants whose figures are known."""

import os


class Toy:
    def __init__(self, rate, fails_at=None):
        self.rate, self.fails_at, self.runs = rate, fails_at, 0

    def prepare(self):
        os.write(1, b"a library that chatters")  # must not be taken for an answer
        return {"bytes": 100 * self.rate}

    def run(self):
        self.runs += 1
        if self.runs == self.fails_at:
            raise RuntimeError("no more")
        return {"things_per_second": self.rate * self.runs, "process": os.getpid()}


class Dies(Toy):
    def run(self):
        os._exit(3)
