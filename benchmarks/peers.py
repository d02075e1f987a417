"""The same network in three projects, each with its own training step, evaluation and samplers.

ours        this project: its builders, its ``training.loop._step``, its samplers.
diffusers   ``UNet2DModel`` of the same architecture, with the same weights; the step of the project's script
            examples/unconditional_image_generation/train_unconditional.py with ``--use_ema``.
lucidrains  the ``Unet`` of denoising-diffusion-pytorch, of nearly the same size and cost; the step of its ``Trainer``.

Each comes in variants. "float32": as it is by default. "bfloat16": with autocast, which for ours is a setting. "best":
diffusers with what its users can switch on: channels_last, fused AdamW, foreach EMA, TF32, cuDNN's search for
algorithms; evaluation by weights in bfloat16. "compiled": the same under torch.compile.

All take images on [-1, 1] that are on the device already: loading is no part of these measurements.
"""

import copy
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from ml_collections import ConfigDict
from torch import Tensor
from torch.nn import functional

from data import Quantizer, TensorDataset, whole_file
from models import ScoreModel, UNet, pretrained
from models.pretrained.diffusers_write import their_tensors, unet_settings
from samplers import get_sampler
from training import Checkpoints, builders
from training.gradient import gradient_of
from training.loop import _step
from training.processes import ALONE

CHAIN = {"chain": "linear", "steps": 1000, "first": 1e-4, "last": 0.02, "scale": 1.0}
"""DDPM's, on which the others train."""


def blank(config: ConfigDict) -> TensorDataset:
    """Data that only tell their shape: 32x32 in colour."""
    levels = torch.zeros(config.training.batch_size, 3, 32, 32, dtype=torch.uint8)
    return TensorDataset("blank", levels, quantizer=Quantizer(256, config.data.low, config.data.high))


class Ours:
    """This project's training state, stepped by its own loop's step."""

    VARIANTS = ("float32", "bfloat16")
    SAMPLERS = ("ancestral", "ddim")

    def __init__(self, config: ConfigDict, variant: str, device: torch.device) -> None:
        config = config.copy_and_resolve_references()
        if variant != "as configured":
            config.model.precision = "float32" if variant == "float32" else "bfloat16"
        dataset = blank(config)
        torch.manual_seed(config.seed)
        self.state = builders.build_state(config, builders.build_model(config, dataset, device).to(device))
        loss_fn = builders.build_loss(config, self.state.model.sde)
        self.options = builders.build_options(config, dataset)
        self.gradient = gradient_of(self.state.model, loss_fn, ALONE, graph=self.options.cuda_graph)

    def parameters(self) -> int:
        return sum(p.numel() for p in self.state.model.parameters())

    def plan(self, steps: int) -> None:
        """The length of the run, on which the learning rate may depend."""
        self.options = replace(self.options, steps=steps)

    def step(self, x0: Tensor) -> Tensor:
        """One training step; the loss."""
        loss, _ = _step(self.state, self.gradient, x0, None, self.options, ALONE)
        self.state.step += 1
        return loss

    @torch.no_grad()
    def evaluate(self, x: Tensor, index: Tensor) -> Tensor:
        """The predicted noise at steps (B,) of DDPM's chain."""
        return self.state.ema.model.eps(x, (index + 1) / CHAIN["steps"])

    def sample(self, method: str, steps: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """A run of as many evaluations as steps."""
        model = self.state.ema.model
        return get_sampler(method, steps=steps, denoise=False).sample(model.sde, model, shape, device=device).x

    def averaged(self) -> ScoreModel:
        """The averaged weights as a score model."""
        return self.state.ema.model

    def other_averages(self) -> dict[str, ScoreModel]:
        """Those that are kept beside it, and the weights themselves."""
        others = {name: average.model for name, average in self.state.averages.items() if name != "ema"}
        return {"none": copy.deepcopy(self.state.model).eval(), **others}

    def save(self, folder: Path) -> None:
        self.state.save(Checkpoints(folder, keep=1))

    def load(self, folder: Path, device: torch.device) -> None:
        self.state.load(Checkpoints(folder).latest())


class Diffusers:
    """The step of diffusers' script; it trains ``UNet2DModel``, or a network of ours that diffusers does not have."""

    VARIANTS = ("float32", "bfloat16", "best", "compiled")
    SAMPLERS = ("ancestral", "ddim")

    def __init__(self, config: ConfigDict, variant: str, device: torch.device) -> None:
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.training_utils import EMAModel

        self.description = builders.describe_model(config, blank(config))
        torch.manual_seed(config.seed)
        net = self.description.build_network()
        if isinstance(net, UNet):
            own, net = net, UNet2DModel(**unet_settings(net, self.description))
            net.load_state_dict(their_tensors(own))
        self.net = net.to(device)
        self.fast = variant in ("best", "compiled")
        if self.fast:
            self.net.to(memory_format=torch.channels_last)
        self.autocast = variant != "float32"
        self.forward = torch.compile(self.net) if variant == "compiled" else self.net
        self.scheduler = DDPMScheduler(num_train_timesteps=CHAIN["steps"])
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=1e-4, betas=(0.95, 0.999), eps=1e-8, weight_decay=1e-6, fused=self.fast or None
        )
        kind = {"use_ema_warmup": True, "inv_gamma": 1.0, "power": 3 / 4, "decay": 0.9999, "foreach": self.fast}
        self.ema = EMAModel(self.net.parameters(), **kind)
        self.ema.to(device)
        self.warmup, self.steps, self.done = 500, config.training.steps or 100_000, 0
        self.compiled = variant == "compiled"
        self._evaluated: torch.nn.Module | None = None

    def parameters(self) -> int:
        return sum(p.numel() for p in self.net.parameters())

    def plan(self, steps: int) -> None:
        self.steps = steps

    def step(self, x0: Tensor) -> Tensor:
        with switches(self.fast):
            for group in self.optimizer.param_groups:
                group["lr"] = 1e-4 * self._schedule()
            noise = torch.randn(x0.shape, device=x0.device)
            index = torch.randint(0, CHAIN["steps"], (len(x0),), device=x0.device)
            noisy = self.scheduler.add_noise(x0, noise, index)
            loss = functional.mse_loss(self.predict(self.forward, noisy, index, self.autocast).float(), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ema.step(self.net.parameters())
            self.done += 1
        return loss.detach()

    def _schedule(self) -> float:
        """The script's default: a warm-up (500 steps there), then half a cosine."""
        if self.done < self.warmup:
            return self.done / self.warmup
        share = (self.done - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def predict(self, net: torch.nn.Module, x: Tensor, index: Tensor, autocast: bool) -> Tensor:
        layout = torch.channels_last if self.fast else torch.contiguous_format
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            out = net(x.contiguous(memory_format=layout), index)
        return getattr(out, "sample", out)

    @torch.no_grad()
    def evaluate(self, x: Tensor, index: Tensor) -> Tensor:
        """The predicted noise, by the weights averaged when this was first called."""
        if self._evaluated is None:
            net = self._averaged_net()
            net = net.bfloat16() if self.fast else net
            self._evaluated = torch.compile(net) if self.compiled else net
        with switches(self.fast):
            x = x.bfloat16() if self.fast else x
            return self.predict(self._evaluated, x, index, self.autocast and not self.fast)

    def sample(self, method: str, steps: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The loop of ``DDPMPipeline`` or ``DDIMPipeline``."""
        import diffusers

        kind = {"ancestral": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}[method]
        scheduler = kind(num_train_timesteps=CHAIN["steps"])
        scheduler.set_timesteps(steps)
        x = torch.randn(shape, device=device)
        for index in scheduler.timesteps:
            x = scheduler.step(self.evaluate(x, index.to(device).expand(len(x))), index, x).prev_sample
        return x

    def _averaged_net(self) -> torch.nn.Module:
        net = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.ema.copy_to(net.parameters())
        return net

    def averaged(self) -> ScoreModel:
        """The averaged weights as a score model of this project: of ``UNet2DModel``, as their folder is read."""
        net, device = self._averaged_net(), next(self.net.parameters()).device
        if hasattr(net, "save_pretrained"):
            with tempfile.TemporaryDirectory() as folder:
                net.save_pretrained(folder)
                self.scheduler.save_pretrained(folder)
                return pretrained.load(folder).to(device)
        told = {"process": "vp", "process_options": {}, "prediction": "eps", "conditioning": "chain", "chain": CHAIN}
        return replace(self.description, **told).around(net).eval()

    def other_averages(self) -> dict[str, ScoreModel]:
        return {}

    def save(self, folder: Path) -> None:
        parts = {"net": self.net, "optimizer": self.optimizer, "ema": self.ema}
        content = {name: part.state_dict() for name, part in parts.items()}
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / "state.pt") as draft:
            torch.save({**content, "done": self.done}, draft)

    def load(self, folder: Path, device: torch.device) -> None:
        found = torch.load(folder / "state.pt", map_location=device, weights_only=True)
        for name in ("net", "optimizer", "ema"):
            getattr(self, name).load_state_dict(found[name])
        self.done = found["done"]


class Lucidrains:
    """denoising-diffusion-pytorch: ``Unet`` in ``GaussianDiffusion``, stepped as its ``Trainer`` does."""

    VARIANTS = ("float32", "bfloat16")
    SAMPLERS = ("ddim",)  # its ancestral sampler takes all of the chain's steps

    def __init__(self, config: ConfigDict, variant: str, device: torch.device) -> None:
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
        from ema_pytorch import EMA

        # of its kind the one that comes nearest in weights and operations: a little wider
        width, mults = config.model.channels * 9 // 8, config.model.channel_mult
        torch.manual_seed(config.seed)
        net = Unet(width, dim_mults=mults, dropout=config.model.dropout)
        self.diffusion = GaussianDiffusion(net, image_size=32).to(device)
        self.optimizer = torch.optim.Adam(self.diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
        self.ema = EMA(self.diffusion, beta=0.995, update_every=10).to(device)
        self.autocast = variant == "bfloat16"

    def parameters(self) -> int:
        return sum(p.numel() for p in self.diffusion.model.parameters())

    def step(self, x0: Tensor) -> Tensor:
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.diffusion((x0 + 1) / 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.diffusion.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, x: Tensor, index: Tensor) -> Tensor:
        net = self.ema.ema_model.model.eval()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            return net(x, index)

    @torch.no_grad()
    def sample(self, method: str, steps: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        diffusion = self.ema.ema_model.eval()
        diffusion.sampling_timesteps = steps
        sys.modules[GAUSSIAN].tqdm = lambda times, **_: times  # no bar
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            return diffusion.ddim_sample(shape)


GAUSSIAN = "denoising_diffusion_pytorch.denoising_diffusion_pytorch"
PEERS = {"ours": Ours, "diffusers": Diffusers, "lucidrains": Lucidrains}


@contextmanager
def switches(on: bool) -> Iterator[None]:
    """TF32 and cuDNN's search for the fastest algorithm, while a peer that wants them runs."""
    search, products = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    if on:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = search
        torch.set_float32_matmul_precision(products)
