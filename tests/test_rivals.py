"""The rivals that the study compares with: at full size they are the teacher, they learn, and they merge tokens."""

from __future__ import annotations

import pytest
import torch
from little_models import dense_config, dense_sam, enliven
from research import rivals

from sam_bigltl.convert import convert_sam

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def teacher():
    # Windows of 2: in padded ones the teacher attends to the padding, too, which dropping and merging leave out.
    return dense_sam(dense_config(window=2))


def student(teacher):
    sam = convert_sam(teacher)
    sam.image_encoder.keep_ratio = 0.5
    return sam


FULL = {
    "pruned": lambda t: rivals.pruned(t, 1.0),
    "merged": lambda t: rivals.merged(t, 1.0),
    "structured": lambda t: rivals.structured(t, 1.0),
    "shallow": lambda t: rivals.shallow(t, (0, 1, 2, 3)),
    "narrow": lambda t: rivals.narrow(t, 4.0),
    "low_resolution": lambda t: rivals.low_resolution(t, 64),
    "mixed": lambda t: rivals.mixed(convert_sam(t)),
}
PART = {
    "pruned": lambda t: rivals.pruned(t, 0.5),
    "merged": lambda t: rivals.merged(t, 0.5),
    "structured": lambda t: rivals.structured(t, 0.5),
    "shallow": lambda t: rivals.shallow(t, (1, 3)),
    "narrow": lambda t: rivals.narrow(t, 1.0),
    "mixed": lambda t: rivals.mixed(student(t)),
}


@pytest.mark.parametrize("name", FULL)
def test_a_rival_at_full_size_is_the_teacher(teacher, name: str):
    with torch.no_grad():
        wanted = teacher.image_encoder(IMAGE)
        assert torch.allclose(FULL[name](teacher).eval().image_encoder(IMAGE), wanted, atol=1e-4)


@pytest.mark.parametrize("name", PART)
def test_a_rival_of_part_size_is_not_and_learns(teacher, name: str):
    with torch.no_grad():
        wanted = teacher.image_encoder(IMAGE)
    sam = PART[name](teacher)
    assert not torch.allclose(sam.eval().image_encoder(IMAGE), wanted, atol=1e-2)
    sam.image_encoder(IMAGE).square().mean().backward()
    learning = [(name, p) for name, p in sam.image_encoder.named_parameters() if p.requires_grad]
    # A mixed student's `up` starts at zero, so that what is under it has no gradient yet.
    assert [n for n, p in learning if p.grad is None and "transitions" not in n] == []


def test_the_worth_of_layers_is_found_by_leaving_them_out(teacher):
    for layer in (block := teacher.image_encoder.blocks)[2].attn.proj, block[2].mlp.lin2:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        order = rivals.layers_by_worth(teacher, teacher.image_encoder.embed_patches(IMAGE))
    assert order[0] == 2 and sorted(order) == [0, 1, 2, 3]  # it does nothing
    assert len(teacher.image_encoder.blocks) == 4 and not isinstance(teacher.image_encoder.blocks[0], rivals.Skip)


def test_merged_tokens_are_the_most_similar():
    x = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    owner = rivals._match(x, (4, 4), 5)[0]
    source = [i for i in range(16) if owner[i] != i]
    assert len(source) == 5 and {int(owner[i]) for i in source} <= {0, 2, 8, 10}
    unit = torch.nn.functional.normalize(x[0], dim=-1)
    best = {i: max(float(unit[i] @ unit[j]) for j in (0, 2, 8, 10)) for i in range(16) if i not in (0, 2, 8, 10)}
    assert set(source) == set(sorted(best, key=best.get, reverse=True)[:5])
    for i in source:
        assert float(unit[i] @ unit[int(owner[i])]) == pytest.approx(best[i])


def test_energy_against_differences():
    x = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(0))
    grid = x[0].view(3, 4, 5)
    found = rivals._energy(x, (3, 4)).view(3, 4)
    for r in range(3):
        for c in range(4):
            down = grid[min(r + 1, 2), c] - grid[max(r - 1, 0), c]
            right = grid[r, min(c + 1, 3)] - grid[r, max(c - 1, 0)]
            assert float(found[r, c]) == pytest.approx(float((down.square() + right.square()).sum().sqrt()), rel=1e-5)


def test_flat_cells_become_one_token_each():
    worth = torch.arange(16.0)[None]
    owner = rivals._flat_cells(worth, worth.flip(1), 10 / 16, (4, 4))[0]
    # The cells of tokens 0, 1, 4, 5 and 2, 3, 6, 7 are worth least; the least energy is that of the last token.
    assert owner.tolist() == [5, 5, 7, 7, 5, 5, 7, 7, *range(8, 16)]


def test_merged_layers_share_the_change_of_the_mean(teacher):
    encoder = teacher.image_encoder
    geometry = encoder._geometry((4, 4), 2, "cpu")
    x = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
    owner = torch.arange(16)[None].clone()
    owner[0, [0, 1, 4]] = 5
    with torch.no_grad():
        change = rivals._merged(encoder, x, range(1, 2), owner, geometry) - x
    assert torch.allclose(change[0, [0, 1, 4]], change[0, 5].expand(3, -1), atol=1e-6)
    assert not torch.allclose(change[0, 6], change[0, 5], atol=1e-3)


def test_a_mixed_students_up_is_fitted(teacher):
    enliven(teacher.image_encoder, seed=2)
    sam = student(teacher)
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"image": torch.randint(0, 255, (2, 3, 64, 64), generator=generator), "offset": torch.zeros(2, 2).long(),
         "valid": torch.ones(2, 4, 4, dtype=torch.bool)}
        for _ in range(12)
    ]  # fmt: skip
    image = (batches[0]["image"].float() - sam.pixel_mean) / sam.pixel_std
    with torch.no_grad():
        wanted = teacher.image_encoder(image)
        errors = []
        for crops in ((), batches):
            fitted = rivals.mixed(sam, crops)
            fitted.image_encoder.keep_ratio = 0.4
            errors.append(float((fitted.image_encoder(image) - wanted).square().mean()))
    assert errors[1] < errors[0]
