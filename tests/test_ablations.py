"""What the study compares with: it is what it says, and the study itself can be run in pieces."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_cli
import torch
from little_models import dense_config, dense_sam, enliven
from research import ablations, study, study_report
from training_toy import write_shapes

from sam_bigltl.convert import convert_sam, registry, save_sam
from sam_bigltl.errors import InputError
from sam_bigltl.modeling.routing import Geometry, Selection

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def student():
    sam = convert_sam(dense_sam())
    enliven(sam.image_encoder, seed=1)
    sam.image_encoder.keep_ratio = 0.5
    return sam


# ---------------------------------------------------------------- routers
@pytest.mark.parametrize("router", [ablations.RandomRouter(), ablations.CentreRouter()])
def test_scores_sum_to_one_and_select(router):
    sam = student()
    ablations.set_router(sam, router)
    with torch.no_grad():
        sam.image_encoder(IMAGE)
    for group in sam.image_encoder.last_route.groups:
        assert torch.allclose(group.scores.sum(dim=1), torch.ones(2)) and group.indices.shape == (2, 8)


def test_the_centre_comes_first_and_the_corners_last():
    scores = ablations.CentreRouter()(torch.zeros(1, 25, 3))[0].view(5, 5)
    assert scores.argmax() == 12 and scores.min() == scores[0, 0] == scores[4, 4]


def test_outlines_are_where_the_mask_changes():
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, 5:7, 5:7] = True  # all of it in token (1, 1)
    masks[1, 2:14, 9:13] = True
    scores = ablations.boundary_scores(masks, 4)[0].view(4, 4)
    expected = np.zeros((4, 4))
    for mask in masks.numpy():
        share = np.zeros((4, 4))
        for y, x in np.ndindex(16, 16):
            around = mask[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            share[y // 4, x // 4] += around.any() and not around.all()
        expected += share / share.sum()
    assert np.allclose(scores.numpy(), expected / 2, atol=1e-5)


def test_the_oracle_selects_what_it_is_given():
    sam = student()
    router = ablations.OracleRouter()
    ablations.set_router(sam, router)
    router.scores = torch.arange(16.0)[None].softmax(dim=1)
    with torch.no_grad():
        sam.image_encoder(IMAGE)
    assert all(group.indices[1].tolist() == list(range(8, 16)) for group in sam.image_encoder.last_route.groups)


def test_one_selection_for_the_whole_encoder():
    sam = student()
    with torch.no_grad():
        sam.image_encoder(IMAGE)
        first, *others = [group.indices for group in sam.image_encoder.last_route.groups]
        assert not all(torch.equal(first, other) for other in others)
        ablations.route_once(sam)
        sam.image_encoder(IMAGE)
    assert all(torch.equal(first, group.indices) for group in sam.image_encoder.last_route.groups)


# ---------------------------------------------------------------- attention and rivals
@pytest.mark.parametrize("layer", [0, 1])  # in windows, and of the whole image
def test_attention_among_the_selected_against_a_loop(layer: int):
    sam = student()
    block, config = sam.image_encoder.blocks[layer], sam.image_encoder.config
    attention = block.attn
    geometry = Geometry((4, 4), config.window, "cpu")
    indices = torch.tensor([[0, 2, 5, 6, 9, 15]])
    x = torch.randn(1, 6, config.dim, generator=torch.Generator().manual_seed(1))
    found = ablations.SelectedOnlyAttention.routed(attention, x, None, Selection(indices, geometry), geometry)
    heads, width = config.num_heads, config.dim // config.num_heads
    q, k, v = attention.qkv(x)[0].detach().view(6, 3, heads, width).permute(1, 2, 0, 3).double()
    place = [divmod(int(i), 4) for i in indices[0]]
    side = config.window if attention.window else 4
    out = torch.zeros(6, heads, width, dtype=torch.double)
    for i, (r, c) in enumerate(place):
        same = [j for j, p in enumerate(place) if not attention.window or (p[0] // 3, p[1] // 3) == (r // 3, c // 3)]
        for h in range(heads):
            logits = [
                q[h, i] @ k[h, j] / width**0.5
                + q[h, i] @ attention.rel_pos_h[r % side - place[j][0] % side + side - 1].double()
                + q[h, i] @ attention.rel_pos_w[c % side - place[j][1] % side + side - 1].double()
                for j in same
            ]
            out[i, h] = torch.stack(logits).softmax(0) @ v[h, same]
    expected = attention.proj(out.reshape(1, 6, -1).float())
    assert torch.allclose(found, expected, atol=1e-5)


def test_rivals_at_full_size_are_the_teacher():
    # Windows of 2: in padded ones the teacher attends to the padding, too, which pruning leaves out.
    teacher = dense_sam(dense_config(window=2))
    with torch.no_grad():
        wanted = teacher.image_encoder(IMAGE)
        for sam in (
            ablations.pruned(teacher, 1.0), ablations.merged(teacher, 1.0),
            ablations.shallow(teacher, (0, 1, 2, 3)).eval()
        ):  # fmt: skip
            assert torch.allclose(sam.image_encoder(IMAGE), wanted, atol=1e-4)
        for sam in (
            ablations.pruned(teacher, 0.5), ablations.merged(teacher, 0.5), ablations.shallow(teacher, (1, 3)).eval()
        ):  # fmt: skip
            assert not torch.allclose(sam.image_encoder(IMAGE), wanted, atol=1e-2)


def test_rivals_learn():
    teacher = dense_sam(dense_config(window=2))
    for sam in (ablations.pruned(teacher, 0.5), ablations.merged(teacher, 0.5), ablations.shallow(teacher, (1, 3))):
        sam.image_encoder(IMAGE).square().mean().backward()
        missing = [name for name, p in sam.image_encoder.named_parameters() if p.grad is None or not p.grad.any()]
        assert missing == []


def test_merged_tokens_share_a_change():
    x = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    kept, source, target = ablations._match(x, (4, 4), 5)
    assert kept.shape == (1, 11) and sorted([*kept[0].tolist(), *source[0].tolist()]) == list(range(16))
    assert set(target[0].tolist()) <= {0, 2, 8, 10} <= set(kept[0].tolist())
    unit = torch.nn.functional.normalize(x[0], dim=-1)
    best = {i: max(float(unit[i] @ unit[j]) for j in (0, 2, 8, 10)) for i in range(16) if i not in (0, 2, 8, 10)}
    assert set(source[0].tolist()) == set(sorted(best, key=best.get, reverse=True)[:5])
    for i, j in zip(source[0].tolist(), target[0].tolist(), strict=True):
        assert float(unit[i] @ unit[j]) == pytest.approx(best[i])


# ---------------------------------------------------------------- E-blocks
def test_depthwise_mixing_against_a_loop():
    mixer = ablations.DepthwiseMixer(8, kernel=3)
    x = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
    found = mixer(x, Geometry((3, 4), 2, "cpu"))
    mixed = torch.zeros(2, 12, 8)
    for row in range(3):
        for column in range(4):
            for i in range(max(0, row - 1), min(3, row + 2)):
                for j in range(max(0, column - 1), min(4, column + 2)):
                    weight = mixer.conv.weight[:, 0, i - row + 1, j - column + 1]
                    mixed[:, 4 * row + column] += weight * x[:, 4 * i + j]
    assert torch.allclose(found, mixer.proj(mixed + mixer.conv.bias), atol=1e-5)


def test_other_e_blocks_start_as_nothing_and_learn():
    plain, convolved, without = student(), student(), student()
    for block in plain.image_encoder.little_blocks:
        for layer in (block.attn.proj, block.mlp.lin2):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    ablations.convolve(convolved)
    for block in convolved.image_encoder.little_blocks:
        torch.nn.init.zeros_(block.mlp.lin2.weight)
        torch.nn.init.zeros_(block.mlp.lin2.bias)
    ablations.without_little_blocks(without)
    with torch.no_grad():
        wanted = plain.image_encoder(IMAGE)
    for sam in (convolved, without):
        assert torch.allclose(sam.image_encoder(IMAGE), wanted, atol=1e-5)
    convolved.image_encoder(IMAGE).square().mean().backward()
    assert all(block.attn.proj.weight.grad.any() for block in convolved.image_encoder.little_blocks)


# ---------------------------------------------------------------- the study
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="the study trains with Muon: torch 2.9 or later")
def test_the_study_runs_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    data = tmp_path / "data"
    write_shapes(data)
    (data / "dev.json").write_text((data / "train.json").read_text())
    small = dict(study.TRAINING, batch_size=2, workers=0, warmup=1)
    monkeypatch.setattr(study, "TRAINING", small)
    for name in ("a-one-checkpoint", "b-oracle-at-test"):
        monkeypatch.setitem(study.CELLS, name, replace(study.CELLS[name], seeds=1))
    with tiny_cli.registered():
        torch.manual_seed(0)
        teacher, table = tmp_path / "teacher.safetensors", tmp_path / "study.csv"
        save_sam(registry.sam_model_registry["vit_tiny"](), teacher)
        whole = study.Study(teacher, data, tmp_path / "runs", table, steps=2)
        names = ["teacher", "a-one-checkpoint", "b-oracle-at-test", "c-every-layer", "g-warm-start-only"]
        whole.run(names[:2])
        before = table.read_text()
        study.Study(teacher, data, tmp_path / "runs", table, steps=2).run(names)
        assert table.read_text().startswith(before)
        rows = list(csv.DictReader(table.open(newline="")))
        assert [row["cell"] for row in rows] == [n for n, k in zip(names, (4, 20, 4, 4, 6)) for _ in range(k)]
        assert {row["keep_ratio"] for row in rows if row["cell"] == "a-one-checkpoint"} == {
            str(r) for r in study.RATIOS
        }
        printed = [line.split(" seed")[0] for line in capsys.readouterr().out.splitlines() if " seed " in line]
        assert printed == names  # no cell twice
        torch.manual_seed(7)
        save_sam(registry.sam_model_registry["vit_tiny"](), teacher)
        with pytest.raises(InputError, match="rows of another teacher"):
            study.Study(teacher, data, tmp_path / "runs", table, steps=2).run(names)


def test_tables_and_plots_come_from_the_csv(tmp_path: Path):
    lines = [",".join(study.COLUMNS)]
    for cell, seed, ratio, prompt, clicks, figure in (
        ("teacher", 0, 1.0, "box", 0, 60.0), ("teacher", 0, 1.0, "point", 1, 40.0),
        ("a-one-checkpoint", 0, 0.25, "box", 0, 57.0), ("a-one-checkpoint", 1, 0.25, "box", 0, 59.0),
        ("a-one-checkpoint", 0, 0.25, "point", 1, 38.0), ("b-random", 0, 0.25, "box", 0, 50.0),
    ):  # fmt: skip
        row = {"cell": cell, "seed": seed, "keep_ratio": ratio, "prompt": prompt, "clicks": clicks}
        row |= dict.fromkeys(("all", "small", "medium", "large"), figure)
        lines.append(",".join(str(row.get(column, "")) for column in study.COLUMNS))
    table, times, page = tmp_path / "study.csv", tmp_path / "times.csv", tmp_path / "study.md"
    table.write_text("\n".join(lines) + "\n")
    times.write_text("cell,keep_ratio,median_ms\nteacher,1.0,80\na-one-checkpoint,0.25,41.4\n")
    page.write_text("Before\n<!-- table a -->\nold\n<!-- end -->\nbetween\n<!-- table b -->\n<!-- end -->\nafter\n")
    for _ in range(2):  # the second time it replaces what the first one wrote
        study_report.write_report(table, times, page)
        text = page.read_text()
        first, second = text.split("between")
        assert "| a-one-checkpoint | 0.25 | 58.00 ± 1.41 | 58.0 / 58.0 / 58.0 | 96.7 % | 38.00 | 41 |" in first
        assert "| teacher | dense | 60.00 | 60.0 / 60.0 / 60.0 | 100.0 % | 40.00 | 80 |" in first and "old" not in first
        assert "| b-random | 0.25 | 50.00 |" in second and "83.3 %" in second and "a-one-checkpoint" in second
        assert text.startswith("Before\n") and text.endswith("after\n")
    assert (tmp_path / "study_routers.png").stat().st_size > 5000 < (tmp_path / "study_time.png").stat().st_size
    assert [study_report.family(c) for c in ("f-dense-3-layers", "f-dense-1-layer", "f-pruned-0.25", "b-random")] == [
        "f-dense", "f-dense", "f-pruned", "b-random"
    ]  # fmt: skip
    assert "| b-random | 0.25 | 50.00 | 50.0 / 50.0 / 50.0 | 83.3 % | 41 |" in second  # it computes what the base does
    with pytest.raises(InputError, match="run the study first"):
        study_report.write_report(tmp_path / "none.csv", times, page)
