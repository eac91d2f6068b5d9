"""Several photographs in one call of the encoder, several boxes in one call of the decoder, embeddings kept in a file.

python examples/many_images.py --out out
"""

import argparse
from pathlib import Path

import torch

from sam_bigltl import SamPredictor, load_sam
from sam_bigltl.errors import ArgumentParser, run_cli
from sam_bigltl.images import write_image
from sam_bigltl.quickstart import sample_photos
from sam_bigltl.registry import default_checkpoint
from sam_bigltl.visualize import overlay


def masks_of(predictor: SamPredictor, index: int, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """One mask a box, boxes (B, 4) in pixels of image `index` of size (H, W) -> (B, H, W)."""
    in_frame = predictor.transform.apply_boxes_torch(boxes, size)
    masks, _, _ = predictor.predict_torch(None, None, in_frame, multimask_output=False, image_index=index)
    return masks[:, 0]


def run(args: argparse.Namespace) -> None:
    photos = sample_photos()  # three of them, of different sizes
    images = [photo.image for photo in photos]
    sam = load_sam(args.checkpoint or default_checkpoint())
    sam.image_encoder.keep_ratio = 0.5
    predictor = SamPredictor(sam)
    predictor.set_images(images)

    out = Path(args.out)
    predictor.save_embedding(out / "photos.safetensors")
    later = SamPredictor(sam)  # such as in another process; it must be the same model
    later.load_embedding(out / "photos.safetensors")

    for index, (photo, image) in enumerate(zip(photos, images)):
        height, width = image.shape[:2]
        # The box of the photograph's own object, and the middle of the picture.
        own = next(prompt.box for prompt in photo.objects.values() if prompt.box)
        boxes = torch.tensor([own, (0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height)])
        masks = masks_of(predictor, index, boxes, (height, width))
        again = masks_of(later, index, boxes, (height, width))
        print(f"{photo.name}: {len(boxes)} boxes, {masks.sum(dim=(1, 2)).tolist()} pixels, "
              f"from the file the same: {torch.equal(masks, again)}")  # fmt: skip
        write_image(out / f"many_{photo.name}.png", overlay(image, list(masks.numpy()), boxes=boxes.tolist()))
    print(f"wrote photos.safetensors and {len(photos)} pictures to {out}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="(default: the shipped weights)")
    parser.add_argument("--out", default="out", help="folder (%(default)s)")
    run_cli("many_images", run, parser.parse_args())
