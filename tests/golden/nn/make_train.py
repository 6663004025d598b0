"""Writes train_golden.h: losses, optimizers and a few steps of a small network, as PyTorch has them.

    /usr/bin/python3 make_train.py > train_golden.h

Made with torch 1.13.0a0, seed 20240811, in double precision from float32 inputs. The contrastive values stand in colt.md 4.4 too.
"""
import math

import torch
import torch.nn.functional as F

torch.manual_seed(20240811)
print("/* train_golden.h - written by make_train.py (torch %s, seed 20240811); do not edit. */" % torch.__version__)
print("/* clang-format off */")


def put(name, t):
    flat = t.detach().reshape(-1).tolist()
    print("static const float %s[%d] = { %s };" % (name, len(flat), ", ".join("%.9g" % v for v in flat)))


def loss(name, f, *xs):
    """Inputs name_0.., the value, the derivative by the first."""
    leaf = xs[0].double().requires_grad_()
    value = f(leaf, *[x.double() for x in xs[1:]])
    (grad,) = torch.autograd.grad(value, [leaf])
    for k, x in enumerate(xs):
        put("%s_%d" % (name, k), x)
    put(name + "_value", value)
    put(name + "_grad", grad)


a, b = torch.randn(4, 5) * 2, torch.randn(4, 5) * 2
hot = F.one_hot(torch.tensor([3, 0, 4, 4]), 5).float()
loss("ce", lambda x, t: F.cross_entropy(x, t), a, hot)
loss("soft_ce", lambda x, t: F.cross_entropy(x, t), a, torch.softmax(b, 1))
loss("kl", lambda s, t: 16 * F.kl_div(F.log_softmax(s / 4, 1), F.softmax(t / 4, 1), reduction="batchmean"), a, b)
loss("kl_mean", lambda s, t: 400 * F.kl_div(F.log_softmax(s / 20, 1), F.softmax(t / 20, 1), reduction="mean"), a, b)
loss("mse", F.mse_loss, a, b)
loss("l1", F.l1_loss, a, b)
loss("cosine", lambda x, y: (1 - F.cosine_similarity(x, y, 1)).mean(), a, b)
z = torch.tensor([[math.sin(1 + 0.7 * (3 * (2 * i + v) + c)) for c in range(3)] for v in range(2) for i in range(4)])


def contrast(target):
    def f(z):
        u = F.normalize(z, dim=1)
        s = (u @ u.T / 0.2).masked_fill(torch.eye(8, dtype=torch.bool), -1e9)
        return -(target.double() * F.log_softmax(s, 1)).sum(1).mean()
    return f


domain = torch.tensor([0, 0, 1, 1] * 2)
same = (domain[:, None] == domain).float() * (1 - torch.eye(8))
loss("nt_xent", contrast(torch.eye(8).roll(4, 1)), z)
loss("supcon", contrast(same / same.sum(1, keepdim=True)), z)

# Optimizers: w [6], 5 steps of given gradients.
w0, g = torch.randn(6), torch.randn(5, 6)
put("optim_w", w0)
put("optim_g", g)
for name, make in {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.05, betas=(0.5, 0.99), weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
}.items():
    p = w0.double().clone().requires_grad_()
    o = make([p])
    for k in range(5):
        p.grad = g[k].double()
        o.step()
    put("optim_" + name, p)

# A small residual network with batch norms, 5 steps; every parameter by name in the order of the network.
N, C = 4, 3
x, labels = torch.randn(5, N, 2, 6, 6), torch.randint(0, C, (5, N))
shapes = dict(c1=(4, 2, 3, 3), b1w=(4,), b1b=(4,), c2=(4, 4, 3, 3), b2w=(4,), b2b=(4,), fw=(C, 4), fb=(C,))
p = {k: torch.randn(s) * 0.4 + (1 if k.endswith("w") and k[0] == "b" else 0) for k, s in shapes.items()}
put("net_x", x)
put("net_labels", labels.float())
for k, v in p.items():
    put("net_" + k, v)
p = {k: v.double().requires_grad_() for k, v in p.items()}
running = {k: [torch.zeros(4).double(), torch.ones(4).double()] for k in ("b1", "b2")}
o = torch.optim.SGD(p.values(), 0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)
values = []
for k in range(5):
    bn = lambda v, n: F.batch_norm(v, running[n][0], running[n][1], p[n + "w"], p[n + "b"], True, 0.1, 1e-5)
    h = F.relu(bn(F.conv2d(x[k].double(), p["c1"], None, 1, 1), "b1"))
    h = F.max_pool2d(h, 2)
    h = F.relu(bn(F.conv2d(h, p["c2"], None, 1, 1), "b2") + h)
    value = F.cross_entropy(F.linear(h.mean((2, 3)), p["fw"], p["fb"]), labels[k])
    o.zero_grad()
    value.backward()
    o.step()
    values.append(value.detach())
put("net_losses", torch.stack(values))
put("net_c1_after", p["c1"])
put("net_fw_after", p["fw"])
put("net_b2w_after", p["b2w"])
put("net_mean_after", running["b2"][0])
put("net_var_after", running["b2"][1])
