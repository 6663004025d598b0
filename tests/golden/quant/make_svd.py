"""Golden singular values and vectors: torch.linalg.svd in double of a matrix that test_low_rank.c makes by the same formula.

python3 make_svd.py > svd_golden.h     (torch 1.13.0; no randomness)
"""
import torch

M, N, RANK = 24, 40, 5


def matrix():
    a = torch.zeros(M, N, dtype=torch.float64)
    for i in range(M):
        for j in range(N):
            a[i, j] = ((i * 37 + j * 101 + i * j * 13) % 97 - 48) / 64  # exact in float
    return a


def row(name, values):
    body = ", ".join("%.17g" % v for v in values)
    print("static const double %s[] = { %s };" % (name, body))


a = matrix()
u, s, vh = torch.linalg.svd(a, full_matrices=False)
low = u[:, :RANK] @ torch.diag(s[:RANK]) @ vh[:RANK]
print("/* svd_golden.h - written by make_svd.py with torch %s; do not edit. */" % torch.__version__.split("+")[0])
print("enum { SVD_M = %d, SVD_N = %d, SVD_RANK = %d };" % (M, N, RANK))
row("svd_values", s[:RANK].tolist())
row("svd_first_row", low[0].tolist())
row("svd_last_row", low[-1].tolist())
print("static const double svd_error = %.17g; /* square error of the matrix of that rank */" % float(((a - low) ** 2).sum()))
