"""What diskreplay costs and gains beside its peers: `python -m benchmarks`, or `make bench`.

    harness.py   worker processes, alternating rounds, every sample kept
    worker.py    the process of one contestant; imports nothing but the standard library
    machine.py   facts about the machine, memory limits, the page cache
    rows.py      the steps all contestants read, as arrays
    data.py      makes those arrays and our stores of them, once
    goals.py     a figure against what it should be
    ours.py      diskreplay as a contestant; compare/ has its rivals, and nothing else imports them
    render.py    RESULTS.md and its pictures, from results/

Every other file is one question: its docstring says what is measured, `cases` who runs, `judge` what should come out.
"""
