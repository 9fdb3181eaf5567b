"""What may befall a task in a pool of processes, which load this file and nothing heavy with it."""

import os
import time


def break_on_seed_1(fields, precision):
    if fields["seed"] == 1:
        raise RuntimeError("broken")


def die_on_seed_1(fields, precision):
    if fields["seed"] == 1:
        os._exit(9)


def die_or_wait(fields, precision):
    if fields["seed"] == 1:
        time.sleep(1)  # until another runs beside it
        os._exit(9)
    time.sleep(2)


def break_all(fields, precision):
    raise RuntimeError("broken")
