"""Checkpoints that cannot be used, and `sam-bigltl convert`."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import picture
from little_models import dense_sam, embed, small_reference_sam
from PIL import Image
from safetensors.torch import save_file

from sam_bigltl.convert import load_sam, save_sam
from sam_bigltl.errors import InputError


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def broken_files(folder: Path) -> dict[str, Path]:
    """A file of every kind that is no checkpoint."""
    files = {}

    def write(name: str, content: bytes) -> None:
        files[name] = folder / name
        files[name].write_bytes(content)

    sam = dense_sam()
    state = sam.state_dict()
    torch.save(state, folder / "whole.pth")
    save_sam(sam, folder / "whole.safetensors")
    for name in ("whole.pth", "whole.safetensors"):
        content = (folder / name).read_bytes()
        for share in (0, 0.001, 0.5, 0.99):
            write(f"{share}-{name}", content[: int(share * len(content))])
        write(f"text-{name}", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134\n")
        write(f"noise-{name}", bytes(range(256)) * 8)
    write("word.pth", b"text")
    write("page.pth", b"<!DOCTYPE html><html><body>404</body></html>")
    write("malicious.pth", pickle.dumps({"image_encoder.pos_embed": Malicious(folder / "proof")}))
    write("malicious.safetensors", pickle.dumps({"image_encoder.pos_embed": Malicious(folder / "proof")}))
    write("protocol0.pth", pickle.dumps([1, 2, 3], protocol=0))
    for name, content in {
        "malicious-zip.safetensors": {"image_encoder.pos_embed": Malicious(folder / "proof")},
        "malicious-zip.pth": {"image_encoder.pos_embed": Malicious(folder / "proof")},
        "nested.pth": {"model": {"epoch": 3}},
        "two.pth": {"net": state, "best": {name: value.clone() for name, value in state.items()}},
        "list.pth": list(state.values()),
        "tensor.pth": torch.zeros(3),
        "numbers.pth": {1: torch.zeros(3)},
        "other.pth": {"conv.weight": torch.zeros(3, 3), "conv.bias": torch.zeros(3)},
        "decoder.pth": {name: value for name, value in state.items() if "decoder" in name},
        "flat.pth": {name: value.flatten() for name, value in state.items()},
        "unnumbered.pth": state | {"image_encoder.blocks.x.bias": torch.zeros(1)},
        "shallow.pth": {name: value for name, value in state.items() if ".blocks.2." not in name},
        "more.pth": state | {"image_encoder.surplus": torch.zeros(1)},
        "narrow.pth": state | {"image_encoder.neck.1.weight": torch.zeros(7)},
    }.items():
        files[name] = folder / name
        torch.save(content, files[name])
    files["other.safetensors"] = folder / "other.safetensors"
    save_file({"fc.weight": torch.zeros(2, 2)}, files["other.safetensors"])
    files["absent"] = folder / "absent.pth"
    files["folder"] = folder
    files["folder.safetensors"] = folder / "folder.safetensors"
    files["folder.safetensors"].mkdir()
    return files


def test_unusable_files_are_named_in_one_line(tmp_path):
    failures = []
    for name, path in broken_files(tmp_path).items():
        try:
            load_sam(path)
            failures.append(f"{name}: loaded")
        except InputError as error:
            if str(path) not in str(error) or "\n" in str(error) or len(str(error)) > 400:
                failures.append(f"{name}: {error}")
        except Exception as error:  # any other kind is what this test looks for
            failures.append(f"{name}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
    assert not (tmp_path / "proof").exists()
    load_sam(tmp_path / "whole.pth")
    load_sam(tmp_path / "whole.safetensors")


def test_saving_where_it_cannot_be_saved(tmp_path):
    sam = dense_sam()
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    for target in (tmp_path / "file" / "a.safetensors", tmp_path / "folder.safetensors"):
        with pytest.raises(InputError, match="cannot write"):
            save_sam(sam, target)


# ---------------------------------------------------------------- the command line
def convert(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sam_bigltl.cli", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_convert_command(tmp_path):
    sam = small_reference_sam()
    torch.save(sam.state_dict(), tmp_path / "a.pth")
    done = convert(tmp_path / "a.pth", tmp_path / "b.safetensors", "--little-dim", 12, "--route-every", 1)
    assert done.returncode == 0, done.stderr
    big = load_sam(tmp_path / "b.safetensors")
    assert big.image_encoder.config.little_dim == 12
    assert len(big.image_encoder.config.groups) == 4
    assert (embed(big, 1.0) - embed(sam)).abs().max() < 1e-5


def test_convert_command_with_a_warm_start(tmp_path):
    sam = small_reference_sam()
    torch.save(sam.state_dict(), tmp_path / "a.pth")
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.fromarray(picture(48, 64, number)).save(tmp_path / "photos" / f"{number}.png")
    arguments = ("--little-dim", 16, "--warm-start", tmp_path / "photos", "--max-images", 3)
    done = convert(tmp_path / "a.pth", tmp_path / "b.safetensors", *arguments)
    assert done.returncode == 0, done.stderr
    big = load_sam(tmp_path / "b.safetensors")
    assert (embed(big, 1.0) - embed(sam)).abs().max() < 1e-5
    # Only the warm start zeroes what the attention of E-blocks adds.
    assert not any(block.attn.proj.weight.any() for block in big.image_encoder.little_blocks)
    assert all(transition.up.weight.any() for transition in big.image_encoder.transitions)


def test_a_warm_start_takes_the_photographs_of_a_json_and_no_others(tmp_path):
    torch.save(small_reference_sam().state_dict(), tmp_path / "a.pth")
    for folder, count in (("all", 3), ("one", 1)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            Image.fromarray(picture(48, 64, number)).save(tmp_path / folder / f"{number}.png")
    image = {"id": 1, "file_name": "0.png", "height": 48, "width": 64}
    mask = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0,
            "segmentation": [[1, 1, 10, 1, 10, 10, 1, 10]]}  # fmt: skip
    document = {"images": [image], "annotations": [mask], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "one.json").write_text(json.dumps(document))
    for name, flags in (("json", ("one.json", "--images", tmp_path / "all")), ("folder", ("one",)), ("all", ("all",))):
        done = convert(tmp_path / "a.pth", tmp_path / f"{name}.safetensors", "--little-dim", 16, "--warm-start",
                       tmp_path / flags[0], *flags[1:])  # fmt: skip
        assert done.returncode == 0, done.stderr
    ours, same, others = (load_sam(tmp_path / f"{name}.safetensors").state_dict() for name in ("json", "folder", "all"))
    key = "image_encoder.transitions.0.up.bias"
    assert (ours[key] - same[key]).norm() < 0.2 * (ours[key] - others[key]).norm()
    for flags in (("one.json",), ("one", "--images", tmp_path)):
        done = convert(tmp_path / "a.pth", tmp_path / "b.safetensors", "--warm-start", tmp_path / flags[0], *flags[1:])
        assert done.returncode == 2 and "--images" in done.stderr and len(done.stderr.splitlines()) == 1
    done = convert(tmp_path / "a.pth", tmp_path / "b.safetensors", "--images", tmp_path)
    assert done.returncode == 2 and "--warm-start" in done.stderr


@pytest.mark.parametrize(
    "case",
    ["absent", "suffix", "not a sam", "--little-dim", "--route-every", "--max-images", "--warm-start", "--dtype"],
)
def test_convert_command_refuses(case: str, tmp_path, monkeypatch, capsys):
    from sam_bigltl.cli import main

    source, target, flags = tmp_path / "a.pth", tmp_path / "b.safetensors", []
    torch.save(small_reference_sam().state_dict(), source)
    (tmp_path / "empty").mkdir()
    Image.fromarray(picture()).save(tmp_path / "p.png")
    if case == "absent":
        source = tmp_path / "c.pth"
    elif case == "suffix":
        target = tmp_path / "b.pth"
    elif case == "not a sam":
        torch.save({"x": torch.zeros(1)}, source)
    elif case == "--max-images":
        flags = ["--warm-start", tmp_path, case, 0]
    elif case == "--warm-start":
        flags = [case, tmp_path / "empty"]
    else:
        flags = [case, "int8" if case == "--dtype" else 0]
    with pytest.raises(SystemExit) as end:
        main(["convert", *map(str, (source, target, *flags))])
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "it/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("sam-bigltl convert: error: ")
    assert not target.exists()


def test_a_broken_checkpoint_ends_the_command_with_one_line(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"x": Malicious(tmp_path / "proof")}))
    done = convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert done.returncode == 2 and not (tmp_path / "proof").exists()
    assert len(done.stderr.splitlines()) == 1 and "a.pth" in done.stderr


def test_a_file_that_implies_a_huge_model_allocates_nothing(tmp_path):
    """Tensors without elements cost nothing to write, and layers can have any number."""
    state = dense_sam().state_dict()
    first = {name: value for name, value in state.items() if ".blocks.0." in name}
    for change in (
        {"image_encoder.pos_embed": torch.zeros(1, 200_000, 200_000, 0)},
        {"image_encoder.neck.0.weight": torch.zeros(10**9, 32, 0, 0)},
        {"image_encoder.blocks.0.mlp.lin1.weight": torch.zeros(10**12, 0)},
        {name.replace(".0.", f".{10**12}.", 1): value.clone() for name, value in first.items()},
    ):
        save_file(state | change, tmp_path / "a.safetensors")
        with pytest.raises(InputError, match="do not fit|fit together|lacks layers"):
            load_sam(tmp_path / "a.safetensors")
