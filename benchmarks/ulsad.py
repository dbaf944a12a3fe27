"""A training step of ULSAD beside the plain arithmetic of its specification, at equal losses; memory beside PatchCore.

"Theirs" does in every step what the specification says: features of the frozen backbone, pooling, standardisation,
both attentions with their full matrices, default memory format. "Ours" takes features and self-attention from the
cache, takes the attention loss and its gradient tile by tile, and uses channels-last memory and the fused Adam.
Both start from the same weights and see the same images; the steps alternate. "bf16" is our step in the precision of
the laptop profile: its losses are equal to that rounding only, and the note says how nearly.
"""

import copy
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F

from adlib.images import backbones
from adlib.images.features import channels_first
from adlib.methods.ulsad import step as ulsad_step
from adlib.methods.ulsad import ulsad

SIZE, BATCH = 256, 8


def plain_losses(backbone, mean, std, reconstruction_net, global_net, images) -> list[torch.Tensor]:
    """The three losses as they stand in the specification, from the images on."""
    with torch.no_grad():
        shallow, deep = backbone(images)
        joined = torch.cat([shallow, F.interpolate(deep, size=shallow.shape[-2:], mode="bilinear")], dim=1)
        cells = joined.flatten(2).transpose(1, 2)  # (B, h w, sum C_l)
        pooled = F.adaptive_avg_pool1d(cells, len(mean)).transpose(1, 2).unflatten(2, shallow.shape[-2:])
        f = (pooled - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    r, g = reconstruction_net(f), global_net(images)
    c = f.shape[1]

    def d(a, b):
        return (((a - b) ** 2).mean(dim=1) + 0.5 * (1 - F.cosine_similarity(a, b, dim=1))).mean()

    def attention(query):
        q, kv = (x.flatten(2).transpose(1, 2) for x in (query, f))  # (B, h w, C)
        answer = torch.softmax(q @ kv.transpose(1, 2) / c**0.5, dim=-1) @ kv
        return answer.transpose(1, 2).unflatten(2, f.shape[-2:])

    return [d(f, r[:, :c]), d(attention(f), attention(g)), d(g, r[:, c:])]


def one_step(channels: int, repeats: int, precision: str = "float32") -> list[dict]:
    """Time both ways in turns and compare their losses; `precision` of our step: float32 or bf16."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, SIZE, SIZE, generator=generator)
    backbone = backbones.create("tf_efficientnet_lite0", (2, 3))
    with torch.inference_mode():
        pooled = ulsad.pool_features(backbone(images), channels)
    mean, std = (
        torch.from_numpy(x) for x in ulsad.channel_statistics([pooled.permute(0, 2, 3, 1).contiguous().numpy()])
    )
    torch.manual_seed(0)
    grid = tuple(pooled.shape[-2:])
    nets = ulsad_step.ReconstructionNet(channels, final_relu=False), ulsad_step.GlobalNet(channels, (SIZE, SIZE), grid)
    their_nets = copy.deepcopy(nets)
    for net in nets:
        net.to(memory_format=torch.channels_last)
    stored = (images * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    images = (channels_first(stored, "cpu").float() / 255).contiguous()  # the same rounded pixels for both
    with torch.inference_mode():
        pooled = ulsad.pool_features(backbone(images), channels)
        features = ((pooled - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)).permute(0, 2, 3, 1).contiguous().numpy()
        f = channels_first(features, "cpu")
        attended = ulsad_step.attend(f, f).permute(0, 2, 3, 1).contiguous().numpy()

    def our_losses():
        f, attended_f, x = (channels_first(part, "cpu") for part in (features, attended, stored))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return list(ulsad_step.losses(f, attended_f, nets[0](f), nets[1](x.float() / 255)).values())

    def their_losses():
        return plain_losses(backbone, mean, std, *their_nets, images)

    sides = {}
    for name, compute, modules in (("ours", our_losses, nets), ("theirs", their_losses, their_nets)):
        parameters = [p for net in modules for p in net.parameters()]
        optimizer = torch.optim.Adam(parameters, 2e-4, weight_decay=2e-5, fused=name == "ours" or None)
        sides[name] = (compute, optimizer, [], [])
    for _ in range(repeats + 1):
        for compute, optimizer, seconds, values in sides.values():
            started = time.perf_counter()
            losses = compute()
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()
            seconds.append(time.perf_counter() - started)
            values.append([x.item() for x in losses])
    first = [np.array(sides[name][3][0]) for name in ("ours", "theirs")]
    ours, theirs = (statistics.median(sides[name][2][1:]) for name in ("ours", "theirs"))
    gap = np.abs(first[0] / first[1] - 1).max()
    note = f"largest relative difference of a loss at step 1: {gap:.1e}; median of {repeats} steps in turns"
    row = {"benchmark": "ULSAD training step", "size": f"batch {BATCH}, C = {channels}, {SIZE} px, {precision}"}
    return [
        row
        | {
            "ours": round(ours, 3),
            "theirs": round(theirs, 3),
            "ratio": round(theirs / ours, 2),
            "unit": "s",
            "note": note,
        }
    ]


def memory(image_counts=(100, 200, 400, 800), channels: int = 96, width: int = 152) -> list[dict]:
    """Memory that is held for scoring as the training set grows, from the shapes of the arrays.

    PatchCore keeps 2 % of all patches; its bank grows with the training set. ULSAD keeps two networks of fixed size.
    """
    grid = (SIZE // 8) ** 2
    with torch.device("meta"):
        nets = (
            ulsad_step.ReconstructionNet(channels),
            ulsad_step.GlobalNet(channels, (SIZE, SIZE), (SIZE // 8, SIZE // 8)),
        )
    kept = sum(p.numel() for net in nets for p in net.parameters()) * 4 / 2**20
    rows = []
    for n in image_counts:
        bank = 0.02 * n * grid * width * 4 / 2**20
        note = "what is saved and held for scoring: networks beside a 2 % coreset of 152-dimensional patches"
        row = {"benchmark": "ULSAD model beside PatchCore's bank", "size": f"{n} images"}
        rows.append(
            row
            | {
                "ours": round(kept, 1),
                "theirs": round(bank, 1),
                "ratio": round(bank / kept, 2),
                "unit": "MiB",
                "note": note,
            }
        )
    return rows


def main(repeats: int = 7) -> list[dict]:
    """Return the rows of results/benchmarks.csv."""
    rows = []
    for channels in (96, 128):
        for precision in ("float32", "bf16"):
            rows += one_step(channels, repeats, precision)
    return [*rows, *memory()]


if __name__ == "__main__":
    torch.set_num_threads(2)
    for found in main():
        print(found)
