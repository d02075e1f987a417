"""One evaluation of a likelihood, drift and divergence: this project against the way of the published code.

    python benchmarks/likelihood.py --batch=16                         # DDPM's CIFAR-10 network, 35.7 M parameters
    python benchmarks/likelihood.py --run=runs/digits --batch=16       # the network of a run
    python benchmarks/likelihood.py --device=cuda --batch=256

The published way (arXiv 2011.13456, its code base's likelihood): a forward pass for the drift, then a second one with
its gradient for the divergence. Ours takes both from one forward pass and its gradient. It runs on our network, in
PyTorch's default layout as in that code base and in ours, and on the ``UNet2DModel`` of diffusers with the same weights
(which --peers=ours leaves out). What a whole likelihood costs and errs: benchmarks/likelihood_errors.py.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from contestants import configure, flags, precision_choice
from machine import describe, peaks
from peers import Diffusers, blank
from race import Way, alternate, arguments, batches, begin, report
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from configs import cifar10, stored
from evaluation import computing_in
from models import ScoreModel
from sde_lib import ScoreFn
from sde_lib.divergence import HutchinsonDivergence
from training import RunFolder, builders, load_checkpoint, load_weights

REFERENCES = ["published way float32", "published way, diffusers' network float32", "published way bfloat16"]


def main() -> None:
    """Print a table for each batch size."""
    parser = arguments(__doc__, batch="16", rounds=7)
    flags(parser)
    parser.add_argument("--run", type=Path, help="folder of a trained run on images, in place of the CIFAR-10 network")
    parser.add_argument("--all", action="store_true", help="also a forward pass alone, forward mode, and 8 probes")
    options = parser.parse_args()
    device = begin(options)
    print(describe(device), flush=True)
    precisions = precision_choice(options)
    found = peaks(device, set(precisions), options.clock)
    for size in batches(options):
        ways = [way for precision in precisions for way in contestants(options, size, device, precision)]
        alternate(ways, options)
        report(f"Drift and divergence, batch {size}, {device.type}", ways, REFERENCES, found, options)


def contestants(options, size: int, device: torch.device, precision: str) -> Iterator[Way]:
    """All ways in one precision; in bfloat16 the published one is under autocast."""
    config = configure(stored.get_config(str(options.run / "config.json")), [], size) if options.run else None
    config = config or configure(cifar10.get_config(), options.set, size)
    model, shape = network(config, options.run, device)
    model.precision = precision
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format).requires_grad_()
    nets: dict[str, ScoreFn] = {"": plain, ", our layout": model}
    if "diffusers" in options.peers.split(",") and not options.run:
        nets[", diffusers' network"] = theirs(Diffusers(config, precision, device))
    x, t = torch.randn(size, *shape, device=device), torch.full((size,), 0.3, device=device)
    probes = torch.randint(0, 2, (8, *x.shape), device=device).float() * 2 - 1
    weights = sum(p.numel() for p in model.parameters())

    def ours(probes: Tensor) -> None:
        with computing_in(model, precision):
            HutchinsonDivergence(probes)(model, x, t)

    runs: dict[str, Callable[[], object]] = {"ours": partial(ours, probes[:1])}
    for name, net in nets.items():
        runs[f"published way{name}"] = partial(published, net, x, t, probes[0])
    if options.all:
        runs["forward pass alone"] = partial(forward, model, x, t)
        runs["forward mode (torch.func.jvp)"] = partial(forward_mode, model, x, t, probes[0])
        runs["ours, 8 probes"] = partial(ours, probes)
    for name, run in runs.items():
        yield Way(f"{name} {precision}", run, size, None, precision, weights)


def network(config, run: Path | None, device: torch.device) -> tuple[ScoreModel, tuple[int, ...]]:
    """The averaged weights of a run, or fresh ones; and the shape of an image."""
    if run is None:
        torch.manual_seed(config.seed)
        dataset = blank(config)
        model = builders.build_model(config, dataset, device)
    else:
        experiment = builders.build_experiment(config)
        model, dataset, path = experiment.model, experiment.dataset, RunFolder(run).checkpoint()
        load_weights(model, load_checkpoint(path)[0]["ema"], path)
    return model.to(device).eval().requires_grad_(False), dataset.shape


def theirs(peer: Diffusers) -> ScoreFn:
    """The noise that diffusers' network predicts; a score is that times a number."""
    net = peer.net.eval().requires_grad_(False)
    return lambda x, t: peer.predict(net, x, (1000 * t).long() - 1, peer.autocast).float()


def forward(score_fn: ScoreFn, x: Tensor, t: Tensor) -> None:
    with torch.no_grad():
        score_fn(x, t)


def published(score_fn: ScoreFn, x: Tensor, t: Tensor, probe: Tensor) -> None:
    """A forward pass, then another with its gradient."""
    forward(score_fn, x, t)
    with torch.enable_grad():
        state = x.detach().requires_grad_()
        torch.autograd.grad((score_fn(state, t) * probe).sum(), state)


def forward_mode(score_fn: ScoreFn, x: Tensor, t: Tensor, probe: Tensor) -> None:
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        torch.func.jvp(lambda x: score_fn(x, t), (x,), (probe,))


if __name__ == "__main__":
    main()
