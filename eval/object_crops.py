"""Labelled object crops from COCO-format annotations. See `python eval/object_crops.py --help`."""

from sam_bigltl.training.crops import main

if __name__ == "__main__":
    main()
