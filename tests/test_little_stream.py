"""The paper's Algorithm 1: one little stream through all layers, and nothing else for unselected tokens."""

from __future__ import annotations

import pytest
import torch
from little_models import dense_sam, encoder_images, enliven

from sam_bigltl.convert import convert_sam, load_sam, save_sam
from sam_bigltl.convert.warm_start import warm_start
from sam_bigltl.errors import InputError
from sam_bigltl.modeling.routing import Selection, top_tokens


def student(**changes):
    sam = convert_sam(dense_sam(), little_stream="continuous", **({"route_every": 1} | changes))
    enliven(sam.image_encoder, seed=1)
    return sam


def test_only_the_first_selection_projects_into_the_stream():
    names = [name for name, _ in student().image_encoder.named_parameters() if ".down." in name]
    assert names == ["transitions.0.down.weight", "transitions.0.down.bias"]


@torch.no_grad()
def test_against_algorithm_1_layer_by_layer():
    sam = student()
    encoder, images = sam.image_encoder, encoder_images(sam)
    encoder.keep_ratio = 0.5
    found = encoder(images)

    tokens = encoder.embed_patches(images).flatten(1, 2)
    big, small = (encoder._geometry((4, 4), w, "cpu") for w in (encoder.config.window, encoder.config.little_window))
    stream, state = encoder.transitions[0].down(tokens), tokens
    for layer, transition in enumerate(encoder.transitions):
        selection = Selection(top_tokens(transition.router(stream), 8), big)
        block = encoder.blocks[layer]
        selected = block.routed(selection.gather(state), stream, selection, big, None)
        stream = encoder.little_blocks[layer](stream, small)
        state = transition.up(stream)  # what was not selected has nothing but the little stream
        for image in range(2):
            for place, token in enumerate(selection.indices[image].tolist()):
                state[image, token] = selected[image, place]
    wanted = encoder.neck(state.view(2, 4, 4, -1).permute(0, 3, 1, 2))
    assert torch.allclose(found, wanted, atol=1e-4)


@torch.no_grad()
def test_it_is_exact_at_one_and_its_stream_passes_stages_at_one():
    sam = student()
    encoder, images = sam.image_encoder, encoder_images(sam)
    exact = convert_sam(dense_sam(), little_stream="continuous", route_every=1)
    assert torch.equal(exact.image_encoder(images), dense_sam().image_encoder(images))
    found = []
    for ratio in ((0.5, 0.5), (1.0, 0.5), (0.5, 1.0)):
        encoder.keep_ratio = ratio
        found.append(encoder(images))
        counts = [group.indices.shape[1] for group in encoder.last_route.groups]
        assert counts == [round(16 * r) for r in ratio for _ in range(2)]
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[0], found[2])


def test_it_learns_everywhere_and_images_do_not_mix():
    sam = student()
    sam.image_encoder.keep_ratio = 0.5
    images = encoder_images(sam)
    with torch.no_grad():
        both = sam.image_encoder(images)
        single = torch.cat([sam.image_encoder(image[None]) for image in images])
    assert torch.allclose(both, single, atol=1e-5)
    sam.image_encoder(images).square().mean().backward()
    assert [name for name, p in sam.image_encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("every", [None, 1, 2])
def test_files_keep_it(tmp_path, every: int | None):
    sam = student(route_every=every)
    save_sam(sam, tmp_path / "model.safetensors")
    loaded = load_sam(tmp_path / "model.safetensors")
    assert loaded.image_encoder.config.little_stream == "continuous"
    assert loaded.image_encoder.config.groups == sam.image_encoder.config.groups
    sam.image_encoder.keep_ratio = loaded.image_encoder.keep_ratio = 0.25
    with torch.no_grad():
        assert torch.equal(loaded.image_encoder(encoder_images(sam)), sam.image_encoder(encoder_images(sam)))


def test_the_closed_form_start_helps():
    teacher, images = dense_sam(), encoder_images(dense_sam(), 6)
    errors = []
    for fit in (False, True):
        torch.manual_seed(0)
        sam = convert_sam(teacher, little_stream="continuous", route_every=1)
        if fit:
            warm_start(sam, images[:5].split(1), progress=False)
        with torch.no_grad():
            wanted = sam.image_encoder(images[5:])
            assert torch.equal(wanted, teacher.image_encoder(images[5:]))  # the big path is the teacher still
            sam.image_encoder.keep_ratio = 0.5
            errors.append(float((sam.image_encoder(images[5:]) - wanted).square().mean() / wanted.var()))
    assert errors[1] < 0.8 * errors[0]


def test_another_kind_of_stream_is_refused():
    with pytest.raises(InputError, match="little_stream is 'per_group' or 'continuous', not 'both'"):
        convert_sam(dense_sam(), little_stream="both")
