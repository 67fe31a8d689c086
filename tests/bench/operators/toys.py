"""Cases to try the machinery with."""

import torch

from bench.operators.case import Case, Run, Unavailable


def toy(ours, baselines, name="forward", **options):
    return Case(
        operator="toy",
        name=name,
        inputs=lambda seed: torch.randn(100, generator=torch.Generator().manual_seed(seed)),
        ours=lambda x: Run(lambda: ours(x)),
        baselines={name: lambda x, f=f: Run(lambda: f(x)) for name, f in baselines.items()},
        bytes=800,
        tolerance=1e-4,
        **options,
    )


def missing(x):
    raise Unavailable("toy is not there")


def not_installed(x):
    import a_package_that_is_not_installed

    return a_package_that_is_not_installed.exp(x)


def broken(x):
    raise RuntimeError("out of memory\nmore")
