"""Tables and studies of texts: memory, throughput beside a bare loop, workers of Ray.

Run ``pytest tests/benchmarks/test_tables.py -s`` on a quiet machine. Each run is a
fresh process of one thread.
"""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from tables.conftest import WORDS

MOST_MEMORY = 200  # MiB
LEAST_THROUGHPUT = 0.9
LEAST_SPEED_UP = 1.6  # of two workers

PEAK = '''
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)

def peak():
    """In MiB. Not ru_maxrss, which a child inherits from its parent."""
    [line] = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    ]
    return int(line.split()[1]) / 1024
'''
TABLE = (
    PEAK
    + """
from captum_attnflow.tables import TableJob, explain_table
data, output, n_rows, engine, workers = sys.argv[1:]
job = TableJob(data, Path(output), limit=int(n_rows), engine=engine,
               workers=int(workers))
if engine == "local":  # what is done once in a process is not counted
    import dataclasses
    explain_table(dataclasses.replace(job, output=job.output / "warm", limit=64))
else:
    import ray
    ray.init(num_cpus=int(workers), include_dashboard=False, log_to_driver=False)
start, busy = time.perf_counter(), time.process_time()
explain_table(job)
print(time.perf_counter() - start, time.process_time() - busy, peak())
"""
)
# The same texts in the same order of lengths, but nothing read, kept or written; in
# turns with the table, in one process, so that both meet the same machine.
TURNS = (
    PEAK
    + """
import csv
from captum_attnflow import RelevanceFlow
from captum_attnflow.demo import load_demo_model
from captum_attnflow.tables import TableJob, explain_table
from captum_attnflow.texts import find_special_tokens
data, output, n_rows, n_turns = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
with open(data, newline="") as file:
    texts = [row["text"] for row in csv.DictReader(file)][:n_rows]
model, tokenizer = load_demo_model()

def forward(ids, mask):
    return model(input_ids=ids, attention_mask=mask).logits

method = RelevanceFlow(forward)

def explain(texts):
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    with torch.no_grad():
        target = forward(ids, mask).argmax(-1)
    special = find_special_tokens(ids, model, tokenizer)
    return method.attribute(
        ids,
        baselines=ids.where(special, tokenizer.mask_token_id),
        target=target,
        additional_forward_args=(mask,),
    )

def loop():
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    for first in range(0, n_rows, 1024):  # windows as those of part files
        window = range(first, min(first + 1024, n_rows))
        order = sorted(window, key=lambda row: lengths[row])
        for begin in range(0, len(order), 16):
            explain([texts[row] for row in order[begin : begin + 16]])

def busy(work):
    start = time.process_time()
    work()
    return time.process_time() - start

def table(name, limit):
    explain_table(TableJob(data, Path(output, name), limit=limit))

explain(texts[:16])
table("warm", 16)
for turn in range(n_turns):
    print(busy(loop), busy(lambda: table(str(turn), n_rows)))
"""
)
STUDY = (
    PEAK
    + """
from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.study import DataSource, Study, run_study
data, output, n_rows = sys.argv[1:]
study = Study(
    models=(str(DEMO_MODEL_PATH),),
    data=DataSource(data, limit=int(n_rows)),
    methods=("random",),
    metrics=("sufficiency",),
    removals=("delete",),
    output=Path(output),
    batch_size=64,
)
start, busy = time.perf_counter(), time.process_time()
run_study(study)
print(time.perf_counter() - start, time.process_time() - busy, peak())
"""
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.csv"
    drawn = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text"])
        for _ in range(20_000):
            writer.writerow([" ".join(drawn.choices(WORDS, k=drawn.randint(3, 20)))])
    return path


class Cost(NamedTuple):
    seconds: float
    processor_seconds: float  # which other processes disturb less
    memory: float  # MiB


def lines_of(program: str, *arguments: object) -> list[list[float]]:
    """The numbers that a program prints, in a process of one thread."""
    finished = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return [list(map(float, line.split())) for line in finished.stdout.splitlines()]


def run(program: str, *arguments: object) -> Cost:
    [line] = lines_of(program, *arguments)
    return Cost(*line)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_does_not_grow_with_the_table(data, tmp_path):
    little = run(TABLE, data, tmp_path / "1000", 1000, "local", 1)
    much = run(TABLE, data, tmp_path / "20000", 20_000, "local", 1)
    more = much.memory - little.memory
    print(
        f"\n1,000 texts {little.memory:.0f} MiB, 20,000 texts {much.memory:.0f} MiB, "
        f"{more:+.0f} MiB; {20_000 / much.seconds:.0f} rows a second"
    )
    assert more < MOST_MEMORY


def test_a_table_takes_little_more_than_a_bare_loop(data, tmp_path):
    """By processor time, start of the table included, which 20,000 texts share."""
    n, ratios = 2048, []
    for loop, table in lines_of(TURNS, data, tmp_path, n, 5):
        ratios.append(loop / table)
        print(
            f"\n{n:,} texts: bare loop {loop:.1f} s, table {table:.1f} s, ratio "
            f"{ratios[-1]:.3f}"
        )
    assert sorted(ratios)[2] >= LEAST_THROUGHPUT


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_of_a_study_does_not_grow_with_the_padded_texts(data, tmp_path):
    little = run(STUDY, data, tmp_path / "1000", 1000)
    much = run(STUDY, data, tmp_path / "20000", 20_000)
    more = much.memory - little.memory
    print(
        f"\na study of 1,000 texts {little.memory:.0f} MiB, of 20,000 "
        f"{much.memory:.0f} MiB, {more:+.0f} MiB"
    )
    assert more < MOST_MEMORY


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")
def test_two_workers_are_faster_than_one(data, tmp_path):
    """By wall time, which tells nothing where other programs run."""
    ratios = []
    for turn in range(3):
        idle = (os.cpu_count() or 1) - os.getloadavg()[0]
        # What ran last is in the average, which halves in 42 seconds.
        if turn == 0 and idle < 1.5:
            pytest.skip(f"only {max(idle, 0):.1f} processors are idle; 2 have to be")
        one = run(TABLE, data, tmp_path / f"one {turn}", 8192, "ray", 1).seconds
        two = run(TABLE, data, tmp_path / f"two {turn}", 8192, "ray", 2).seconds
        ratios.append(one / two)
        print(
            f"\n8,192 texts on Ray: one worker {8192 / one:.0f} rows a second, two "
            f"{8192 / two:.0f}, ratio {one / two:.2f}"
        )
    assert sorted(ratios)[1] >= LEAST_SPEED_UP
