"""What each of several processes finds out about shares of weights: it writes its findings, and others compare them.

Run by ``launcher.start_together`` as ``before=shares.CODE.format(...)``.
"""

import os
import warnings
from pathlib import Path

import torch

from models import EMA, MODELS, ScoreModel
from sde_lib import VPSDE
from training import Checkpoints, TrainState, joined
from training.saver import Saver
from training.sharding import local, shard, whole

CODE = """
sys.path.append({tests!r})
import shares
shares.work({folder!r})
sys.stdout.flush()
os._exit(0)
"""
SMALL = {
    name: {"image_size": 8, "channels": width, "channel_mult": (1, 1), "res_blocks": 1, "attention_resolutions": (4,)}
    for name, width in (("unet", 16), ("ncsnpp", 16), ("adm", 64))
} | {"dit": {"image_size": 8, "channels": 24, "depth": 2, "heads": 2}, "mlp": {"dim": 5, "width": 24}}
"""Network -> settings; an entry without them is tried with its defaults."""
NETWORKS = {2: tuple(MODELS), 3: ("unet", "mlp")}
"""Number of processes -> what they share: where rows cannot be cut evenly, images and points."""
BATCH = 6


def fresh_model(name, precision="float32"):
    """A network whose silent parts are awakened, the same on every process."""
    torch.manual_seed(0)
    net = MODELS[name](**SMALL.get(name, {}) | {"dropout": 0.0}).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    return ScoreModel(net, VPSDE(), precision=precision)


def batch(name):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, *((5,) if name == "mlp" else (3, 8, 8)), generator=generator)
    return x, torch.linspace(0.31, 0.93, BATCH)


def loss(model, x, t):
    return (model.eps(x, t) - x).square().mean()


def new_state(name, count=1):
    """A state, of shares if there are several processes."""
    model = fresh_model(name)
    ema = EMA(model, 0.9)
    if count > 1:
        shard(model, count, torch.device("cpu"))
        shard(ema.model, count, torch.device("cpu"))
    # a larger eps: Adam would make steps of what is rounding alone, as in the gradient of attention's key biases, 0
    return TrainState(model, torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3, fused=True), ema)


def step(state, rank=0, count=1):
    x, t = batch("unet")
    loss(state.model, x[rank::count], t[rank::count]).backward()
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(state.model)
    state.step += 1


def work(folder):
    """The findings of this process, and what the first one saves."""
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    folder = Path(folder)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    with joined(rank, count) as together:
        found = {"gradients": {name: gradients(name, rank, count) for name in NETWORKS[count]}}
        found["outputs"] = outputs_in_bfloat16(count)
        state = new_state("unet", count)
        state.load(folder / "given" / "step_00000001")
        found["averaged"] = state.averaged(lambda: fresh_model("unet")).state_dict()
        saved = Checkpoints(folder / f"again{count}") if together.first else None
        with Saver(saved) as saver:
            saver.save(state)
            step(state, rank, count)  # training does not wait until it is written
        with Saver(Checkpoints(folder / f"next{count}") if together.first else None) as saver:
            saver.save(state)
        tensors, _ = state.content()
        found["bytes"] = {
            key: [sum(of(v).nbytes for v in group.values()) for of in (local, whole)] for key, group in tensors.items()
        }
        finite = together.all(state.finite())
        with torch.no_grad():
            for parameter in state.model.parameters():
                if rank == count - 1:
                    local(parameter).fill_(torch.nan)
        found["finite"] = finite, together.all(state.finite())
    torch.save(found, folder / f"found{count}-{rank}.pt")


def gradients(name, rank, count):
    """The whole gradient of this process's rows, averaged by the backward pass."""
    model = shard(fresh_model(name), count, torch.device("cpu"))
    x, t = batch(name)
    loss(model, x[rank::count], t[rank::count]).backward()
    return {key: whole(parameter.grad) for key, parameter in model.named_parameters()}


@torch.no_grad()
def outputs_in_bfloat16(count):
    return shard(fresh_model("unet", "bfloat16"), count, torch.device("cpu")).eps(*batch("unet"))
