"""Write what the static page downloads: the model as ONNX graphs that share a file of weights, and photographs to try.

`make demo-web` runs it. It fills the folders demo/web/public/models and demo/web/public/examples.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch
from pack_weights import WeightFile, pack
from segment_anything.modeling import Sam
from torch import Tensor, nn

from sam_bigltl import __version__, load_sam
from sam_bigltl.bench.macs import count_macs
from sam_bigltl.convert.export import decoder_program, encoder_program, fixed_encoder, to_onnx
from sam_bigltl.convert.onnx_files import DECODER, ENCODER
from sam_bigltl.convert.registry import default_checkpoint
from sam_bigltl.demo.api import HOME
from sam_bigltl.demo.everything import find_options
from sam_bigltl.demo.examples import Example, examples
from sam_bigltl.demo.photos import MOST_BYTES
from sam_bigltl.errors import ArgumentParser, InputError, run_cli
from sam_bigltl.modeling.encoder import BigLittleEncoder

PUBLIC = Path(__file__).resolve().parent / "public"
DENSE = "encoder_dense"
LEAST_TOKENS = 16  # so few are the graph's smallest selection
SIZE = 25_000_000  # bytes of graphs and weights together, at most for a page that opens quickly
MOST_SIDE = 1280  # of masks on the page, pixels
CHECKED = 64  # numbers of an embedding


class CountedEncoder(BigLittleEncoder):
    """An encoder whose number of big tokens is computed in the graph. Its ratio is a pair of tensors.

    Attributes of the pair: the least number of tokens, int64 (1,), and the importance that they reach, float32 (1,):
    "auto" gives the second, any other keep_ratio the first.
    """

    def _count(self, scores: Tensor, ratio: Any) -> int:
        least, mass = ratio
        reached = scores.sort(dim=1, descending=True).values.cumsum(dim=1)
        count: Any = torch.maximum((reached < mass).sum() + 1, least[0]).clamp(max=scores.shape[1]).item()
        torch._check(count >= LEAST_TOKENS)
        torch._check(count <= scores.shape[1])
        return count


class CountedGraph(nn.Module):
    """The encoder for one image, with the number of big tokens as an input, and what it selected."""

    def __init__(self, encoder: BigLittleEncoder) -> None:
        super().__init__()
        self.encoder = fixed_encoder(encoder, 0.5)
        self.encoder.__class__ = CountedEncoder

    def forward(self, images: Tensor, big_tokens: Tensor, mass: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images (1, 3, S, S), pair of `CountedEncoder` -> embedding (1, C, g, g), importance and selection (G, N)."""
        encoder = self.encoder
        tokens = encoder.embed_patches(images)
        grid, device = (int(tokens.shape[1]), int(tokens.shape[2])), tokens.device
        big = encoder._geometry(grid, encoder.config.window, device)
        small = encoder._geometry(grid, encoder.config.little_window, device)
        x = tokens.flatten(1, 2)
        little, scores, selected = None, [], []
        for index in range(len(encoder.config.groups)):
            x, little, group = encoder._run_group(x, little, index, (big_tokens, mass), big, small)  # type: ignore[arg-type]
            scores.append(group.scores[0])
            selected.append(torch.zeros_like(group.scores[0]).index_fill(0, group.indices[0], 1.0))
        return encoder._neck(x.unflatten(1, grid)), torch.stack(scores), torch.stack(selected)


def counted_program(sam: Sam) -> torch.export.ExportedProgram:
    """`CountedGraph` as a program."""
    graph = CountedGraph(sam.image_encoder).eval()
    side = graph.encoder.img_size
    example = (torch.zeros(1, 3, side, side), torch.tensor([200]), torch.tensor([0.0]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(graph, example)


NAMES = ["images", "big_tokens", "mass"], ["image_embeddings", "scores", "selected"]


def export(sam: Sam, folder: Path) -> int:
    """Write the three graphs and their weights, and return how many bytes they are."""
    sam = copy.deepcopy(sam).cpu().eval().requires_grad_(False)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    weights = WeightFile(folder / "weights.bin")
    graphs: dict[str, Callable[[], Any]] = {
        ENCODER: lambda: to_onnx(counted_program(sam), ENCODER, NAMES),
        DENSE: lambda: to_onnx(encoder_program(sam, 1.0, batch=1), ENCODER),
        DECODER: lambda: to_onnx(decoder_program(sam), DECODER),
    }
    for name, make in graphs.items():
        model = make().model_proto
        pack(model, weights)
        onnx.save(model, folder / f"{name}.onnx")
    weights.write()
    return sum(path.stat().st_size for path in folder.iterdir())


def describe(sam: Sam, name: str, photos: list[Example]) -> dict[str, Any]:
    """What the page has to know of the model."""
    encoder = sam.image_encoder
    return {
        "info": {
            "model": name, "routed": True, "keep_ratio": 0.5, "min_keep_ratio": 0.25, "max_bytes": MOST_BYTES,
            "max_side": MOST_SIDE, "version": __version__, "local": True, "home": HOME,
            "everything": asdict(find_options(sam, [photo.image for photo in photos])),
            "examples": [{"name": each.name, "title": each.title, "thumbnail": each.thumbnail} for each in photos],
        },
        "image_size": encoder.img_size, "patch_size": encoder.patch_size,
        "pixel_mean": sam.pixel_mean.flatten().tolist(), "pixel_std": sam.pixel_std.flatten().tolist(),
        "mask_threshold": float(sam.mask_threshold), "auto_mass": encoder.auto_mass, "least_tokens": LEAST_TOKENS,
        "layers": [[layers[0], layers[-1]] for _, layers in encoder.config.groups], "gmacs": costs(sam),
        "check": sampled_embedding(sam),
    }  # fmt: skip


@torch.no_grad()
def sampled_embedding(sam: Sam) -> list[float]:
    """Some numbers of the embedding of a pattern at keep_ratio 0.5, by which a page knows that its device computes.

    The pattern is the sine of a thousandth of each place in (3, S, S).
    """
    encoder = copy.deepcopy(sam.image_encoder)
    encoder.keep_ratio = 0.5
    places = torch.arange(3 * encoder.img_size**2, dtype=torch.float64)
    pattern = (places / 1000).sin().float().view(1, 3, encoder.img_size, encoder.img_size)
    values = encoder(pattern).flatten()
    return [round(value, 5) for value in values[:: len(values) // CHECKED][:CHECKED].tolist()]


def costs(sam: Sam) -> dict[str, Any]:
    """Billions of multiply-accumulates: dense, and routed as a line in the share of big tokens of each selection."""
    encoder = copy.deepcopy(sam.image_encoder)
    pixels = torch.zeros(1, 3, encoder.img_size, encoder.img_size)

    def of(ratios: list[float]) -> float:
        encoder.keep_ratio = ratios
        return count_macs(encoder, pixels).total / 1e9

    stages, (low, high) = len(encoder.config.stages), (0.25, 0.75)
    least = of([low] * stages)
    slopes = [
        (of([high if stage == i else low for i in range(stages)]) - least) / (high - low) for stage in range(stages)
    ]
    shares = [
        slopes[stage] / sum(other == stage for other, _ in encoder.config.groups) for stage, _ in encoder.config.groups
    ]
    return {"dense": of([1.0] * stages), "base": least - low * sum(slopes), "share": shares}


def write_examples(folder: Path) -> list[Example]:
    """The demo's photographs to try, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = examples()
    for example in found:
        (folder / f"{example.name}.png").write_bytes(example.content)
    return found


def run(args: Any) -> None:
    """Write everything and say how large it is. Raises InputError."""
    checkpoint = args.checkpoint or default_checkpoint()
    sam = load_sam(checkpoint)
    if sam.image_encoder.is_dense:
        raise InputError(f"{checkpoint.name} is a dense model: the page needs one with a little path")
    size = export(sam, args.output / "models")
    if size > SIZE:
        print(f"note: graphs and weights have {size / 1e6:.1f} MB, which everybody downloads before the first mask")
    description = describe(sam, checkpoint.stem, write_examples(args.output / "examples"))
    (args.output / "models" / "model.json").write_text(json.dumps(description), encoding="utf-8")
    print(f"wrote {args.output / 'models'}: {size / 1e6:.1f} MB")


def main() -> None:
    """The command line."""
    parser = ArgumentParser(prog="export_models.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help="weights (checkpoints/bigltl_mini.safetensors)")
    parser.add_argument("--output", type=Path, default=PUBLIC, metavar="DIR", help="folder (demo/web/public)")
    run_cli(parser.prog, run, parser.parse_args())


if __name__ == "__main__":
    main()
