"""Seconds (wall, then processor) of one training step of ResNet-20 in PyTorch: bench_train_torch.py BATCH THREADS WARM STEPS."""
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

n, threads, warm, steps = map(int, sys.argv[1:])
torch.set_num_threads(threads)
torch.manual_seed(1)


class Block(nn.Module):
    def __init__(self, i, o, s):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o)
        self.c2, self.b2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.short = None if i == o else nn.Sequential(nn.Conv2d(i, o, 1, s, bias=False), nn.BatchNorm2d(o))

    def forward(self, x):
        y = self.b2(self.c2(F.relu(self.b1(self.c1(x)), inplace=True)))
        return F.relu(y + (x if self.short is None else self.short(x)), inplace=True)


layers, i = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)], 16
for stage in range(3):
    for block in range(3):
        o = 16 << stage
        layers.append(Block(i, o, 2 if stage and not block else 1))
        i = o
net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def measure(memory_format):
    model = net.to(memory_format=memory_format)
    x = torch.randn(n, 3, 32, 32).to(memory_format=memory_format)
    y = torch.arange(n) % 10
    opt = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    times, busy = [], []
    for k in range(warm + steps):
        start, cpu = time.perf_counter(), time.process_time()
        opt.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        opt.step()
        if k >= warm:
            times.append(time.perf_counter() - start)
            busy.append(time.process_time() - cpu)
    return sorted(times)[len(times) // 2], sorted(busy)[len(busy) // 2]


# Its better layout counts.
both = measure(torch.contiguous_format), measure(torch.channels_last)
print(*min(both, key=lambda t: t[1] if threads == 1 else t[0]))
