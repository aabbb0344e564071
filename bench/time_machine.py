"""Times PyTorch's matrix product and copy on the CPU: time_machine.py → lines `name, threads, rate, unit`, as `bench_machine` prints ours."""

import os
import time

import torch

ROWS, OUT, INNER = 784, 3072, 768


def least(run):
    run()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


x, weight, y = torch.rand(ROWS, INNER), torch.rand(OUT, INNER), torch.empty(ROWS, OUT)
linear = torch.nn.Linear(INNER, OUT)
source, target = torch.ones(64 << 20), torch.zeros(64 << 20)
for threads in (1, int(os.environ.get("OMP_NUM_THREADS", "2"))):
    torch.set_num_threads(threads)
    with torch.inference_mode():
        rate = 2 * ROWS * OUT * INNER / least(lambda: linear(x)) / 1e9
        print(f"linear layer by PyTorch, {threads}, {rate:.1f}, GFLOP/s")
        print(f"copy by PyTorch, {threads}, {2 * source.nbytes / least(lambda: target.copy_(source)) / 1e9:.1f}, GB/s")
